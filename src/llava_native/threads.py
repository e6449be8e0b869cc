"""CPU threads: how many, when nobody said, and how those that compute behave towards others."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

__all__ = ["default_n_threads", "yield_to_others"]


@functools.cache
def default_n_threads() -> int:
    """Return the physical cores that this process may use, at least 1.

    Two hardware threads of one core share its multipliers, so counting both slows matrix work down. The
    process's CPU affinity and a container's CPU quota are respected.
    """
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # macOS: no affinity, and no two hardware threads a core on its own chips
        return max(1, os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    """Name the physical core of a CPU: the list of the hardware threads on it."""
    try:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        return Path(path).read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """CPUs that the container's quota is worth, rounded up; a large number where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return 2**16


def yield_to_others() -> None:
    """Tell Linux that this thread computes, and those that it starts: they take no core from another thread.

    Else one that wakes up may interrupt an event loop's for 3 ms. Their share of the cores stays the same.
    """
    with contextlib.suppress(AttributeError, OSError):  # not on other systems, and where it is forbidden
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
