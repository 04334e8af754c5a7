"""Which addresses requests may go to, and that they go to the ones that were checked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpx
import pytest

from kqs.errors import ConfigError
from kqs.runners.target import NotAllowed, Target, is_public

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.15.0.1",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00:1450::1",
    "::ffff:8.8.8.8",
]
HIDDEN = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",  # Teredo
    "64:ff9b:1::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a00:1::",
    "64:ff9b::7f00:1",  # NAT64 of 127.0.0.1
    "64:ff9b::a9fe:a9fe",
]


@pytest.mark.parametrize("address", [*PUBLIC, "64:ff9b::808:808", "2002:808:808::"])
def test_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", HIDDEN)
def test_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", HIDDEN)
def test_an_address_in_the_url_is_refused_at_once(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ConfigError, match=r"not a public address.*http\.allow_private"):
        Target(f"http://{host}/")
    Target(f"http://{host}/", [address])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "begin with"),
        ("example.com/x", "begin with"),
        ("ftp://example.com/", "begin with"),
        ("file:///etc/passwd", "begin with"),
        ("https:///x", "begin with"),
        ("https://ann:secret@example.com/", "user and password"),
        ("https://ann@example.com/", "user and password"),
        ("https://example.com:0/", "0 is no port"),
        ("https://example.com:65536/", "65536 is no port"),
        ("https://example.com:x/", "no URL"),
        ("https://exa\nmple.com/", "no URL"),
    ],
)
def test_other_urls_are_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Target(url)
    assert "secret@" not in str(caught.value)


class Names:
    """The answers of a name server, one after the other; the last one stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[list[str]] = []
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, *_args: Any, **_settings: Any) -> list[Any]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6 if ":" in text else socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port))
            for text in answer
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def addresses(target: Target) -> list[str]:
    return asyncio.run(target.addresses())


def test_a_name_of_public_addresses(names: Names) -> None:
    names.answers = [["8.8.8.8", "2606:4700::1111", "8.8.8.8"]]
    assert addresses(Target("https://example.com/")) == ["8.8.8.8", "2606:4700::1111"]
    assert names.asked == ["example.com"]


@pytest.mark.parametrize("address", HIDDEN)
def test_a_name_of_a_hidden_address_is_refused(names: Names, address: str) -> None:
    names.answers = [[address]]
    with pytest.raises(NotAllowed, match=r"example\.com stands for .*http\.allow_private"):
        addresses(Target("https://example.com/"))


def test_only_the_good_ones_of_a_name_are_used(names: Names) -> None:
    names.answers = [["10.0.0.1", "8.8.8.8", "::1"]]
    assert addresses(Target("https://example.com/")) == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("allow", "address", "good"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", True),  # public anyway
        (["10.0.0.0/8"], "192.168.0.1", False),
        (["10.1.2.3"], "10.1.2.3", True),
        (["10.1.2.3"], "10.1.2.4", False),
        (["10.1.2.3/8"], "10.9.9.9", True),
        (["127.0.0.0/8"], "::ffff:127.0.0.1", True),
        (["127.0.0.0/8"], "::1", False),
        (["fd00::/8"], "fd00::7", True),
        (["inside.example"], "10.1.2.3", True),
        (["INSIDE.example"], "10.1.2.3", True),
        (["side.example"], "10.1.2.3", False),
        (["example"], "10.1.2.3", False),
        ([], "10.1.2.3", False),
    ],
)
def test_what_the_config_allows(names: Names, allow: list[str], address: str, good: bool) -> None:
    names.answers = [[address]]
    target = Target("https://Inside.example:8443/x", allow)
    if good:
        assert addresses(target) == [address]
    else:
        with pytest.raises(NotAllowed):
            addresses(target)


def test_it_is_checked_every_time(names: Names) -> None:
    """A name that changes its mind."""
    names.answers = [["8.8.8.8"], ["127.0.0.1"]]
    target = Target("https://example.com/")
    assert addresses(target) == ["8.8.8.8"]
    with pytest.raises(NotAllowed):
        addresses(target)


@pytest.mark.parametrize(
    ("url", "address", "connects_to", "host", "name"),
    [
        ("https://example.com/a?b=c", "8.8.8.8", "https://8.8.8.8/a?b=c", "example.com", "example.com"),
        ("https://example.com:8443/", "8.8.8.8", "https://8.8.8.8:8443/", "example.com:8443", "example.com"),
        ("https://example.com", "2606:4700::1", "https://[2606:4700::1]/", "example.com", "example.com"),
        (
            "http://Ex\u00e4mple.com/",
            "8.8.8.8",
            "http://8.8.8.8/",
            "xn--exmple-cua.com",
            "xn--exmple-cua.com",
        ),
        ("https://8.8.8.8/x", "8.8.8.8", "https://8.8.8.8/x", "8.8.8.8", None),
        ("https://[2606:4700::1]:9/", "2606:4700::1", "https://[2606:4700::1]:9/", "[2606:4700::1]:9", None),
    ],
)
def test_a_request_goes_to_the_address_in_the_name_of_the_host(
    url: str, address: str, connects_to: str, host: str, name: str | None
) -> None:
    request = Target(url).request(address, {"KQS-Attempt": "1"}, b"body", 3.0)
    assert (request.method, request.content, request.headers["KQS-Attempt"]) == ("POST", b"body", "1")
    expected = httpx.URL(connects_to)
    assert (request.url.scheme, request.url.host, request.url.port, request.url.raw_path) == (
        expected.scheme,
        expected.host,
        expected.port,
        expected.raw_path,
    )
    assert request.headers.get_list("Host") == [host]
    assert request.extensions.get("sni_hostname") == name
    assert request.extensions["timeout"] == {"connect": 3.0}
