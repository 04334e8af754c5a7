"""What a client's TLS settings come to."""

from __future__ import annotations

import errno
import ssl
from pathlib import Path

import pytest

from kqs.client.tls import client_context, why
from kqs.client.url import Tls
from kqs.errors import ConfigError


def test_certificates_and_names_are_checked_and_old_versions_refused() -> None:
    context = client_context(Tls())
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(("member", "named"), [("ca", "KQS_CA"), ("cert", "KQS_CERT")])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, member: str, named: str) -> None:
    missing = str(tmp_path / "missing.pem")
    with pytest.raises(ConfigError, match=named) as refused:
        client_context(Tls(**{member: missing}))
    assert missing in str(refused.value)


def test_why_a_connection_failed() -> None:
    assert why(OSError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"
    assert why(TimeoutError()) == "timed out"
    assert why(OSError()) == "OSError"
