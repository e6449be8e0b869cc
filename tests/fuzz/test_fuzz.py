"""Damaged models, damaged images and calls in any order: no signal, no hang, nothing left alive.

Short here. The long run, numbers of its cases recorded in its output:

    LLAVA_NATIVE_FUZZ=5000 pytest tests/fuzz
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.fuzz import TESTS, failures
from support.fuzz_cases import KINDS

COUNT = int(os.environ.get("LLAVA_NATIVE_FUZZ", "40"))


@pytest.mark.parametrize("kind", KINDS)
def test_no_case_ends_the_process_or_hangs(kind, tmp_path):
    assert not list(failures(kind, 0, COUNT, tmp_path))


def test_calls_in_any_order_do_what_each_of_them_says(tmp_path):
    command = [sys.executable, "-m", "support.machine", str(COUNT), str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
