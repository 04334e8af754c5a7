"""The log of commands that run until they are told to stop."""

from __future__ import annotations

import os
import sys

import structlog

from ..runners.log import AS_JSON


def configure_log(as_json: bool) -> None:
    """Log to stderr: stdout belongs to the ``ping`` handler's line."""
    if as_json:
        os.environ[AS_JSON] = "1"  # workers log the same way
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),  # one write a line: workers write there, too
    )
