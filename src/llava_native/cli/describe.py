"""``llava-native describe``: ask a question about pictures."""

from __future__ import annotations

import sys
from typing import Any

import click

from llava_native.cli.options import (
    answer_options,
    given,
    load_options,
    model_options,
    open_llava,
    report,
    write,
)

__all__ = ["describe"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@model_options
@click.option("-p", "--prompt", default="Describe this image.", show_default=True, help="The question.")
@answer_options
@load_options
@click.option("--allow-urls", is_flag=True, help="Fetch images that are named by a URL.")
@click.option("--timings", is_flag=True, help="Tell on stderr how long each stage took.")
def describe(
    images: tuple[str, ...],
    model: str | None,
    mmproj: str | None,
    prompt: str,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    allow_urls: bool,
    timings: bool,
    **load: Any,
) -> int:
    """Describe IMAGES, or answer a question about each of them.

    The answer streams to stdout. With several images each answer is one line after the image's name, and
    an image that cannot be read is reported on stderr and passed over. Without -m and --mmproj the small
    embedded model answers.
    """
    if model is not None and mmproj is None:
        raise click.UsageError("-m needs the image encoder too: --mmproj MMPROJ")
    options = {"temperature": 0.0} | given(max_tokens=max_tokens, temperature=temperature, seed=seed)
    failures = 0
    with open_llava(model, mmproj, allow_urls=allow_urls, **given(**load)) as llava:
        for image in images:
            try:
                with llava.stream(prompt, image=image, **options) as stream:
                    write(stream, f"{image}: " if len(images) > 1 else "")
            except (ValueError, OSError) as exc:  # of this image; the next may be sound
                if len(images) == 1 or isinstance(exc, BrokenPipeError):
                    raise
                print(f"llava-native: {image}: {exc}", file=sys.stderr)
                failures += 1
                continue
            if timings:
                report(stream)
    return 1 if failures else 0
