"""Ask the embedded model tens of thousands of times, and stop half of the requests at a random stage.

Then look for what is left behind: memory, file descriptors, threads, wrong answers.

    python benchmarks/soak.py --requests 20000 --out soak.json

Needs about 40 ms of two cores a request. Exits with 1 where something was left or an answer changed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw

from llava_native import Llava
from llava_native._native import live_counts
from llava_native.errors import CancelledError

KNOWN = 40  # pictures whose answers are compared with the first one
QUESTIONS = (
    "Describe this image.",
    "How many objects are there?",
    "Is there a circle?",
    "What colour is it?",
)
LIMIT_BYTES = 100  # of memory a request
TIE = 0.02  # two tokens whose log-probabilities differ by less: rounding decides, and cells decide rounding
_libc = ctypes.CDLL(None)


def picture(number: int) -> Image.Image:
    """Draw a picture that no other number gives."""
    draw = random.Random(number)
    image = Image.new("RGB", (draw.randint(40, 200), draw.randint(40, 200)), _colour(draw))
    for _ in range(3):
        x, y = draw.randrange(image.width), draw.randrange(image.height)
        ImageDraw.Draw(image).ellipse((x, y, x + 40, y + 40), fill=_colour(draw))
    return image


def _colour(draw: random.Random) -> tuple[int, int, int]:
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def rss() -> int:
    """Return this process's resident memory in bytes, without what its allocator keeps for later."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_open() -> int:
    """Return how many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Soak:
    """Requests, and what came of them."""

    def __init__(self, llava: Llava) -> None:
        self.llava = llava
        self.first: dict[tuple[int, int], tuple[str, float]] = {}  # an answer, and its closest decision
        self.counts = {"answered": 0, "stopped": 0, "wrong": 0, "ties": 0}
        self.changed: list[tuple[int, str, str, str]] = []  # picture, question, first answer, another one

    def request(self, number: int) -> None:
        """Ask about a known or a new picture, and let it end or stop it."""
        draw = random.Random(number * 7919)
        which = draw.randrange(KNOWN) if draw.random() < 0.5 else 10**6 + number
        question = draw.randrange(len(QUESTIONS))
        stop = draw.choice(("never", "timeout", "tokens"))
        timeout = draw.uniform(0, 0.1) if stop == "timeout" else None
        options = {"temperature": 0, "max_tokens": 48, "timeout": timeout, "logprobs": 2}
        closest = math.inf
        try:
            with self.llava.stream(QUESTIONS[question], image=picture(which), **options) as stream:
                for n, token in enumerate(stream):
                    (_, best), (_, second) = token.top_logprobs
                    closest = min(closest, best - second)
                    if stop == "tokens" and n == draw.randrange(6):
                        self.counts["stopped"] += 1
                        return
        except CancelledError:
            self.counts["stopped"] += 1
            return
        self.counts["answered"] += 1
        if which >= KNOWN:
            return
        first, gap = self.first.setdefault((which, question), (stream.text, closest))
        if first != stream.text:
            self.counts["ties" if min(gap, closest) < TIE else "wrong"] += 1
            self.changed.append((which, QUESTIONS[question], first, stream.text))


def slope(points: list[tuple[int, int]]) -> float:
    """Return the least-squares slope of (requests, bytes)."""
    n = len(points)
    mx, my = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)


def run(requests: int, threads: int, step: int = 250) -> dict[str, object]:
    """Run it; returns the figures."""
    points: list[tuple[int, int]] = []
    began = time.monotonic()
    with Llava.demo(embedding_cache=4 << 20) as llava, ThreadPoolExecutor(threads) as pool:
        soak = Soak(llava)
        list(pool.map(soak.request, range(step)))
        before = n_open(), threading.active_count()
        for start in range(step, requests, step):
            list(pool.map(soak.request, range(start, min(requests, start + step))))
            gc.collect()
            points.append((start + step, rss()))
            print(f"{start + step} {points[-1][1] >> 20} MiB {soak.counts}", flush=True)
        after = n_open(), threading.active_count()
    gc.collect()
    return {
        "requests": requests, "seconds": round(time.monotonic() - began), **soak.counts,
        "bytes_a_request": round(slope(points[len(points) // 5 :]), 1),
        "descriptors_and_threads": [before, after], "alive": sum(live_counts().values()),
        "changed": soak.changed,
    }  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=Path, help="also write the figures here")
    args = parser.parse_args()
    found = run(args.requests, args.threads)
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found))
    before, after = found["descriptors_and_threads"]  # type: ignore[misc]
    clean = before == after and not found["alive"] and not found["wrong"]
    return 0 if clean and float(found["bytes_a_request"]) < LIMIT_BYTES else 1  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
