"""Run Python in a child process, for what could end the process or must not print."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run_python(code: str, *args: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `code` with ``sys.argv[1:]`` of `args`; warnings are errors, and a crash shows its stack."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def outcome(code: str, *args: object, timeout: float = 300) -> tuple[int, str, str]:
    """Return the child's (exit status, stdout, stderr); a signal is a negative status."""
    done = run_python(code, *args, timeout=timeout)
    return done.returncode, done.stdout.strip(), done.stderr.strip()
