"""How long streams block an event loop: its longest callback, and how late a timer is meanwhile.

    python benchmarks/bench_loop.py

The embedded model answers on one thread, then on all cores, the loop's too. Without a stream the same timer
shows what the machine itself does. A timer is late, too, where Linux lets a thread that wakes up wait for
another one's time slice. So there is a third row, where the system allows it: the loop's thread is of a
real-time class and waits for nobody; it is late by what this process does to it only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from llava_native import Llava

PICTURES = sorted(
    path
    for path in (Path(__file__).resolve().parent.parent / "examples").iterdir()
    if path.suffix in {".png", ".jpg", ".webp"}
)
TICK_S = 0.001


async def lateness(busy: asyncio.Future) -> list[float]:
    """Sleep again and again until `busy` is done; return by how many seconds each sleep was too long."""
    late = []
    while not busy.done():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append(time.perf_counter() - began - TICK_S)
    return late


@contextlib.contextmanager
def timed_callbacks() -> Iterator[list[float]]:
    """Give the seconds that every callback of an event loop takes from here on."""
    run = asyncio.Handle._run
    seconds: list[float] = []

    def timed(handle: asyncio.Handle) -> None:
        began = time.perf_counter()
        run(handle)
        seconds.append(time.perf_counter() - began)

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


async def ask(llava: Llava, rounds: int) -> int:
    """Stream a description of every picture, all at once, `rounds` times; return the number of tokens."""

    async def one(path: Path) -> int:
        async with llava.stream("Describe the image.", image=path, temperature=0) as stream:
            return len([token async for token in stream])

    total = 0
    for _ in range(rounds):
        total += sum(await asyncio.gather(*(one(path) for path in PICTURES)))
    return total


async def row(name: str, work: Coroutine[Any, Any, Any]) -> None:
    """Print how late a timer is until `work` is done, and the longest callback meanwhile."""
    with timed_callbacks() as seconds:
        late = sorted(await lateness(asyncio.ensure_future(work)))
    shown = ", ".join(f"{share:.1%} {late[int(share * (len(late) - 1))] * 1e3:.2f}" for share in (0.5, 0.99))
    print(
        f"{name:24s} late by ms: {shown}, longest {late[-1] * 1e3:.2f} ({len(late)} timers); "
        f"longest callback {max(seconds) * 1e3:.2f} of {len(seconds)} (goal 5)"
    )


async def measure(llava: Llava, rounds: int) -> None:
    """Print the rows."""
    await ask(llava, 1)
    print(f"{llava.context.n_threads} of {os.cpu_count()} CPUs")
    await row("no streams", asyncio.sleep(3))
    await row("streams", ask(llava, rounds))
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, PermissionError) as exc:
        print(f"no row for a loop that waits for no other thread: {exc}")
    else:
        await row("streams, real-time loop", ask(llava, rounds))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    for n_threads in (1, None):
        with Llava.demo(n_threads=n_threads, embedding_cache=0) as llava:
            asyncio.run(measure(llava, rounds))


if __name__ == "__main__":
    main()
