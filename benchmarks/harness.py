"""Run one program at a time and say how quiet the machine was while it ran.

A run's *foreign* load is the CPU time that others took, as a share of the machine: what the kernel
counted as busy, less what the program itself (with its children) used. A noisy run is repeated.

On Linux with ``kernel.sched_autogroup_enabled=1``, nice values rank processes within one session
only: a busy job of another session takes its full share whatever its nice value. Stop it first.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

QUIET = 0.05  # foreign load that a run may have


@dataclasses.dataclass
class Run:
    """What one child process did."""

    stdout: str
    stderr: str
    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak_rss: int  # bytes
    foreign: float | None  # share of the machine that others used; None where unknown


class BenchError(RuntimeError):
    """A program of the benchmark failed; the message ends with its last lines."""


def _busy_seconds() -> float | None:
    """Return the CPU seconds used on this machine since boot, steal included, or None."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _wait(process: subprocess.Popen[str], command: Sequence[str]) -> tuple[float, int]:
    """Wait for the child; return its CPU seconds and its own peak RSS in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    if process.returncode != 0:
        raise BenchError(f"{Path(command[0]).name} ended with {process.returncode}: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def run(command: Sequence[str], *, env: dict[str, str] | None = None) -> Run:
    """Run a program once.

    Raises
    ------
    BenchError
        When it fails.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        busy, start = _busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, text=True
        )
        try:
            cpu, peak = _wait(process, command)
        except BenchError as error:
            err.seek(0)
            raise BenchError(f"{error}\n{err.read()[-2000:]}") from None
        wall, after = time.perf_counter() - start, _busy_seconds()
        foreign = None
        if busy is not None and after is not None:
            foreign = max(0.0, (after - busy - cpu) / (wall * (os.cpu_count() or 1)))
        out.seek(0)
        err.seek(0)
        return Run(out.read(), err.read(), wall, cpu, peak, foreign)


def run_quiet(command: Sequence[str], *, tries: int = 3, env: dict[str, str] | None = None) -> Run:
    """Run a program up to `tries` times until nothing else was busy; return the quietest run."""
    best: Run | None = None
    for _ in range(tries):
        if tries > 1:
            wait_until_idle(30)
        this = run(command, env=env)
        if best is None or (this.foreign or 0) < (best.foreign or 0):
            best = this
        if (best.foreign or 0) <= QUIET:
            break
    assert best is not None
    return best


def idle_now(seconds: float = 1.0) -> bool:
    """Tell whether the machine is idle, from what it does while this process sleeps."""
    before = _busy_seconds()
    if before is None:
        return True
    time.sleep(seconds)
    used = (_busy_seconds() or before) - before
    return used / (seconds * (os.cpu_count() or 1)) <= QUIET


def wait_until_idle(limit: float) -> bool:
    """Wait up to `limit` seconds for an idle machine; return whether it became one."""
    end = time.monotonic() + limit
    while not idle_now():
        if time.monotonic() > end:
            return False
    return True


def load_per_core() -> float:
    """Return the one-minute load average divided by the number of CPUs."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0


def check_load(limit: float, patience: float) -> float:
    """Wait up to `patience` seconds until the load per core is at most `limit`; return it.

    The caller decides what a load above the limit means.
    """
    end = time.monotonic() + patience
    while (load := load_per_core()) > limit and time.monotonic() < end:
        print(f"load {load:.2f} per core > {limit}: waiting", file=sys.stderr)
        time.sleep(min(15.0, max(0.0, end - time.monotonic())))
    return load


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Return ``min to max`` in three significant digits."""
    return f"{min(values):.3g} to {max(values):.3g}"
