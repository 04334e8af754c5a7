"""Pauses of job types, as the journal holds them."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Pause(Struct):
    """What a pause entry holds."""

    type: str
    paused: bool


decode_pause = msgspec.json.Decoder(Pause).decode
