"""A network of its own for a process, that can be cut so that nobody is told."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from .machine import Unavailable

#: No machine of the network has it: what is sent there is lost.
_NOBODY = "02:00:00:00:00:01"


class Network:
    """A network namespace, joined to this one by a cable.

    Attributes:
        here: the address of this end.
        under: a command line that runs another one at the far end.

    Raises:
        Unavailable: it can't be made here.
    """

    def __init__(self) -> None:
        tag = f"{os.getpid() % 100_000}"
        self._name, self._near, self._far = f"kqs{tag}", f"kqsn{tag}", f"kqsf{tag}"
        subnet = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.here, self._there = f"{subnet}.1", f"{subnet}.2"
        self.under = ("ip", "netns", "exec", self._name)
        try:
            _ip("netns", "add", self._name)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
            _ip("addr", "add", f"{self.here}/24", "dev", self._near)
            _ip("link", "set", self._near, "up")
            self._ip_there("addr", "add", f"{self._there}/24", "dev", self._far)
            self._ip_there("link", "set", self._far, "up")
            self._ip_there("link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.discard()
            reason = getattr(error, "stderr", None) or error
            raise Unavailable(f"needs network namespaces (root, ip): {reason}") from None

    def _ip_there(self, *argv: str) -> None:
        _ip("-n", self._name, *argv)

    def cut(self) -> None:
        """From now on packets are lost, both ways."""
        self._ip_there("neigh", "replace", self.here, "lladdr", _NOBODY, "dev", self._far, "nud", "permanent")
        _ip("neigh", "replace", self._there, "lladdr", _NOBODY, "dev", self._near, "nud", "permanent")

    def heal(self) -> None:
        self._ip_there("neigh", "del", self.here, "dev", self._far)
        _ip("neigh", "del", self._there, "dev", self._near)

    def discard(self) -> None:
        with suppress(OSError, subprocess.CalledProcessError):
            _ip("netns", "del", self._name)


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True, text=True)
