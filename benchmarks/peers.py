"""Build the pinned llama.cpp's own programs, the measure that ours is held against.

They are built from the very tree that ``llava_native`` is built from (``vendor/llama.cpp``, patches
included), in Release, for this machine (``GGML_NATIVE``), static, without network libraries. A
second build in the same cache folder is incremental.

    python benchmarks/peers.py                      # every program, from vendor/llama.cpp
    python benchmarks/peers.py --unpatched          # the same, our patches taken out again (but KEPT)
    python benchmarks/peers.py --targets llama-quantize --source ~/llama.cpp
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VENDOR = REPO / "vendor"
TOOLS = (
    "llama-quantize",
    "llama-bench",
    "llama-mtmd-cli",
    "llama-completion",
    "llama-cli",
    "llama-server",
)
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "GGML_CCACHE": "ON",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "MTMD_VIDEO": "OFF",
}
KEPT = "0012-amx-tile-configuration.patch"  # without it every program dies of SIGILL on a CPU with AMX


def cache_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the benchmark cache folder, made if missing.

    Parameters
    ----------
    path : path-like, optional
        The folder; otherwise ``LLAVA_NATIVE_BENCH_CACHE``, otherwise ``llava_native_bench`` in the
        platform's cache folder.
    """
    if path is None:
        path = os.environ.get("LLAVA_NATIVE_BENCH_CACHE")
    if path is None:
        if os.name == "nt":
            base = os.environ.get("LOCALAPPDATA", "~")
        elif sys.platform == "darwin":
            base = "~/Library/Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        path = Path(base).expanduser() / "llava_native_bench"
    folder = Path(path).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def source_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the llama.cpp tree to build: `path`, the user's checkout, or the vendored one.

    Raises
    ------
    FileNotFoundError
        When there is no such tree and ``vendor/fetch.py`` cannot fill it.
    """
    chosen = path or os.environ.get("LLAVA_NATIVE_LLAMA_CPP")
    if chosen is None:
        tree = VENDOR / "llama.cpp"
        if not (tree / "CMakeLists.txt").exists() and (VENDOR / "fetch.py").exists():
            subprocess.run([sys.executable, str(VENDOR / "fetch.py")], check=True)
    else:
        tree = Path(chosen).expanduser().resolve()
    if not (tree / "CMakeLists.txt").exists():
        raise FileNotFoundError(f"no llama.cpp at {tree}; run vendor/fetch.py or pass --source")
    return tree


def unpatched_tree(source: Path, cache: Path) -> Path:
    """Copy `source` into the cache and take our patches but `KEPT` out of the copy, the last one first."""
    pin = (VENDOR / "llama.cpp.toml").read_bytes() + (VENDOR / "patches" / KEPT).read_bytes()
    is_pinned = (source / ".llava_native_stamp").exists()
    copy = cache / f"llama.cpp-unpatched-{f'{zlib.crc32(pin):08x}' if is_pinned else 'checkout'}"
    if copy.exists():
        return copy
    partial = cache / "llama.cpp-unpatched.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(".git", "build"))
    for patch in sorted((VENDOR / "patches").glob("*.patch"), reverse=True):
        if patch.name != KEPT:
            command = ["patch", "-R", "-p1", "--forward", "-i", str(patch)]
            subprocess.run(command, cwd=partial, check=True, stdout=subprocess.DEVNULL)
    partial.rename(copy)
    return copy


def _tool(name: str) -> str:
    """Find a build program beside this interpreter first, then on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} is needed to build llama.cpp's programs: pip install {name}")
    return found


def build(
    source: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    build_dir: str | os.PathLike[str] | None = None,
    targets: tuple[str, ...] = TOOLS,
    unpatched: bool = False,
    defines: dict[str, str] | None = None,
    jobs: int | None = None,
) -> dict[str, Path]:
    """Build llama.cpp's own programs and return their paths by name.

    Parameters
    ----------
    source : path-like, optional
        A llama.cpp tree; see `source_dir`.
    cache : path-like, optional
        See `cache_dir`.
    build_dir : path-like, optional
        Where to build; default a folder of the cache, one each for patched and unpatched.
    targets : tuple of str
        The programs wanted.
    unpatched : bool, default False
        Build from a copy with our patches taken out, to compare answers with upstream's.
    defines : dict, optional
        More CMake definitions, laid over `OPTIONS`.
    jobs : int, optional
        Compiler processes; default all CPUs.

    Returns
    -------
    dict of str to Path
        One executable for each target.
    """
    folder = cache_dir(cache)
    tree = source_dir(source)
    if unpatched:
        tree = unpatched_tree(tree, folder)
    where = Path(build_dir) if build_dir else folder / (f"peers-{tree.name}" if unpatched else "peers")
    configure = [_tool("cmake"), "-S", str(tree), "-B", str(where), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
    configure += [f"-D{key}={value}" for key, value in {**OPTIONS, **(defines or {})}.items()]
    # SOURCE_DATE_EPOCH would switch GGML_NATIVE's default off; we set it, and drop the variable too.
    env = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    subprocess.run(configure, check=True, env=env, stdout=sys.stderr)
    compile_ = [_tool("cmake"), "--build", str(where), "-j", str(jobs or os.cpu_count() or 1)]
    subprocess.run([*compile_, "--target", *targets], check=True, env=env, stdout=sys.stderr)
    suffix = ".exe" if os.name == "nt" else ""
    return {name: where / "bin" / (name + suffix) for name in targets}


def main(argv: list[str] | None = None) -> int:
    """Build from the command line; print one ``name path`` line for each program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cache", help="cache folder (default LLAVA_NATIVE_BENCH_CACHE or the platform's)")
    parser.add_argument("--source", help="llama.cpp tree (default vendor/llama.cpp)")
    parser.add_argument("--build-dir", help="build folder (default inside the cache)")
    parser.add_argument("--unpatched", action="store_true", help="take our patches out first")
    parser.add_argument("--targets", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("-j", "--jobs", type=int)
    args = parser.parse_args(argv)
    paths = build(
        args.source,
        cache=args.cache,
        build_dir=args.build_dir,
        targets=tuple(args.targets),
        unpatched=args.unpatched,
        jobs=args.jobs,
    )
    for name, path in paths.items():
        print(name, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
