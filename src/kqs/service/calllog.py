"""The call log: slow, failed and sampled calls as JSON lines. Never a payload, never a credential."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from itertools import pairwise
from typing import BinaryIO

import msgspec

from ..settings.config import CallLogConfig


class CallLog:
    """Writes ``DATA/log/calls.jsonl``, rotated by size.

    Args:
        directory: the data directory; its ``log`` is there.
        config: what is logged and how much is kept.
        random: draws from [0, 1), for sampling.
    """

    def __init__(self, directory: str, config: CallLogConfig, random: Callable[[], float]) -> None:
        self._config = config
        self._random = random
        self._path = f"{directory}/log/calls.jsonl"
        self._file: BinaryIO | None = None
        self._size = 0
        #: Lines that could not be written: a full disk stops the log, not the server.
        self.lost = 0

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
        self._write(msgspec.json.encode(entry) + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            if self._file is not None and self._size + len(line) > self._config.max_bytes:
                self._rotate()
            if self._file is None:
                self._open()
            if self._file is not None:
                self._file.write(line)
                self._size += len(line)
        except OSError:
            self.lost += 1
            self.close()  # and try again with the next line

    def _open(self) -> None:
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - kept open
        self._size = os.fstat(self._file.fileno()).st_size

    def _rotate(self) -> None:
        """``calls.jsonl`` becomes ``calls.jsonl.1``, that becomes ``.2``, and the oldest goes."""
        self.close()
        names = [self._path, *(f"{self._path}.{number}" for number in range(1, self._config.keep + 1))]
        if len(names) == 1:
            os.unlink(self._path)
        for newer, older in reversed(list(pairwise(names))):
            if os.path.exists(newer):
                os.replace(newer, older)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass
