"""``llava-native encode``: images to the rows that a language model reads."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from llava_native.cli.options import complain
from llava_native.writing import named

__all__ = ["encode"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--mmproj", type=click.Path(), help="The image encoder, a GGUF file [the embedded one].")
@click.option("-o", "--output", type=click.Path(), help="The file, or the folder.")
@click.option("-t", "--n-threads", type=click.IntRange(1), help="CPU threads; default the physical cores.")
@click.option("--dtype", type=click.Choice(["auto", "f16", "bf16"]), default="auto", show_default=True)
def encode(
    images: tuple[str, ...], mmproj: str | None, output: str | None, n_threads: int | None, dtype: str
) -> int:
    """Encode IMAGES and save their rows, as float32 in the safetensors format.

    The files are named like the images, with the ending .emb, beside them or in the folder of -o. Their
    names go to stdout. No language model is loaded; without --mmproj the embedded model's encoder is
    taken. Two images that would get one name are refused.
    """
    from llava_native._encoder import ImageEncoder
    from llava_native.demo import demo_files

    targets = [_target(image, output, len(images) > 1) for image in images]
    if twice := {str(target) for target in targets if targets.count(target) > 1}:
        raise click.UsageError(f"two images would be saved as {', '.join(sorted(twice))}")
    if lost := [str(target) for target in targets if target.exists() and _is_one_of(target, images)]:
        raise click.UsageError(f"{', '.join(lost)} is an image to encode: name another place with -o")
    if len(images) == 1:
        targets[0].parent.stat()  # before an encoder is loaded, if it is a folder that is not there
    failures = 0
    if mmproj is None:
        mmproj = str(demo_files()[1])
        print("llava-native: the embedded demo model's encoder encodes", file=sys.stderr)
    with ImageEncoder(mmproj, n_threads=n_threads, dtype=dtype) as encoder:  # type: ignore[arg-type]
        for image, target in zip(images, targets, strict=True):
            began = time.perf_counter()
            try:
                rows = encoder.encode(image)
                if len(images) > 1:
                    target.parent.mkdir(parents=True, exist_ok=True)
                with named(target):
                    rows.save(target)
            except (ValueError, OSError) as exc:  # of this image; the next may be sound
                if len(images) == 1:
                    raise
                complain(f"{image}: {exc}")
                failures += 1
                continue
            seconds = time.perf_counter() - began
            print(f"{rows.n_tokens} rows of {rows.n_embd} in {seconds:.2f} s", file=sys.stderr)
            print(target)
    return 1 if failures else 0


def _is_one_of(target: Path, images: tuple[str, ...]) -> bool:
    return any(Path(image).exists() and target.samefile(image) for image in images)


def _target(image: str, output: str | None, several: bool) -> Path:
    name = f"{Path(image).stem}.emb"
    if output is None:
        return Path(image).parent / name
    return Path(output) / name if several or Path(output).is_dir() else Path(output)
