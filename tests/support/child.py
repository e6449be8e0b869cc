"""Run Python in a child process, for what could end the process or must not print."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).parents[1]


def outcome(code: str, *args: object, strict: bool = True, timeout: float = 300) -> tuple[int, str, str]:
    """Run `code` with ``sys.argv[1:]`` of `args`; return its (exit status, stdout, stderr).

    A process that a signal ended has a negative status, and its stack in stderr. Warnings are errors where
    `strict`, else as in an ordinary program.
    """
    # from Python 3.12 on os.fork() warns of threads, and the library has some
    flags = ["-X", "faulthandler", "-W", "error" if strict else "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()
