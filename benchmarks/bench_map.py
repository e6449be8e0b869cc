"""`Llava.map` over many pictures against the plain loop: time per picture, whether it grows, and memory.

    python benchmarks/bench_map.py --pictures 2000

The embedded model describes JPEG files of 640 pixels, each one once. Prints a line every tenth of the way.
Memory is looked at after every picture; it goes up and down with those on their way, so that growth is the
slope of the line through all these numbers after the first tenth.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

from llava_native import Llava

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write the examples, each time moved by another offset."""
    sources = [Image.open(p).convert("RGB") for p in sorted(EXAMPLES.glob("*.png"))]
    sources = [s.resize((640, 640 * s.height // s.width)) for s in sources]
    paths = []
    for i, source in zip(range(count), itertools.cycle(sources), strict=False):
        paths.append(folder / f"{i}.jpg")
        ImageChops.offset(source, i // 3, 0).save(paths[-1], quality=85)
    return paths


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, answers: Iterator[object], count: int) -> float:
    """Take all answers; print time and memory on the way, and return the median seconds of a picture."""
    part = max(1, count // 10)
    seconds, sizes = [], []
    began = time.perf_counter()
    for n, _ in enumerate(answers, 1):
        sizes.append(resident())
        if n % part == 0:
            now = time.perf_counter()
            seconds.append((now - began) / part)
            began = now
            print(
                f"{name}: {n:5d} pictures, {seconds[-1] * 1e3:6.1f} ms each, "
                f"{min(sizes[-part:]) >> 10} to {max(sizes[-part:]) >> 10} KiB"
            )
    grown = statistics.linear_regression(range(part, count), sizes[part:]).slope
    print(f"{name}: median {statistics.median(seconds) * 1e3:.1f} ms, {grown:.0f} bytes more a picture")
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    args = parser.parse_args()
    print(f"load per core before: {os.getloadavg()[0] / (os.cpu_count() or 1):.2f}")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), args.pictures)
        some = paths[: max(10, args.pictures // 5)]
        with Llava.demo() as llava:
            loop = measure("loop", (llava.describe(path) for path in some), len(some))
        with Llava.demo() as llava:
            # the context's cells are memory from their first use on, and four long answers at once are rare
            llava.generate("a " * 1900, max_tokens=1)
            mapped = measure("map", llava.map(paths, temperature=0), len(paths))
    print(f"map takes {mapped / loop:.2f} of the loop's time")


if __name__ == "__main__":
    main()
