"""How another Python process is started that finds what this one has imported."""

from __future__ import annotations

import json
import multiprocessing.spawn
import os
import sys
from pathlib import Path
from typing import Final

import llava_native

__all__ = ["command", "is_python"]

_HERE: Final = str(Path(llava_native.__file__).absolute().parent.parent)
_CODE: Final = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "


def command(code: str, *arguments: str) -> list[str]:
    """Return the command that runs `code` with this process's ``sys.path`` and with arguments.

    Nothing is imported from the working directory, which may be anything by now: what is relative in
    ``sys.path`` is left out, and where this package lies is put behind.
    """
    flags = ["-I"] if sys.flags.isolated else ["-P"]
    path = [entry for entry in sys.path if isinstance(entry, str) and Path(entry).is_absolute()]
    return [_executable(), *flags, "-c", _CODE + code, json.dumps([*path, _HERE]), *arguments]


def is_python() -> bool:
    """Tell whether ``command`` starts Python, and not another program that Python is part of."""
    return Path(_executable()).name.lower().startswith("python") and not getattr(sys, "frozen", False)


def _executable() -> str:
    return os.fsdecode(multiprocessing.spawn.get_executable() or "")
