"""How long streams block an event loop: the longest a timer is late while pictures are asked about.

    python benchmarks/bench_loop.py

The embedded model answers on one thread, so that a core is left for the loop. Without a stream the same timer
shows what the machine itself does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path

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


async def ask(llava: Llava, rounds: int) -> int:
    """Stream a description of every picture, all at once, `rounds` times; return the number of tokens."""

    async def one(path: Path) -> int:
        async with llava.stream("Describe the image.", image=path, temperature=0) as stream:
            return len([token async for token in stream])

    total = 0
    for _ in range(rounds):
        total += sum(await asyncio.gather(*(one(path) for path in PICTURES)))
    return total


async def measure(llava: Llava, rounds: int) -> None:
    """Print the lateness without streams and with them."""
    quiet = await lateness(asyncio.ensure_future(asyncio.sleep(3)))
    asked = asyncio.ensure_future(ask(llava, rounds))
    busy = await lateness(asked)
    print(f"{asked.result()} tokens of {rounds * len(PICTURES)} answers")
    for name, late in (("no streams", quiet), ("streams", busy)):
        late.sort()
        shown = ", ".join(
            f"{share:.1%} {late[int(share * (len(late) - 1))] * 1e3:.2f}" for share in (0.5, 0.99)
        )
        print(f"{name:10s} late by ms: {shown}, longest {late[-1] * 1e3:.2f}  (goal 5; {len(late)} timers)")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    with Llava.demo(n_threads=1, embedding_cache=0) as llava:
        asyncio.run(measure(llava, rounds))


if __name__ == "__main__":
    main()
