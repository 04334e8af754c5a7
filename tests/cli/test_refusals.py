"""Settings and places that cannot be used: one clear line on stderr that says what and where, exit code 2."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.support import Finished, ServerProcess, environment, kqs, kqs_here

Start = Callable[..., ServerProcess]


def refused(done: Finished, *texts: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr with these texts in it."""
    assert done.status == 2, done
    assert done.out == ""
    assert re.fullmatch(r"kqs: [^\n]+\n", done.err), done.err
    for text in texts:
        assert text in done.err, done.err


def serve(folder: Path, *args: str, config: str | None = None, here: bool = False) -> Finished:
    """Try to start a server that must not start; ``here`` when it is refused before anything begins."""
    if config is not None:
        (folder / "kqs.toml").write_text(config)
        args = ("--config", "kqs.toml", *args)
    if "--listen" not in args:
        args = ("--listen", "127.0.0.1:0", *args)
    return (kqs_here if here else kqs)("serve", *args, cwd=folder)


HTTP = '[handlers.a]\nhttp = "https://shop.example/hook"\n'

CRON = '[cron.a]\nschedule = "0 4 * * *"\ntype = "a"\n'

BAD_CONFIGS = {
    "unknown table": ("[serverr]\n", ["kqs.toml", "unknown key 'serverr'", "did you mean 'server'?"]),
    "unknown key": ('[server]\nlistne = "x"\n', ["[server]", "'listne'", "did you mean 'listen'?"]),
    "unknown key in a handler": (
        '[handlers.a]\npython = "jobs:note"\ntttr = 5\n',
        ["handlers", "'tttr'", "did you mean 'ttr'?"],
    ),
    "unknown key in retry": (
        "[defaults.retry]\nbackof = 'fixed'\n",
        ["defaults.retry", "'backof'", "did you mean 'backoff'?"],
    ),
    "bad type": ("[limits]\nline = 'long'\n", ["limits.line", "int"]),
    "bad type of a list": ('[handlers.a]\ncommand = "sh"\n', ["handlers", "command", "array"]),
    "bool for int": ("[limits]\nconnections = true\n", ["limits.connections", "int"]),
    "too small": ("[limits]\nline = 1\n", ["limits.line", "1024"]),
    "negative": ("[defaults]\nttr = -1\n", ["defaults.ttr", "> 0"]),
    "bad choice": ("[defaults]\nprio = 'top'\n", ["defaults.prio", "top"]),
    "not TOML": ("[server\n", ["kqs.toml", "not TOML", "line 1"]),
    "key twice": ("[server]\nname='a'\nname='b'\n", ["kqs.toml", "not TOML"]),
    "bad address": ('[server]\nlisten = "14151"\n', ["server.listen", "'14151'", "HOST:PORT"]),
    "bad port": ('[server]\nlisten = "127.0.0.1:99999"\n', ["server.listen", "HOST:PORT"]),
    "no handler": ("[handlers.a]\n", ["handlers.a", "exactly one of python, command and http"]),
    "two handlers": (
        '[handlers.a]\npython = "a:b"\ncommand = ["x"]\n',
        ["handlers.a", "exactly one of python, command and http"],
    ),
    "not a path": ('[handlers.a]\npython = "jobs.note"\n', ["handlers.a.python", "pkg.mod:callable"]),
    "empty command": ("[handlers.a]\ncommand = []\n", ["handlers", "command"]),
    "unknown pool": (
        '[pools.slow]\n[handlers.a]\npython = "jobs:note"\npool = "solw"\n',
        ["handlers.a.pool", "'solw'", "did you mean 'slow'?"],
    ),
    "type too long": (f'[handlers.{"x" * 198}]\npython = "a:b"\n', ["197"]),
    "incoherent": ("[limits]\nline = 1024\n[bulk]\nthreshold = 4096\n", ["bulk.threshold", "limits.line"]),
    "bad hash": ('[[tokens]]\nname="a"\nrole="read"\nsha256="xyz"\n', ["tokens", "sha256"]),
    "bad role": (f'[[tokens]]\nname="a"\nrole="king"\nsha256="{"0" * 64}"\n', ["tokens", "role", "king"]),
    "token without a name": (f'[[tokens]]\nrole="read"\nsha256="{"0" * 64}"\n', ["tokens", "name"]),
    "key without a certificate": ('[tls]\nkey = "k.pem"\n', ["tls.cert", "missing"]),
    "roots without a certificate": ('[tls]\nclient_ca = "ca.pem"\n', ["tls.cert", "missing"]),
    "no schedule": (
        CRON.replace("0 4", "4"),
        ["cron.a.schedule", "'4 * * *' has 4 fields, not five", "MON-FRI"],
    ),
    "bad schedule": (CRON.replace("0 4", "0 24"), ["cron.a.schedule", "has a bad hour", "crontab"]),
    "no such day": (CRON.replace("* * *", "31 2 *"), ["cron.a.schedule", "bad day-of-month"]),
    "schedule of nothing": (CRON.replace("schedule", "#"), ["cron", "schedule", "missing"]),
    "cron of no type": (CRON.replace('"a"', '""'), ["cron", "type"]),
    "cron of a long type": (CRON.replace('"a"', f'"{"x" * 198}"'), ["cron.a.type", "197"]),
    "unknown zone": (
        f'{CRON}timezone = "Europe/Berln"\n',
        ["cron.a.timezone", "did you mean 'Europe/Berlin'?"],
    ),
    "path as a zone": (f'{CRON}timezone = "../../etc/passwd"\n', ["cron.a.timezone", "give an IANA name"]),
    "part of a zone": (f'{CRON}timezone = "Europe"\n', ["cron.a.timezone", "no time zone 'Europe'"]),
    "unknown policy": (f'{CRON}missed = "two"\n', ["cron", "missed", "'two'"]),
    "unknown key in a cron": (f'{CRON}shedule = ""\n', ["cron", "'shedule'", "did you mean 'schedule'?"]),
    "key of a cron": (f'{CRON}key = "x"\n', ["cron", "unknown key 'key'"]),
    "unique of a cron": (f'{CRON}unique = "x"\n', ["cron", "unknown key 'unique'"]),
    "name of a cron": (CRON.replace("cron.a", 'cron."a b"'), ["cron.'a b'", "1 to 64"]),
    "long name of a cron": (CRON.replace("cron.a", f"cron.{'a' * 65}"), ["1 to 64"]),
    "data that is no JSON": (f"{CRON}data = [1, nan]\n", ["cron.a.data", "nan"]),
    "data that is too long": (f'{CRON}data = "{"x" * 65536}"\n', ["cron.a.data", "65538", "bulk.threshold"]),
    "retry of a cron": (f"{CRON}retry = {{base = 9, cap = 3}}\n", ["cron.a.retry.base", "retry.cap"]),
    "two tokens of a name": (
        f'[[tokens]]\nname="a"\nrole="read"\nsha256="{"0" * 64}"\n' * 2,
        ["tokens", "same name"],
    ),
    "class without types": ("[classes.c]\npool = 'default'\n", ["classes.c", "has no types", "types = "]),
    "type in two classes": (
        "[classes.c]\ntypes = ['a', 'b']\n[classes.d]\ntypes = ['b']\n",
        ["classes.d.types", "'b'", "classes.c"],
    ),
    "unknown pool of a class": (
        "[pools.slow]\n[classes.c]\ntypes = ['a']\npool = 'slwo'\n",
        ["classes.c.pool", "'slwo'", "did you mean 'slow'?"],
    ),
    "unknown pool, none like it": (
        "[classes.c]\ntypes = ['a']\npool = 'slow'\n",
        ["classes.c.pool", "add [pools.slow]"],
    ),
    "empty type in a class": ("[classes.c]\ntypes = ['']\n", ["classes.c.types", "197"]),
    "max_runtime alone": ("[defaults]\nmax_runtime = 90\n", ["defaults.max_runtime", "keep_alive = true"]),
    "max_runtime below ttr": (
        "[classes.c]\ntypes = ['a']\nkeep_alive = true\nmax_runtime = 20\n",
        ["classes.c.max_runtime", "20 s", "ttr of 30 s"],
    ),
    "settings that contradict each other across tables": (
        "[classes.c]\ntypes = ['a*']\nkeep_alive = true\nmax_runtime = 60\n"
        "[handlers.ab]\npython = 'jobs:note'\nttr = 61\n",
        ["classes.c.max_runtime", "60 s", "ttr of 61 s"],
    ),
    "retry.base above its cap": (
        "[classes.c]\ntypes = ['a']\nretry = { base = 9, cap = 3 }\n",
        ["classes.c.retry.base", "9 s", "cap"],
    ),
    "no URL": ("[handlers.a]\nhttp = 'ftp://shop.example'\n", ["handlers.a.http", "https://HOST/PATH"]),
    "URL without a scheme": ("[handlers.a]\nhttp = 'shop.example/a'\n", ["handlers.a.http", "https://HOST"]),
    "URL without a host": ("[handlers.a]\nhttp = 'https:///a'\n", ["handlers.a.http", "https://HOST/PATH"]),
    "URL with a bad port": ("[handlers.a]\nhttp = 'https://a:99999/'\n", ["handlers.a.http", "HOST/PATH"]),
    "two secrets": (
        HTTP + "secret = 'a'\nsecret_file = 'b'\n",
        ["handlers.a", "one of secret and secret_file"],
    ),
    "empty secret": (HTTP + "secret = ''\n", ["handlers.a.secret", "empty"]),
    "secret without http": (
        "[handlers.a]\npython = 'jobs:note'\nsecret = 'x'\n",
        ["handlers.a.secret", "http only"],
    ),
    "timeout above ttr": (HTTP + "timeout = 31\n", ["handlers.a.timeout", "31 s", "ttr of 30 s"]),
    "bad network": ("[http]\nallow_private = ['10.0.0.0/33']\n", ["http.allow_private", "'10.0.0.0/33'"]),
    "bad host": ("[http]\nallow_private = ['http://a/']\n", ["http.allow_private", "'http://a/'"]),
    "too little memory": ("[pools.p]\nmemory = 1000\n", ["pools.p.memory", "0 for no limit"]),
    "bad variable": ("[pools.p.env]\n'A=B' = 'c'\n", ["pools.p.env", "'A=B'"]),
    "bad nice": ("[pools.p]\nnice = 20\n", ["pools", "nice", "19"]),
    "bad order": ("[scheduler]\norder = 'random'\n", ["scheduler.order", "random"]),
    "bad priority": ("[scheduler]\npriority = 'fair'\n", ["scheduler.priority", "fair"]),
    "unknown key of the scheduler": (
        "[scheduler]\npriorty = 'strict'\n",
        ["[scheduler]", "'priorty'", "did you mean 'priority'?"],
    ),
    "unknown key of a fairness key": (
        "[fair.a]\nwieght = 2\n",
        ["fair", "'wieght'", "did you mean 'weight'?"],
    ),
    "weight 0": ("[fair.a]\nweight = 0\n", ["fair", "weight", "> 0"]),
    "weight of a class 0": ("[classes.c]\ntypes = ['a']\nweight = 0\n", ["classes", "weight", "> 0"]),
    "negative weight": (HTTP + "weight = -1\n", ["handlers", "weight", "> 0"]),
    "weight too high": ("[fair.a]\nweight = 1e7\n", ["fair", "weight", "1000000"]),
    "weight that is no number": ("[fair.a]\nweight = nan\n", ["fair", "weight"]),
    "negative concurrency": ("[fair.a]\nconcurrency = -1\n", ["fair", "concurrency", ">= 0"]),
    "half a job": ("[fair.a]\nconcurrency = 1.5\n", ["fair", "concurrency", "int"]),
    "rate without a unit": ("[fair.a]\nrate = '10'\n", ["fair", "rate"]),
    "rate as a number": ("[fair.a]\nrate = 10\n", ["fair", "rate", "str"]),
    "rate of no unit there is": ("[fair.a]\nrate = '10/w'\n", ["fair", "rate"]),
    "rate with more behind it": ("[fair.a]\nrate = '10/s '\n", ["fair", "rate"]),
    "negative rate": (HTTP + "rate = '-1/s'\n", ["handlers", "rate"]),
    "rate 0": ("[fair.a]\nrate = '0/s'\n", ["fair.a.rate", "is 0", "kqs pause"]),
    "rate 0 of a class": ("[classes.c]\ntypes = ['a']\nrate = '0.0/h'\n", ["classes.c.rate", "is 0"]),
    "rate 0 of a handler": (HTTP + "rate = '0/d'\n", ["handlers.a.rate", "is 0"]),
    "burst without a rate": ("[fair.'a-*']\nburst = 3\n", ["fair.a-*.burst", "rate only", 'rate = "10/s"']),
    "burst of a class without a rate": (
        "[classes.c]\ntypes = ['a']\nburst = 3\n",
        ["classes.c.burst", "rate only"],
    ),
    "burst 0": ("[fair.a]\nrate = '1/s'\nburst = 0\n", ["fair", "burst", ">= 1"]),
    "types of a fairness key": ("[fair.a]\ntypes = ['a']\n", ["fair", "unknown key 'types'\n"]),
    "weights of the defaults": ("[defaults]\nweight = 2\n", ["[defaults]", "unknown key 'weight'"]),
    "pool of the server's own": ("[pools.builtin]\n", ["pools.builtin", "choose another"]),
}

BAD_HANDLERS = {
    "missing directory": (
        '[pools.p]\ndirectory = "nosuch"\n[handlers.a]\npython = "jobs:note"\npool = "p"\n',
        ["pools.p.directory", "'nosuch'", "no directory"],
    ),
    "missing user": (
        '[pools.p]\nuser = "no-such-user"\n[handlers.a]\npython = "jobs:note"\npool = "p"\n',
        ["pools.p.user", "'no-such-user'"],
    ),
    "concurrency of what blocks": (
        '[pools.p]\nconcurrency = 8\n[handlers.a]\npython = "jobs:note"\npool = "p"\n',
        ["pools.p.concurrency", "8", "'a'", "not async"],
    ),
    "concurrency of a command": (
        '[pools.default]\nconcurrency = 2\n[handlers.a]\ncommand = ["sh"]\n',
        ["pools.default.concurrency", "'a'", "not async"],
    ),
    "missing secret": (
        HTTP + 'secret_file = "nosuch"\n',
        ["handlers.a.secret_file", "nosuch", "No such file"],
    ),
    "empty secret file": (HTTP + 'secret_file = "empty"\n', ["handlers.a.secret_file", "is empty"]),
    "missing module": (
        '[handlers.a]\npython = "nosuch.mod:f"\n',
        ["handlers.a", "nosuch.mod:f", "No module"],
    ),
    "missing function": ('[handlers.a]\npython = "jobs:nosuch"\n', ["handlers.a", "jobs", "'nosuch'"]),
    "not callable": ('[handlers.a]\npython = "jobs:os"\n', ["handlers.a", "not callable"]),
    "module that raises": (
        '[handlers.a]\npython = "raises:f"\n',
        ["RuntimeError: at import", "raises.py line 2"],
    ),
    "module that raises lines": ('[handlers.a]\npython = "lines:f"\n', ["handlers.a", "one | two"]),
    "module that exits": (
        '[handlers.a]\npython = "exits:f"\n',
        ["handlers.a", "SystemExit", "exits.py line 2"],
    ),
    "module that dies": ('[handlers.a]\npython = "dies:f"\n', ["(dies)", "status 7"]),
    "module that crashes": ('[handlers.a]\npython = "crashes:f"\n', ["(crashes)", "signal 11"]),
    "module that does not parse": ('[handlers.a]\npython = "garbled:f"\n', ["SyntaxError", "garbled.py"]),
    "missing program": (
        '[handlers.a]\ncommand = ["nosuch-prog"]\n',
        ["handlers.a", "nosuch-prog", "not found"],
    ),
    "not executable": (
        '[handlers.a]\ncommand = ["./kqs.toml"]\n',
        ["handlers.a", "./kqs.toml", "executable"],
    ),
}

MODULES = {
    "empty": "\n",
    "raises.py": "print('noise on stdout')\nraise RuntimeError('at import')\n",
    "lines.py": "raise RuntimeError('one\\ntwo')\n",
    "exits.py": "import sys\nsys.exit('bye')\n",
    "dies.py": "import os\nos._exit(7)\n",
    "crashes.py": "import ctypes\nctypes.string_at(0)\n",
    "garbled.py": "def f(:\n",
}


@pytest.mark.parametrize(("config", "texts"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_bad_setting(tmp_path: Path, config: str, texts: list[str]) -> None:
    (tmp_path / "kqs.toml").write_text(config)
    refused(kqs_here("config", "check", cwd=tmp_path), *texts)


@pytest.mark.parametrize(("config", "texts"), BAD_HANDLERS.values(), ids=BAD_HANDLERS.keys())
def test_a_handler_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, texts: list[str]
) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "kqs.toml").write_text(config)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    refused(kqs_here("config", "check", cwd=tmp_path), *texts)


@pytest.mark.parametrize("name", ["unknown key", "bad type", "missing module"])
def test_the_server_refuses_what_the_check_refuses(tmp_path: Path, name: str) -> None:
    config, texts = (BAD_CONFIGS | BAD_HANDLERS)[name]
    refused(serve(tmp_path, config=config), *texts)
    assert not (tmp_path / "kqs-data").exists()  # refused before anything was touched


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (("--pool", "solw"), ["--pool", "'solw'", "did you mean 'slow'?"]),
        (("--pool", "slow", "--pool", "x"), ["--pool", "'x'", "known are default, slow"]),
    ],
)
def test_a_pool_that_is_not_there(tmp_path: Path, args: tuple[str, ...], texts: list[str]) -> None:
    config = "[pools.slow]\n"
    refused(serve(tmp_path, *args, config=config, here=True), *texts)
    refused(kqs_here("config", "check", *args, cwd=tmp_path), *texts)


def test_settings_of_an_app_that_contradict_each_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from kqs import App\napp = App()\n@app.job('long', max_runtime=60)\ndef long() -> None: ...\n"
    )
    config = "[classes.c]\ntypes = ['lo*']\nkeep_alive = true\nttr = 90\n"
    done = serve(tmp_path, "--app", "mine:app", config=config)
    refused(done, "--app mine:app", "job type 'long'.max_runtime", "60 s", "ttr of 90 s")


@pytest.mark.parametrize(
    ("app", "texts"),
    [
        ("nosuch:app", ["--app nosuch:app", "No module named 'nosuch'"]),
        ("shop:nosuch", ["--app shop:nosuch", "'nosuch'"]),
        ("shop:add", ["--app shop:add", "not a kqs.App"]),
        ("shop", ["--app", "shop"]),
    ],
)
def test_an_app_that_cannot_be_run(tmp_path: Path, app: str, texts: list[str]) -> None:
    refused(serve(tmp_path, "--app", app), *texts)


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    refused(serve(tmp_path, "--config", "nosuch.toml"), "nosuch.toml", "No such file")
    refused(kqs_here("config", "check", cwd=tmp_path), "kqs.toml", "No such file")
    refused(kqs_here("config", "check", str(tmp_path), cwd=tmp_path), str(tmp_path), "directory")


def test_a_config_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "kqs.toml").write_bytes(b'[server]\nname = "\xff"\n')
    refused(kqs_here("config", "check", cwd=tmp_path), "kqs.toml", "not TOML")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused(serve(tmp_path, "--listen", address), address, "in use", "--listen")


@pytest.mark.parametrize(
    ("address", "texts"),
    [
        ("nonsense", ["--listen", "'nonsense'", "HOST:PORT"]),
        ("127.0.0.1:x", ["--listen", "HOST:PORT"]),
        ("0.0.0.0:0", ["0.0.0.0", "--insecure"]),
        ("[::]:0", ["::", "--insecure"]),
        ("192.0.2.1:0", ["192.0.2.1", "--insecure"]),
        ("no.such.host.invalid:0", ["no.such.host.invalid", "--insecure"]),
    ],
)
def test_an_address_that_will_not_do(tmp_path: Path, address: str, texts: list[str]) -> None:
    refused(serve(tmp_path, "--listen", address, here=True), *texts)


@pytest.mark.service("openssl")
def test_beyond_this_machine_both_tokens_and_tls_are_needed(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue("server")
    tls = f'[tls]\ncert = "{cert}"\nkey = "{key}"\n'
    tokens = f'[[tokens]]\nname = "a"\nrole = "read"\nsha256 = "{"0" * 64}"\n'
    listen = ("--listen", "0.0.0.0:0")
    done = serve(tmp_path, *listen, here=True)
    refused(done, "0.0.0.0", "this server has no tokens ('kqs token new') and TLS (tls.cert);")
    refused(serve(tmp_path, *listen, config=tls, here=True), "0.0.0.0", "has no tokens")
    refused(serve(tmp_path, *listen, config=tokens, here=True), "0.0.0.0", "has no TLS (tls.cert);")


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    done = serve(tmp_path, "--insecure", "--listen", "192.0.2.1:0")
    refused(done, "192.0.2.1:0", "--listen")
    done = serve(tmp_path, "--insecure", "--listen", "no.such.host.invalid:0")
    refused(done, "no.such.host.invalid:0", "--listen")


@pytest.mark.service("openssl")
@pytest.mark.parametrize("setting", ["cert", "key", "client_ca"])
def test_a_certificate_that_cannot_be_used(tmp_path: Path, setting: str) -> None:
    cert, key = Authority(tmp_path).issue("server")
    (tmp_path / "text").write_text("text")
    for bad in ("missing", "text", "other.key" if setting == "key" else "."):
        Authority(tmp_path, "other")
        files = {"cert": str(cert), "key": str(key), setting: bad}
        config = "[tls]\n" + "".join(f'{name} = "{path}"\n' for name, path in files.items())
        refused(serve(tmp_path, config=config, here=True), f"tls.{setting}", bad)


def test_a_tokens_file_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "kqs-data" / "tokens.json"
    file.parent.mkdir()
    for text in ("", "{", '{"format":1}', '{"format":1,"tokens":[{"name":"a"}]}', "\xff"):
        file.write_text(text, "latin-1")
        refused(serve(tmp_path, here=True), str(file), "restore it")
    file.write_text('{"format":2,"keys":[]}')
    refused(serve(tmp_path, here=True), str(file), "newer KQS")
    file.unlink()
    file.mkdir()
    refused(serve(tmp_path, here=True), str(file), "cannot be read")


def test_a_data_directory_in_use(start: Start, tmp_path: Path) -> None:
    server = start()
    refused(serve(tmp_path, "--data", str(server.data)), str(server.data), "in use")
    with server.client() as client:
        assert client.ping() == "pong"


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_place_of_the_data_directory(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    refused(serve(tmp_path, "--data", where), str(tmp_path / where))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("part", ["lock", "manifest", "journal", "bulk", "log", "kqs.sock"])
def test_something_else_in_the_data_directory(tmp_path: Path, part: str) -> None:
    """A directory where a file should be, or the other way round."""
    data = tmp_path / "data"
    data.mkdir()
    if part in ("journal", "bulk", "log"):
        (data / part).write_text("mine")
    else:
        (data / part).mkdir()
    refused(serve(tmp_path, "--data", str(data)), str(data))


def test_a_damaged_journal_is_named_and_left_alone(start: Start, tmp_path: Path) -> None:
    server = start("[journal]\nsegment_size = 65536\n")
    server.client().insert_many([{"type": "x", "data": n} for n in range(10)])
    server.stop()
    manifest = server.data / "manifest"
    whole = manifest.read_bytes()
    before = {file.name: file.read_bytes() for file in (server.data / "journal").iterdir()}
    for harmed in (whole[:-3], whole[:20] + b"\xff" + whole[21:]):
        manifest.write_bytes(harmed)
        refused(serve(tmp_path, "--data", str(server.data)), "manifest", "nothing was changed")
        assert {file.name: file.read_bytes() for file in (server.data / "journal").iterdir()} == before
    manifest.write_bytes(whole)
    with start().client() as client:
        assert client.stats()["types"]["x"]["ready"] == 10


def test_a_failed_start_releases_the_directory(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        refused(serve(tmp_path, "--data", str(tmp_path / "data"), "--listen", address), "in use")
    with start().client() as client:
        assert client.ping() == "pong"


def test_unknown_options_and_commands(tmp_path: Path) -> None:
    done = kqs("serve", "--prot", "1", cwd=tmp_path)
    assert done.status == 2 and "--prot" in done.err
    done = kqs("insret", cwd=tmp_path)
    assert done.status == 2 and "insret" in done.err


def test_control_characters_in_a_message_are_harmless(tmp_path: Path) -> None:
    done = serve(tmp_path, config='[server]\nlisten = "\\u001b[31mred\\nline"\n')
    refused(done, "\\x1b[31mred")
