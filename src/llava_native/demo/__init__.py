"""The embedded model: a small LLaVA, trained by ``training/`` of the source repository."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_files"]

NAME = "llava-native-demo"


def demo_files() -> tuple[Path, Path]:
    """Return the paths of the embedded text model and its mmproj.

    Raises
    ------
    FileNotFoundError
        This installation was made without them.
    """
    folder = Path(__file__).parent
    files = folder / f"{NAME}.gguf", folder / f"mmproj-{NAME}.gguf"
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"the embedded model is missing from this installation: {file}")
    return files
