"""The embedded model: a small LLaVA, trained by ``training/`` of the source repository."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_files"]

FOLDER = Path(__file__).parent
NAME = "llava-native-demo"


def demo_files() -> tuple[Path, Path]:
    """Return the paths of the embedded text model and its mmproj.

    Raises
    ------
    FileNotFoundError
        This installation was made without them.
    """
    files = FOLDER / f"{NAME}.gguf", FOLDER / f"mmproj-{NAME}.gguf"
    if not all(file.exists() for file in files):
        raise FileNotFoundError(
            "no model was named, and this installation has no embedded one: name a text model and its "
            "mmproj (Llava(model, mmproj); on the command line -m and --mmproj)"
        )
    return files
