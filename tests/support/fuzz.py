"""Fuzzing in child processes: numbered cases, so that one that ends its process, or hangs, is named.

``python -m support.fuzz KIND FIRST COUNT FOLDER`` in ``tests/`` runs cases in this process.
"""

from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from . import fuzz_cases

LIMIT_S = 10  # longest that one case may take
TESTS = Path(__file__).parents[1]


def failures(kind: str, first: int, count: int, folder: Path) -> Iterator[str]:
    """Run cases in child processes; yield a line for each that ended its process or took too long.

    Parameters
    ----------
    kind : str
        One of `fuzz_cases.KINDS`.
    first, count : int
        Numbers of the cases: the same number is the same case.
    folder : Path
        For their files.
    """
    progress, end = folder / "progress", first + count
    while first < end:
        progress.write_text(str(first))
        done = subprocess.run(
            [sys.executable, "-m", "support.fuzz", kind, str(first), str(end - first), str(folder)],
            cwd=TESTS, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            return
        number = int(progress.read_text())
        yield f"{kind} {number}: exit {done.returncode}: {done.stderr[-1500:]}"
        first = number + 1


def main() -> None:
    """Be the child process."""
    kind, first, count, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    warnings.simplefilter("ignore")  # Pillow's, about metadata
    run = fuzz_cases.KINDS[kind](folder)
    descriptor = os.open(folder / "progress", os.O_WRONLY)
    for number in range(first, first + count):
        os.pwrite(descriptor, f"{number:<12}".encode(), 0)
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        run(number)
    faulthandler.cancel_dump_traceback_later()
    fuzz_cases.check_nothing_left()


if __name__ == "__main__":
    main()
