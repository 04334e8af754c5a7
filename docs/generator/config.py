"""docs/reference/config.md, from the types of src/kqs/settings/config.py."""

from __future__ import annotations

from typing import Any, get_args

from msgspec import inspect

from kqs.core.calls import ROLES
from kqs.core.cron import Missed
from kqs.core.job import PRIOS, JobSettings
from kqs.settings.config import ClassConfig, Config, DefaultsConfig

from .docstrings import attributes, markdown, sentence, summary

HEAD = """\
<!-- Made by docs/generate.py from src/kqs/settings/config.py. Do not edit. -->
# Configuration

`kqs serve --config kqs.toml` reads a [TOML](https://toml.io) file. Without a file every setting has its
default: the server keeps its data in `./kqs-data`, listens on this machine only, and handles the type `ping`.

- An unknown key, a value of the wrong type or out of range, or settings that contradict each other stop the
  start with one line that names the setting, and exit status 2. `kqs config check FILE` checks the same,
  handlers included.
- Options of `kqs serve` and their environment variables ([command line](cli.md)) go before the file.
- A setting of a job is the one in its insert, else its handler's (or its `@app.job`'s), else its class's,
  else the one in `[defaults]`. Jobs keep the settings they were inserted with.
- The file is read again on SIGHUP and, with `--watch`, when it changes. `[scheduler]`, `[fair]`,
  `[defaults]`, `[classes]`, `[handlers]`, `[pools]`, `[http]` and `[cron]` are taken over, and on SIGHUP the
  files that `[tls]` names are read again; the rest needs a restart, and the log names what changed there. See
  [how a change goes](../howto/handlers.md#change-handlers-while-the-server-runs).
- Times are seconds, sizes are bytes.

"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    root = inspect.type_info(Config)
    assert isinstance(root, inspect.StructType)
    for field in root.fields:
        table, name = _table(field.type, field.encode_name)
        parts.append(_section(table, name))
    parts.append(_defaults(root))
    return "".join(parts)


def _table(kind: inspect.Type, name: str) -> tuple[inspect.StructType, str]:
    """The struct behind a setting of the whole file, and its TOML heading."""
    if isinstance(kind, inspect.DictType):
        kind, heading = kind.value_type, f"[{name}.{_KEYS[name]}]"
    elif isinstance(kind, inspect.ListType):
        kind, heading = kind.item_type, f"[[{name}]]"
    else:
        heading = f"[{name}]"
    assert isinstance(kind, inspect.StructType), name
    return kind, heading


#: What the key of a table of tables stands for.
_KEYS = {"classes": "NAME", "cron": "NAME", "fair": "KEY", "handlers": "TYPE", "pools": "NAME"}


def _section(table: inspect.StructType, heading: str, level: str = "##") -> str:
    lines = [f"{level} `{heading}`\n", f"{markdown(summary(table.cls))}\n"]
    lines += ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    sentences = attributes(table.cls)
    nested = []
    for field in table.fields:
        name = field.encode_name
        if name not in sentences:
            raise ValueError(f"{table.cls.__name__}.{name} has no sentence in its class's docstring")
        meaning = markdown(sentence(sentences[name]))
        lines.append(f"| `{name}` | {value(field.type)} | {_default(field, table.cls)} | {meaning} |")
        kind = _plain(field.type)
        if isinstance(kind, inspect.StructType) and field.default is not inspect.NODEFAULT:
            nested.append((kind, f"{heading[:-1]}.{name}]"))
    text = "\n".join(lines) + "\n\n"
    return text + "".join(_section(kind, inner, level + "#") for kind, inner in nested)


def _default(field: inspect.Field, table: type) -> str:
    if issubclass(table, JobSettings) and field.encode_name in DefaultsConfig.__struct_fields__:
        return "as [`[defaults]`](#defaults)" if table is ClassConfig else "as its class, else the defaults"
    if field.default_factory in (list, dict):
        return f"`{_toml(field.default_factory())}`"
    if field.required:
        return "required"
    if field.default in (inspect.NODEFAULT, None) or isinstance(_plain(field.type), inspect.StructType):
        return ""
    return f"`{_toml(field.default)}`"


def _plain(kind: inspect.Type) -> inspect.Type:
    """The type itself, without "or not given" and annotations."""
    if isinstance(kind, inspect.Metadata):
        return _plain(kind.type)
    if isinstance(kind, inspect.UnionType):
        (kind,) = (part for part in kind.types if not isinstance(part, inspect.UnsetType))
        return _plain(kind)
    return kind


def value(kind: inspect.Type) -> str:
    """What may stand behind a key, in words.

    Raises:
        TypeError: a type this page has no words for yet.
    """
    kind = _plain(kind)
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(f"`{_toml(name)}`" for name in sorted(kind.values, key=_order))
    if isinstance(kind, inspect.BoolType):
        return "`true` or `false`"
    if isinstance(kind, inspect.IntType):
        return "integer" + _range(kind)
    if isinstance(kind, inspect.FloatType):
        return "number" + _range(kind)
    if isinstance(kind, inspect.StrType):
        return f"text, `{kind.pattern}`" if kind.pattern else "text"
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        least = f", at least {kind.min_length}" if kind.min_length else ""
        return f"list of {value(kind.item_type)}{least}"
    if isinstance(kind, inspect.StructType):
        return "table"
    if isinstance(kind, inspect.AnyType):
        return "any value"
    if isinstance(kind, inspect.DictType):
        return f"table of {value(kind.value_type)}"
    raise TypeError(f"no words for {kind}")


def _order(name: Any) -> int:
    """Words in the order they are declared in, not that of the alphabet."""
    known = (*PRIOS, *ROLES, "exponential", "linear", "fixed", *get_args(Missed))
    return known.index(name) if name in known else len(known)


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = high = ""
    if kind.ge is not None:
        low = f"{_number(kind.ge)} or more"
    elif kind.gt is not None:
        low = f"above {_number(kind.gt)}"
    if kind.le is not None:
        high = f"at most {_number(kind.le)}"
    elif kind.lt is not None:
        high = f"below {_number(kind.lt)}"
    both = [part for part in (low, high) if part]
    return f", {', '.join(both)}" if both else ""


def _number(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else f"{number:g}"


def _toml(given: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(given, tuple):
        given = list(given)
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        return f'"{given}"'
    if given == {}:
        return "{}"
    if isinstance(given, float):
        return f"{given:g}" if given % 1 else f"{given:.1f}"
    return str(given)


def _defaults(root: inspect.StructType) -> str:
    """The whole file with every default: what no file at all means."""
    lines = [
        "## All defaults\n",
        "This file says what no file at all says:\n",
        "<!-- test: defaults -->",
        "```toml",
    ]
    for field in root.fields:
        if isinstance(field.type, inspect.StructType):
            lines += [*_lines(field.encode_name, field.type, field.default), ""]
    return "\n".join(lines).rstrip("\n") + "\n```\n"


def _lines(name: str, table: inspect.StructType, default: Any) -> list[str]:
    lines, inner = [f"[{name}]"], []
    for field in table.fields:
        given = getattr(default, field.name)
        if isinstance(field.type, inspect.StructType):
            inner += ["", *_lines(f"{name}.{field.encode_name}", field.type, given)]
        else:
            lines.append(f"{field.encode_name} = {_toml(given)}")
    return lines + inner
