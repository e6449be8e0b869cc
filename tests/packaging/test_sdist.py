"""The source distribution: everything that git has, llama.cpp filled and trimmed, and nothing else."""

import subprocess
import tarfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = {".so", ".a", ".o", ".dylib", ".dll", ".pyd", ".whl", ".pyc"}
# the vocabularies and the picture that the tests read
BIG = {"models/ggml-vocab-llama-bpe.gguf", "models/ggml-vocab-llama-spm.gguf", "models/ggml-vocab-phi-3.gguf"}


@pytest.fixture(scope="module")
def members(sdist) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(sdist) as tar:
        return {entry.name.split("/", 1)[1]: entry for entry in tar if entry.isfile()}


def test_carries_all_that_git_has(members):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert not tracked - set(members)
    extra = {name for name in set(members) - tracked if not name.startswith("vendor/llama.cpp/")}
    assert extra <= {"PKG-INFO"}


def test_has_no_build_output(members):
    assert not [name for name in members if PurePosixPath(name).suffix in BINARY]
    assert not [name for name in members if name.startswith(("build/", "dist/", ".git/"))]


def test_carries_llama_cpp_filled_and_trimmed(members):
    inside = {
        name.removeprefix("vendor/llama.cpp/") for name in members if name.startswith("vendor/llama.cpp/")
    }
    assert {".llava_native_stamp", "LICENSE", "CMakeLists.txt", "include/llama.h", "src/llama.cpp"} <= inside
    assert {"tools/mtmd/mtmd.h", "tools/mtmd/test-1.jpeg", "ggml/src/ggml-cuda/ggml-cuda.cu"} <= inside
    assert {name for name in inside if name.startswith("models/")} == BIG
    assert not [name for name in inside if name.startswith(("docs/", "examples/", "tests/", "tools/server/"))]


def test_stays_small(sdist):
    assert sdist.stat().st_size < 12e6


def test_is_reproducible(members):
    """No owner and no time of the machine that made it."""
    assert {entry.mtime for entry in members.values()} == {next(iter(members.values())).mtime}
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in members.values()} == {
        (0, 0, "", "")
    }
