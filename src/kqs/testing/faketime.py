"""A process with another wall clock, by libfaketime.

Only the library is used. Its command would stay between us and the process, be what is killed, and refuse to
start whenever the kernel gives it the number of a process that was killed before: that one's semaphore is
still there.
"""

import glob

#: Where Debian's package has the library.
LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"


def faketime(**settings: str) -> dict[str, str]:
    """The environment of a process whose wall clock is set by libfaketime.

    Args:
        settings: the library's own settings, by name without ``FAKETIME_``, in any case. ``clock`` is the
            time itself as it writes it: ``-3650d``, ``@2019-05-05 05:05:05``.

    Raises:
        RuntimeError: the library is not where Debian has it.
    """
    found = glob.glob(LIBRARY)
    if not found:
        raise RuntimeError(f"no libfaketime at {LIBRARY}: install the package faketime")
    clock = {"FAKETIME": settings.pop("clock")} if "clock" in settings else {}
    return {"LD_PRELOAD": found[0], **clock} | {f"FAKETIME_{k.upper()}": v for k, v in settings.items()}
