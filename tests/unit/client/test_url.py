"""Server addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.client.url import DEFAULT_PORT, Address, Tls, parse
from kqs.errors import ConfigError

LOCAL = Address(None, "127.0.0.1", DEFAULT_PORT)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KQS_URL", "KQS_CA", "KQS_CERT", "KQS_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kqs://localhost", Address(None, "localhost", 14151)),
        ("kqs://localhost:14152", Address(None, "localhost", 14152)),
        ("kqs://10.0.0.1:1/", Address(None, "10.0.0.1", 1)),
        ("kqs://h:65535", Address(None, "h", 65535)),
        ("kqs://h:", Address(None, "h", 14151)),
        ("kqs://[::1]", Address(None, "::1", 14151)),
        ("kqs://[fe80::1]:9", Address(None, "fe80::1", 9)),
        ("kqs+unix:/run/kqs.sock", Address("/run/kqs.sock", "", 0)),
        ("kqs+unix:///run/kqs.sock", Address("/run/kqs.sock", "", 0)),
        ("kqs+unix:kqs-data/kqs.sock", Address("kqs-data/kqs.sock", "", 0)),
    ],
)
def test_one_address(url: str, address: Address) -> None:
    assert parse(url) == [address]
    assert parse(f" {url} ,") == [address]


@pytest.mark.parametrize("address", [LOCAL, Address(None, "::1", 5), Address("/a b.sock", "", 0)])
def test_an_address_is_shown_as_it_is_written(address: Address) -> None:
    assert parse(str(address)) == [address]


@given(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), st.integers(1, 65535))
def test_any_host_and_port(host: str, port: int) -> None:
    assert parse(f"kqs://{host}:{port}") == [Address(None, host, port)]


def test_several_in_order() -> None:
    assert parse("kqs://a:1, kqs+unix:/s ,kqs://[::1]:2") == [
        Address(None, "a", 1),
        Address("/s", "", 0),
        Address(None, "::1", 2),
    ]


def test_the_environment_then_the_local_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse() == parse("") == [LOCAL]
    monkeypatch.setenv("KQS_URL", "kqs://other:7")
    assert parse() == [Address(None, "other", 7)]
    assert parse("kqs://given:8") == [Address(None, "given", 8)]
    monkeypatch.setenv("KQS_URL", " , ")
    assert parse() == [LOCAL]


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:14151",
        "http://localhost:14151",
        "kqs:/localhost",
        "KQS://localhost",
        "kqs://",
        "kqs://:14151",
        "kqs://h:0",
        "kqs://h:65536",
        "kqs://h:-1",
        "kqs://h:port",
        "kqs://h:1.5",
        "kqs://h:\u0663",
        "kqs://h:\u00b2",
        "kqs://[::1",
        "kqs://[::1]x",
        "kqs://[::1]9",
        "kqs://[]",
        "kqs://::1",
        "kqs+unix:",
        "kqs+unix://",
        "kqs://good, bad",
    ],
)
def test_addresses_that_cannot_be_read(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert repr(url.split(",")[-1].strip()) in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("kqss://h", "h", 14151, Tls()),
        ("kqss://[::1]:7/", "::1", 7, Tls()),
        ("kqss://h:1?ca=/a/ca.pem", "h", 1, Tls("/a/ca.pem")),
        ("kqss://h?key=k&cert=c", "h", 14151, Tls("", "c", "k")),
        ("kqss://h/?ca=/a%2Cb%20c.pem", "h", 14151, Tls("/a,b c.pem")),
    ],
)
def test_tls(url: str, host: str, port: int, tls: Tls) -> None:
    assert parse(url) == [Address(None, host, port, tls)]


def test_tls_is_shown_without_its_files() -> None:
    assert [str(one) for one in parse("kqss://h:1?ca=/a/ca.pem,kqss://[::1]")] == [
        "kqss://h:1",
        "kqss://[::1]:14151",
    ]


def test_files_not_in_the_url_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ca", "cert", "key"):
        monkeypatch.setenv(f"KQS_{name.upper()}", f"/env/{name}")
    assert parse("kqss://a?ca=mine,kqss://b,kqs://c") == [
        Address(None, "a", 14151, Tls("mine", "/env/cert", "/env/key")),
        Address(None, "b", 14151, Tls("/env/ca", "/env/cert", "/env/key")),
        Address(None, "c", 14151),
    ]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("kqss://h?verify=no", "'verify'"),
        ("kqss://h?ca=x&CERT=y", "'CERT'"),
        ("kqss://h?key=k", "KQS_CERT"),
        ("kqss://", "kqss://HOST:PORT"),
        ("kqss://h:x?ca=y", "kqss://HOST:PORT"),
        ("kqss://[::1?ca=y", r"not closed with \]"),
        ("kqs://h?ca=y", "kqs://HOST:PORT"),
        ("kqss:h", "kqss://HOST:PORT"),
    ],
)
def test_tls_that_cannot_be_read(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(url)
