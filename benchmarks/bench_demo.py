"""How long the embedded model takes: to load, and to describe a picture with the process's start included.

    python benchmarks/bench_demo.py

Medians of `--rounds`; say so when the load average was not near zero.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "examples" / "shapes.png"
LOAD = """
import time
from llava_native import Llava
began = time.perf_counter()
with Llava.demo():
    print(time.perf_counter() - began)
"""


def load_seconds() -> float:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    return float(done.stdout)


def describe_seconds() -> float:
    command = [str(Path(sys.executable).with_name("llava-native")), "describe", str(PICTURE)]
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs, medians of {rounds}")
    for name, measure, goal in (("load", load_seconds, 0.15), ("describe", describe_seconds, 1.5)):
        measure()  # the files are in the page cache from here on
        seconds = statistics.median(measure() for _ in range(rounds))
        print(f"{name:9s} {seconds * 1e3:7.0f} ms  (goal {goal * 1e3:.0f})")


if __name__ == "__main__":
    main()
