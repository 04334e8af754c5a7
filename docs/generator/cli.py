"""docs/reference/cli.md, from the commands' own help."""

from __future__ import annotations

import inspect
import re

import click

from kqs.cli import main

HEAD = """\
<!-- Made by docs/generate.py from src/kqs/cli. Do not edit. -->
# Command line

`kqs COMMAND --help` says the same. Exit status: 0 done, 1 the server refused or could not be reached, 2 wrong
arguments, settings or data directory; the reason is one line on stderr.

DATA and ARG are JSON or a JavaScript literal: `{"a": 1}`, `{a:1}` and `'text'` will do. An option goes before
its environment variable. Commands that ask a server send the token in `KQS_TOKEN`, when there is one; for
`kqss://` they read the files in `KQS_CA`, `KQS_CERT` and `KQS_KEY` ([Tokens and TLS](../howto/tokens.md)).

"""


def page() -> str:
    """The whole page."""
    context = click.Context(main.cli, info_name="kqs")
    parts = [HEAD]
    for name in main.cli.list_commands(context):
        command = main.cli.get_command(context, name)
        assert command is not None, name
        parts += _sections(command, f"kqs {name}")
    return "".join(parts)


def _sections(command: click.Command, path: str) -> list[str]:
    """A section for the command, or one for each command of a group."""
    context = click.Context(command, info_name=path)
    if isinstance(command, click.Group):
        parts = []
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            parts += _sections(inner, f"{path} {name}")
        return parts
    return [_section(command, path)]


def _section(command: click.Command, path: str) -> str:
    words = [path]
    rows = []
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            rows.append(_row(parameter))
        else:
            name = (parameter.metavar or parameter.name or "").upper()
            words.append(name if parameter.required else f"[{name}]")
    if rows:
        words.insert(1, "[OPTIONS]")
    text = f"## `{path}`\n\n```text\n{' '.join(words)}\n```\n\n{_prose(command.help or '')}\n\n"
    if rows:
        text += "| option | environment | meaning |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
    return text


def _prose(help_text: str) -> str:
    """Help text as Markdown paragraphs, one line each."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(help_text))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _row(option: click.Option) -> str:
    name = "/".join(option.opts)
    kind = option.type
    if not option.is_flag:
        if isinstance(kind, click.Choice):
            name += " " + "|".join(str(choice) for choice in kind.choices)
        else:
            name += " " + (option.metavar or kind.name.upper().split()[0])
    meaning = (option.help or "").rstrip(".")
    if isinstance(kind, click.IntRange):
        meaning += f", {_range(kind)}"
    if option.show_default and option.default is not None:
        meaning += f" [{option.default}]"
    name = name.replace("|", "\\|")
    return f"| `{name}` | {f'`{option.envvar}`' if option.envvar else ''} | {meaning.strip()} |"


def _range(kind: click.IntRange) -> str:
    if kind.max is None:
        return f"{kind.min:,} or more"
    return f"{kind.min:,} to {kind.max:,}"
