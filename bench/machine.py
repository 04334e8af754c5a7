"""The line that says what a figure was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time

from kqs.service.host import file_system


def describe(directory: str) -> str:
    """Processor, cores, kernel, Python, file system and how long it takes to make 4 KiB durable."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    median, high = sync_latency(directory)
    return (
        f"{_processor()}, {cores} cores, {platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, {file_system(directory)}, "
        f"fdatasync of 4 KiB {median * 1e6:.0f} us (p99 {high * 1e6:.0f} us)"
    )


def load() -> str:
    """How busy the machine was before we began: others on it make figures lower."""
    return f"load average before the run {os.getloadavg()[0]:.2f}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def sync_latency(directory: str, times: int = 300) -> tuple[float, float]:
    """Median and 99th percentile, seconds, of a 4 KiB write and its fdatasync in preallocated space."""
    block = os.urandom(4096)
    took = []
    with tempfile.NamedTemporaryFile(prefix="bench-sync-", dir=directory) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, times * len(block))
        sync = getattr(os, "fdatasync", os.fsync)
        for number in range(times):
            begun = time.perf_counter()
            os.pwrite(file.fileno(), block, number * len(block))
            sync(file.fileno())
            took.append(time.perf_counter() - begun)
    return statistics.median(took), statistics.quantiles(took, n=100)[-1]
