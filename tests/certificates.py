"""Certificates for tests, made by the openssl command (Debian: openssl)."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]


class Authority:
    """A root that signs certificates; its own is ``NAME.pem``.

    Args:
        folder: where its files and those it signs are kept.
        name: of its files.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.pem = folder / f"{name}.pem"
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", folder / f"{name}.key", "-out", self.pem),
            *("-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )

    def issue(self, name: str, names: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        """A certificate and its key, for a server or a client.

        Args:
            name: of the files.
            names: what the certificate is for, as openssl writes it.
        """
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}"),
            *("-CA", self.pem, "-CAkey", self._folder / f"{self._name}.key"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-addext", f"subjectAltName={names}"),
        )
        return cert, key


def _openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)
