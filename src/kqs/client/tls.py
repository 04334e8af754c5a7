"""The client's end of TLS."""

from __future__ import annotations

import ssl

from ..errors import ConfigError
from .url import Tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """What a handshake needs: the server's certificate and its name are always checked.

    Raises:
        ConfigError: a file cannot be used: which, and why.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca or None)
    except OSError as error:
        raise ConfigError(f"ca (KQS_CA): {tls.ca}: {why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.cert:
        try:
            # Without a password an encrypted key would ask for one at the terminal.
            context.load_cert_chain(tls.cert, tls.key or None, password=lambda: b"")
        except OSError as error:
            files = f"{tls.cert} and {tls.key}" if tls.key else tls.cert
            garbled = isinstance(error, ssl.SSLError) and not error.reason
            reason = "not a PEM certificate and its key, unencrypted" if garbled else why(error)
            raise ConfigError(f"cert, key (KQS_CERT, KQS_KEY): {files}: {reason}") from None
    return context


def why(error: OSError) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return error.strerror or "timed out"
    return error.strerror or str(error) or type(error).__name__
