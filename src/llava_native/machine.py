"""What this process may use: the machine's memory, or its control group's, and GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Room", "gpus", "host_room"]

_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for no limit


class Room(NamedTuple):
    """Bytes of memory: all that there is, and what is free now, counting caches that can be dropped."""

    total: int
    free: int
    of: str


def gpus(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of ``llava_native.devices()`` that are GPUs, with memory of their own or without."""
    return [device for device in found if device["type"] in ("gpu", "igpu")]


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
