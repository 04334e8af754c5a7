"""The call log: slow, failed and sampled calls as JSON lines. Never a payload, never a credential."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from logging.handlers import RotatingFileHandler

import msgspec

from .config import CallLogConfig


class CallLog:
    """Writes ``DATA/log/calls.jsonl``, rotated by size.

    Args:
        directory: the data directory.
        config: what is logged and how much is kept.
        random: draws from [0, 1), for sampling.
    """

    def __init__(self, directory: str, config: CallLogConfig, random: Callable[[], float]) -> None:
        self._config = config
        self._random = random
        os.makedirs(f"{directory}/log", mode=0o700, exist_ok=True)
        self._file = RotatingFileHandler(
            f"{directory}/log/calls.jsonl",
            maxBytes=config.max_bytes,
            backupCount=config.keep,
            encoding="utf-8",
            delay=True,
        )

    def note(
        self,
        call: str,
        connection: str,
        latency: float,
        duration: float,
        size: int,
        outcome: str = "ok",
        times: int = 1,
    ) -> None:
        """One answered call, or several like it; most are not written.

        Args:
            call: its name.
            connection: the peer.
            latency, duration: seconds, as in the histograms.
            size: bytes of the request.
            outcome: ``ok`` or the error's code.
            times: how many calls this stands for.
        """
        config = self._config
        if outcome != "ok":
            why = "failed" if config.failed else ""
        elif latency + duration >= config.slow:
            why = "slow"
        else:
            why = "sampled" if config.sample > 0 and self._random() < config.sample * times else ""
        if not why:
            return
        entry = {
            "at": dt.datetime.now(dt.UTC),
            "call": call[:200],
            "connection": connection,
            "latency": round(latency, 6),
            "duration": round(duration, 6),
            "size": size,
            "outcome": outcome,
            "why": why,
        }
        if times > 1:
            entry["calls"] = times
        self._write(msgspec.json.encode(entry).decode())

    def _write(self, line: str) -> None:
        # logging's own record machinery would format, lock and look up handlers for every line.
        handler = self._file
        if handler.stream is None:
            handler.stream = handler._open()
        if handler.maxBytes and handler.stream.tell() + len(line) >= handler.maxBytes:
            handler.doRollover()
        handler.stream.write(line + "\n")
        handler.stream.flush()

    def close(self) -> None:
        self._file.close()
