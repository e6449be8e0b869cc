"""What this process may use: the machine's memory or its control group's, GPUs, what its CPU is good at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Room", "cpu_features", "default_flash_attn", "gpus", "host_room"]

_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for no limit


class Room(NamedTuple):
    """Bytes of memory: all that there is, and what is free now, counting caches that can be dropped."""

    total: int
    free: int
    of: str


def gpus(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of ``llava_native.devices()`` that are GPUs, with memory of their own or without."""
    return [device for device in found if device["type"] in ("gpu", "igpu")]


def cpu_features(found: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return what the CPU among ``llava_native.devices()`` has; GPUs tell features of their own."""
    return frozenset(
        feature
        for device in found
        if device["type"] == "cpu"
        for feature, value in device.get("features", {}).items()
        if value not in ("0", "")
    )


def default_flash_attn(found: Sequence[Mapping[str, Any]], type_k: str, type_v: str) -> bool | None:
    """Return what ``Context`` takes where nobody says: None leaves it to the library.

    Notes
    -----
    The library's own attention by blocks makes single tokens slower on a CPU, by a third and more with an
    image in the context. Patch 0017 brings one that is faster than the other way for any number of tokens.
    Keys or values of "f32" would be rounded to F16 by either, for each token again.
    """
    if gpus(found):
        return None
    if type_v == "q8_0":  # which the library has no other way for
        return True
    return "FLASH_ATTN" in cpu_features(found) and "f32" not in (type_k, type_v)


def host_room(root: str | os.PathLike[str] = "/") -> Room | None:
    """Return the room of the tightest of the machine and this process's control groups.

    Parameters
    ----------
    root : path-like, default "/"
        Where ``proc`` and ``sys`` are, for tests.

    Returns
    -------
    Room or None
        None where the system does not tell.
    """
    found = [room for room in (_machine(Path(root)), *_groups(Path(root))) if room is not None]
    if not found:
        return None
    return Room(
        min(room.total for room in found),
        min(room.free for room in found),
        min(found, key=lambda room: room.total).of,
    )


def _machine(root: Path) -> Room | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {
            name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)
        }
        return Room(sizes["MemTotal"], sizes["MemAvailable"], "this machine")
    except (OSError, ValueError, KeyError, IndexError):
        pass
    try:  # macOS does not tell what is free
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
    return Room(total, total, "this machine") if total > 0 else None


def _groups(root: Path) -> Iterator[Room | None]:
    """Yield the room of every group that this process is in, outer ones included."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts = (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified")
            names = ("memory.max", "memory.current", ("inactive_file", "active_file"))
        elif "memory" in controllers.split(","):
            mounts = (root / "sys/fs/cgroup/memory", root / "sys/fs/cgroup" / controllers)
            names = (
                "memory.limit_in_bytes", "memory.usage_in_bytes",
                ("total_inactive_file", "total_active_file"),
            )  # fmt: skip
        else:
            continue
        for mount in mounts:
            yield from (_group(folder, *names) for folder in _upwards(mount, path))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield a group's folder and those above it; in a container's own view, the mount is the group."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for n in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:n])


def _group(folder: Path, limit: str, usage: str, caches: tuple[str, ...]) -> Room | None:
    """Read one group; None where it has no limit, or is not there."""
    try:
        total = int((folder / limit).read_text())
        if total >= _UNLIMITED:
            return None
        used = int((folder / usage).read_text())
    except (OSError, ValueError):  # "max"
        return None
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= sum(int(value) for name, value in pairs if name in caches)
    except (OSError, ValueError):
        pass
    return Room(total, max(0, total - max(0, used)), "its control group")
