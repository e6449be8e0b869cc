"""The annotations and stubs, seen by mypy as an installed package's user sees them."""

import subprocess
import sys
from pathlib import Path

import pytest

import llava_native

HERE = Path(__file__).parent
MODULES = sorted(path.stem for path in Path(llava_native.__file__).parent.glob("_*.pyi"))

pytest.importorskip("mypy")


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_api(tmp_path):
    # from elsewhere, so that mypy takes the installed package and not the source folder
    options = ("--strict", "--warn-unused-ignores", "--config-file=", f"--cache-dir={tmp_path}")
    run("mypy", *options, str(HERE / "public_api.py"), cwd=tmp_path)


def test_stubs_say_what_the_modules_have(tmp_path):
    modules = [f"llava_native.{name}" for name in MODULES]
    allowed = str(HERE / "stubtest-allowlist.txt")
    # disjoint bases: a decorator that type checkers only begin to know
    run("mypy.stubtest", "--concise", "--ignore-disjoint-bases", "--allowlist", allowed,
        "--ignore-unused-allowlist", *modules, cwd=tmp_path)  # fmt: skip
