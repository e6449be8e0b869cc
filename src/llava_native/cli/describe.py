"""``llava-native describe``: ask a question about pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_native.cli.jsonl import describe_into, left_to_do
from llava_native.cli.options import (
    answer_options,
    check_images,
    check_text,
    complain,
    given,
    load_options,
    model_options,
    open_llava,
    report,
    write,
)
from llava_native.urls import is_data_url, shown

if TYPE_CHECKING:
    from llava_native.llava import Llava

__all__ = ["describe"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@model_options
@click.option("-p", "--prompt", default="Describe this image.", show_default=True, help="The question.")
@answer_options
@load_options
@click.option("--allow-urls", is_flag=True, help="Fetch images that are named by a URL.")
@click.option("--jsonl", type=click.Path(dir_okay=False), help="Write answers to this file, a line each.")
@click.option("--resume", is_flag=True, help="Go on with the file of --jsonl.")
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
    jsonl: str | None,
    resume: bool,
    timings: bool,
    **load: Any,
) -> int:
    """Describe IMAGES, or answer a question about each of them.

    The answer streams to stdout. With several images each answer is one line after the image's name, and
    an image that cannot be read is reported on stderr and passed over. With --jsonl images are prepared,
    encoded and answered beside each other, and a run that was interrupted can be resumed. Without -m and
    --mmproj the small embedded model answers.
    """
    if model is not None and mmproj is None:
        raise click.UsageError("-m needs the image encoder too: --mmproj MMPROJ")
    if resume and jsonl is None:
        raise click.UsageError("--resume goes on with the file of --jsonl, and there is none")
    if jsonl == "-":
        raise click.UsageError("--jsonl needs the name of a file")
    if timings and jsonl is not None:
        raise click.UsageError("--timings are of one answer after another; --jsonl makes them together")
    check_images(images, allow_urls)
    check_text(prompt)
    if len(images) == 1 and not is_data_url(images[0]) and Path(images[0]).parent.exists():
        Path(images[0]).stat()  # before a model is loaded, if it is a path that is not there
    todo = list(images) if jsonl is None else left_to_do(images, Path(jsonl), resume)
    options = {"temperature": 0.0} | given(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with open_llava(model, mmproj, allow_urls=allow_urls, **given(**load)) as llava:
        if jsonl is not None:
            failures = describe_into(llava, todo, prompt, Path(jsonl), options)
        else:
            failures = _describe_each(llava, todo, prompt, timings, options)
    return 1 if failures else 0


def _describe_each(
    llava: Llava, images: list[str], prompt: str, timings: bool, options: dict[str, Any]
) -> int:
    """Write the answers to stdout as they come; return how many images failed."""
    failures = 0
    for image in images:
        try:
            with llava.stream(prompt, image=image, **options) as stream:
                write(stream, f"{shown(image)}: " if len(images) > 1 else "")
        except (ValueError, OSError) as exc:  # of this image; the next may be sound
            if len(images) == 1 or isinstance(exc, BrokenPipeError):
                raise
            complain(f"{shown(image)}: {exc}")
            failures += 1
            continue
        if timings:
            report(stream)
    return failures
