"""The servers of tests/service."""

from tests.service.conftest import shared, start

__all__ = ["shared", "start"]
