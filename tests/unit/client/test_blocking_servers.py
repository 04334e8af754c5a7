"""The blocking client and several servers, tokens, threads and forked children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kqs import Client
from kqs.errors import ConfigError, ConnectionFailed, Unauthorized, Unsupported

from .peer import PATIENCE, SHORT, DeafListener, Line, Peer, serve, take_and_close, take_and_reset, unused_url

# -- servers -------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    url = f"{unused_url()},kqs+unix:/no/such.sock"
    with Client(url, timeout=SHORT) as client, pytest.raises(ConnectionFailed) as caught:
        client.ping()
    assert not caught.value.sent
    text = str(caught.value)
    assert "no KQS server reached" in text
    assert "kqs serve" in text
    assert all(part in text for part in url.split(","))


def test_servers_are_tried_in_turn(tmp_path: Path) -> None:
    with Peer(path=str(tmp_path / "s")) as second, Peer() as third:
        urls = f"{unused_url()},{second.url},{third.url}"
        with Client(urls, timeout=PATIENCE) as client:
            assert client.ping() == "pong"
            assert client.insert("t") == "0-0"
            assert (second.connections, third.connections) == (1, 0)
            second.close()
            assert client.ping() == "pong"
            assert third.connections == 1


def test_a_server_that_does_not_answer_does_not_use_up_the_time() -> None:
    with DeafListener() as deaf, Peer() as peer, Client(f"{deaf.url},{peer.url}", timeout=1.0) as client:
        assert client.ping() == "pong"


def test_a_server_that_comes_up_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    peers: list[Peer] = []

    class Waiting(Client):
        """Brings the server up once the client has seen that there is none."""

        def _open(self, address: Any, deadline: float) -> None:
            try:
                super()._open(address, deadline)
            except OSError:
                if not peers:
                    peers.append(Peer(path=path))
                raise

    with Waiting(f"kqs+unix:{path}", timeout=PATIENCE) as client:
        assert client.ping() == "pong"
    peers[0].close()


@pytest.mark.parametrize("url", ["http://h", "kqss://", "kqs://"])
def test_a_url_that_cannot_be_read_is_told_at_once(url: str) -> None:
    with pytest.raises(ConfigError):
        Client(url)


def test_the_url_and_token_of_the_environment(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KQS_URL", peer.url)
    with Client(timeout=PATIENCE) as client:
        assert client.ping() == "pong"
        monkeypatch.setenv("KQS_TOKEN", "secret")
    with Client(timeout=PATIENCE) as client, pytest.raises(Unsupported, match="auth: no handler"):
        client.ping()


# -- tokens --------------------------------------------------------------------------------------


def with_token(line: Line) -> None:
    """Wants the token first."""
    call = line.call()
    assert (call["n"], call["m"]) == ("auth", {"token": "secret"})
    line.reply(call, {"role": "insert"})
    serve(line)


def test_every_connection_begins_with_the_token() -> None:
    def once(line: Line) -> None:
        call = line.call()
        assert call["n"] == "auth"
        line.reply(call, {"role": "insert"})
        line.call()

    with Peer(once, with_token) as peer, Client(peer.url, token="secret", timeout=PATIENCE) as client:
        with pytest.raises(ConnectionFailed):
            client.ping()
        assert client.ping() == "pong"
        assert peer.connections == 2


def test_a_wrong_token() -> None:
    def script(line: Line) -> None:
        line.refuse(line.call(), "unauthorized", "unknown token")

    with Peer(script, with_token) as peer, Client(peer.url, token="secret", timeout=PATIENCE) as client:
        with pytest.raises(Unauthorized, match="unknown token"):
            client.ping()
        assert client.ping() == "pong"


def test_a_server_lost_while_it_is_given_the_token_is_tried_again() -> None:
    """The call itself was not sent yet, so its outcome is not in doubt."""
    with Peer(take_and_close, take_and_reset, with_token) as peer:
        with Client(peer.url, token="secret", timeout=PATIENCE) as client:
            assert client.ping() == "pong"
        assert peer.connections == 3


def test_a_server_that_takes_nobody_is_tried_with_pauses() -> None:
    with (
        Peer(lambda line: None) as peer,
        Client(peer.url, token="secret", timeout=0.5) as client,
        pytest.raises(ConnectionFailed, match="lost while the token was checked"),
    ):
        client.ping()
    assert peer.connections < 20


def test_a_server_silent_while_it_is_given_the_token() -> None:
    with (
        Peer(lambda line: line.wait_closed()) as peer,
        Client(peer.url, token="secret", timeout=SHORT) as client,
        pytest.raises(ConnectionFailed) as caught,
    ):
        client.ping()
    assert not caught.value.sent


# -- threads and processes -----------------------------------------------------------------------


def test_threads_share_a_client(client: Client, peer: Peer) -> None:
    def work(name: int) -> None:
        for number in range(100):
            text = f"{name}-{number}"
            if client.echo(text) != text or client.echo(text.encode()) != text.encode():
                wrong.append(text)

    wrong: list[str] = []
    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert peer.connections == 1


FORK = """
import os, sys, threading
from kqs import Client

client = Client(sys.argv[1], timeout=10)
assert client.echo("before") == "before"
busy = threading.Thread(target=client.call, args=("hold",))
busy.start()
input()  # the server has the call: the other thread holds the client
child = os.fork()
if child == 0:
    try:
        os._exit(0 if client.echo("child") == "child" and client.insert("t") else 1)
    except BaseException as error:
        sys.stderr.write(repr(error))
        os._exit(2)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), flush=True)
busy.join()
assert client.echo("after") == "after"
client.close()
"""


def test_a_forked_child_has_a_connection_and_a_lock_of_its_own() -> None:
    """It is forked while another thread is in a call: that thread and its lock are not in the child."""

    def parent(line: Line) -> None:
        line.reply(line.call(), "before")
        call = line.call()
        assert call["n"] == "hold"
        held.set()
        assert release.wait(PATIENCE)
        line.reply(call)
        serve(line)

    held, release = threading.Event(), threading.Event()
    with (
        Peer(parent, serve) as peer,
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", FORK, peer.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        giving_up = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        giving_up.start()
        assert process.stdin is not None and process.stdout is not None
        assert held.wait(PATIENCE)
        process.stdin.write("\n")
        process.stdin.flush()
        status = process.stdout.readline()
        release.set()
        _out, err = process.communicate()
        giving_up.cancel()
        assert (status.strip(), process.returncode, err) == ("0", 0, "")
        assert peer.connections == 2
