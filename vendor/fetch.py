"""Fill vendor/llama.cpp from the pinned source package, check its hash and apply our patches.

CMake runs this at configure time. It does nothing when the folder already matches the pin and the
patches, as it does in our own source distribution, which carries the folder filled.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent
TARGET = VENDOR / "llama.cpp"
STAMP = TARGET / ".llava_native_stamp"


def patch_files() -> list[Path]:
    """Our patches, in the order in which they apply."""
    return sorted((VENDOR / "patches").glob("*.patch"))


def wanted_stamp() -> str:
    """A digest of everything that decides what the filled folder holds."""
    digest = hashlib.sha256()
    for path in [VENDOR / "llama.cpp.toml", *patch_files()]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def download(source: dict[str, str], folder: Path) -> Path:
    """Get the pinned source package with pip, so that mirrors and offline caches work."""
    requirement = f"{source['package']}=={source['version']}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", source["package"], "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(
            f"vendor/fetch.py: pip could not download {requirement}.\n{done.stderr.strip()}\n"
            "With no package index in reach: build from llava_native's own source distribution, which\n"
            "carries llama.cpp; or let PIP_FIND_LINKS name a folder with that archive; or point\n"
            "LLAVA_NATIVE_LLAMA_CPP at a llama.cpp checkout (docs/building.md)."
        )
    (archive,) = folder.glob("*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != source["sha256"]:
        raise SystemExit(
            f"vendor/fetch.py: {archive.name} has sha256 {found},\nbut vendor/llama.cpp.toml pins "
            f"{source['sha256']}. The download was changed on its way; do not build it."
        )
    return archive


def unpack(archive: Path, subdirectory: str, folder: Path) -> Path:
    """Extract the llama.cpp tree of the source package and return its folder."""
    with tarfile.open(archive) as tar:
        prefix = f"{tar.getnames()[0].split('/')[0]}/{subdirectory}/"
        members = [member for member in tar.getmembers() if member.name.startswith(prefix)]
        # Python before 3.11.4 (Debian 12 has 3.11.2) knows no filters; the archive's hash was checked
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members=members, **safely)
    return folder / prefix


def apply_patches(tree: Path) -> None:
    """Apply our patches strictly: a hunk that does not fit stops the build."""
    import patch_ng  # a build requirement, not needed when the folder is already filled

    for path in patch_files():
        patch_set = patch_ng.fromfile(str(path))
        if not patch_set or not patch_set.apply(root=str(tree)):
            raise SystemExit(f"vendor/fetch.py: {path.name} does not apply to the pinned llama.cpp")


def main() -> None:
    """Fill the folder, unless it is filled from this very pin and these patches."""
    stamp = wanted_stamp()
    if STAMP.is_file() and STAMP.read_text() == stamp:
        return
    pin = tomllib.loads((VENDOR / "llama.cpp.toml").read_text())
    # beside the target, so that the move at the end is a rename and never half done
    with tempfile.TemporaryDirectory(dir=VENDOR, prefix=".fetch-") as name:
        folder = Path(name)
        archive = download(pin["source"], folder)
        tree = unpack(archive, pin["source"]["subdirectory"], folder)
        apply_patches(tree)
        (tree / STAMP.name).write_text(stamp)
        shutil.rmtree(TARGET, ignore_errors=True)
        tree.rename(TARGET)
    print(f"vendor/llama.cpp filled from {pin['source']['package']} {pin['source']['version']}")


if __name__ == "__main__":
    main()
