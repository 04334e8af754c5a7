"""A changed config is taken over while the server runs; a bad one is refused and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ..errors import ConfigError
from ..runners.code import stamp
from ..settings.config import Config
from ..settings.handlers import Handlers

#: Tables of the config that can change while the server runs.
TABLES = ("scheduler", "fair", "defaults", "classes", "handlers", "pools", "http", "cron")
#: How often ``--watch`` looks, seconds.
LOOK = 0.5


class Sources(NamedTuple):
    """Where settings come from. Both may block, and both raise ConfigError.

    Attributes:
        read: reads and checks the config, as at the start.
        plan: checks its handlers and plans the workers.
        files: the config file, when there is one.
    """

    read: Callable[[], Config]
    plan: Callable[[Config], Handlers]
    files: list[str]


class Reloads:
    """Takes over changed settings, one change after the other.

    Args:
        config: what the server runs with.
        sources: where the new ones come from.
        take: makes the server run with another config and its handlers; raises ConfigError when it cannot.
        log: where to say what came of it.
    """

    def __init__(
        self, config: Config, sources: Sources, take: Callable[[Config, Handlers], None], log: Any
    ) -> None:
        self._config = config
        self._sources = sources
        self._take = take
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._asked = False

    def ask(self) -> asyncio.Task[None]:
        """Reload, once more when a reload is under way: it may have read what is old by now.

        Returns:
            What ends when that is done.
        """
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return self._task

    async def _run(self) -> None:
        while self._asked:
            self._asked = False
            await self._reload()

    async def _reload(self) -> None:
        """Read everything again and take it over, or say why not and leave all as it is."""
        try:
            new = await asyncio.to_thread(self._sources.read)
            fixed = differing(self._config, new)
            taken = {name: getattr(new, name) for name in TABLES}
            config = msgspec.structs.replace(self._config, **taken)
            handlers = await asyncio.to_thread(self._sources.plan, config)
            self._take(config, handlers)
        except ConfigError as error:
            self._log.error("config refused; nothing was changed", reason=str(error))
            return
        except Exception:
            self._log.exception("bug", task="reload")
            return
        self._config = config
        if fixed:
            self._log.warning("settings changed that need a restart of the server", settings=fixed)
        self._log.info("config reloaded")

    async def watch(self, roots: Callable[[], list[str]]) -> None:
        """Reload when the config or the code of a handler changes, until cancelled.

        Args:
            roots: the files and folders of the handlers' code, as they are now.
        """
        seen: dict[str, str] = {}
        while True:
            now = await asyncio.to_thread(_stamps, [*self._sources.files, *roots()])
            changed = [root for root in now if seen.get(root, now[root]) != now[root]]
            seen = now
            if changed:
                self._log.info("changed", files=changed)
                await self.ask()
            await asyncio.sleep(LOOK)

    def close(self) -> None:
        """Take nothing over any more."""
        if self._task is not None:
            self._task.cancel()


def _stamps(roots: list[str]) -> dict[str, str]:
    return {root: stamp([root]) for root in roots}


def differing(old: Config, new: Config) -> list[str]:
    """The settings that differ and cannot change while the server runs, as they are named in the file."""
    names = []
    for table in Config.__struct_fields__:
        was, is_ = getattr(old, table), getattr(new, table)
        if table in TABLES or was == is_:
            continue
        if isinstance(was, msgspec.Struct):
            fields = was.__struct_fields__
            names += [f"{table}.{name}" for name in fields if getattr(was, name) != getattr(is_, name)]
        else:
            names.append(table)
    return names
