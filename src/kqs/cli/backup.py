"""``kqs backup``."""

from __future__ import annotations

import click
import msgspec

from .journal import data_option
from .text import as_json_option, print_json


@click.command()
@click.argument("dir")
@data_option
@as_json_option
def backup(dir: str, data: str, as_json: bool) -> int:
    """Copy a data directory to the new directory DIR, also while a server runs on it.

    Every job accepted and every outcome settled before the command was given is in the copy. All of it is
    verified and synced. To restore, start a server on it: kqs serve --data DIR.

    Exits 1 when payloads of the bulk store are missing from the original, and names their jobs.
    """
    from ..errors import DataDirError
    from ..service.backup import back_up

    try:
        made = back_up(data, dir)
    except OSError as error:
        raise DataDirError(f"{error.filename or dir}: {error.strerror}; there is no backup") from None
    if as_json:
        print_json(msgspec.to_builtins(made))
    else:
        journal = made.journal
        click.echo(
            f"backup of journal {journal.journal} up to sequence {journal.last_sequence}: "
            f"{journal.segments} segments, {journal.bytes} bytes, {made.payloads} bulk payloads"
        )
        if made.elsewhere:
            click.echo(f"payloads of {len(made.elsewhere)} jobs are in another store, and are not copied")
    if made.missing:
        numbers = ", ".join(map(str, made.missing))
        click.echo(f"kqs: the bulk store does not have the payloads of jobs {numbers}", err=True)
    return 1 if made.missing else 0
