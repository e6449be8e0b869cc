"""``llava-native encode``: images to the rows that a language model reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from llava_native._encoder import ImageEncoder

__all__ = ["encode"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--mmproj", required=True, type=click.Path(), help="The image encoder, a GGUF file.")
@click.option("-o", "--output", type=click.Path(), help="The file, or with several images the folder.")
@click.option("-t", "--n-threads", type=click.IntRange(1), help="CPU threads; default the physical cores.")
@click.option("--dtype", type=click.Choice(["auto", "f16", "bf16"]), default="auto", show_default=True)
def encode(
    images: tuple[str, ...], mmproj: str, output: str | None, n_threads: int | None, dtype: str
) -> int:
    """Encode IMAGES and save their rows, as float32 in the safetensors format.

    The files are named like the images, with the ending .emb, beside them or in the folder of -o. Their
    names go to stdout. No language model is loaded.
    """
    failures = 0
    with ImageEncoder(mmproj, n_threads=n_threads, dtype=dtype) as encoder:  # type: ignore[arg-type]
        for image in images:
            began = time.perf_counter()
            try:
                rows = encoder.encode(image)
                target = _target(image, output, len(images) > 1)
                rows.save(target)
            except (ValueError, OSError) as exc:  # of this image; the next may be sound
                if len(images) == 1:
                    raise
                print(f"llava-native: {image}: {exc}", file=sys.stderr)
                failures += 1
                continue
            seconds = time.perf_counter() - began
            print(f"{rows.n_tokens} rows of {rows.n_embd} in {seconds:.2f} s", file=sys.stderr)
            print(target)
    return 1 if failures else 0


def _target(image: str, output: str | None, several: bool) -> Path:
    if output is None:
        return Path(image).with_suffix(".emb")
    if several:
        Path(output).mkdir(parents=True, exist_ok=True)
        return Path(output) / Path(image).with_suffix(".emb").name
    return Path(output)
