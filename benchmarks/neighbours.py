"""Live in one process with llama_cpp, torch and NumPy: right answers, whoever was imported first.

    pip install llama-cpp-python==0.3.36 torch==2.13.0 numpy
    python benchmarks/neighbours.py

Every order of imports runs in a process of its own, first one after the other, then from two threads at once.
Prints how long a description took alone and beside the others.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "examples" / "shapes.png"
NAMES = ("llava_native", "llama_cpp", "torch", "numpy")
TEXT = "Describe the"


class Neighbours:
    """A model of each library, and what it must say."""

    def __init__(self) -> None:
        import llama_cpp
        import numpy as np
        import torch

        from llava_native import Llava
        from llava_native.demo import demo_files

        self.llava = Llava.demo()
        self.other = llama_cpp.Llama(str(demo_files()[0]), n_ctx=256, verbose=False)
        self.matrix = np.random.default_rng(0).standard_normal((600, 600)).astype(np.float32)
        self.torch = torch
        self.expected = self.describe(), self.complete()

    def describe(self) -> str:
        """Answer with llava_native."""
        return self.llava.describe(PICTURE)

    def complete(self) -> str:
        """Answer with llama_cpp."""
        return str(self.other(TEXT, max_tokens=12, temperature=0)["choices"][0]["text"])

    def multiply(self) -> bool:
        """Tell whether torch and NumPy agree about a product."""
        product = self.torch.from_numpy(self.matrix) @ self.torch.from_numpy(self.matrix)
        return bool(abs(product.numpy() - self.matrix @ self.matrix).max() < 1e-2)

    def check(self) -> None:
        """End the process where an answer is not what it was."""
        found = self.describe(), self.complete()
        if found != self.expected or not self.multiply():
            raise SystemExit(f"a wrong answer: {found}, not {self.expected}")

    def seconds(self, rounds: int = 9) -> float:
        """Return the median time of a description."""
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            self.describe()
            times.append(time.perf_counter() - began)
        return statistics.median(times)


def child(order: list[str]) -> None:
    """Import in this order, and work, alone and from two threads."""
    for name in order:
        __import__(name)
    neighbours = Neighbours()
    for _ in range(3):
        neighbours.check()
    alone = neighbours.seconds()
    stop = threading.Event()
    failures: list[BaseException] = []

    def others() -> None:
        try:
            while not stop.is_set():
                assert neighbours.complete() == neighbours.expected[1]
                assert neighbours.multiply()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=others)
    thread.start()
    beside = neighbours.seconds()
    stop.set()
    thread.join()
    if failures:
        raise failures[0]
    neighbours.check()
    neighbours.llava.close()
    print(f"{' '.join(order):45s} describe {alone * 1e3:6.1f} ms alone, {beside * 1e3:6.1f} ms beside them")


def main() -> int:
    if len(sys.argv) > 1:
        child(sys.argv[1:])
        return 0
    failed = 0
    for order in itertools.permutations(NAMES, len(NAMES)):
        done = subprocess.run([sys.executable, __file__, *order], capture_output=True, text=True, check=False)
        failure = f"{' '.join(order)}: exit {done.returncode}\n{done.stderr[-2000:]}"
        print(failure if done.returncode else done.stdout.strip(), flush=True)
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
