"""``llava-native chat``: a conversation about pictures."""

from __future__ import annotations

from typing import Any

import click

from llava_native.cli.options import (
    answer_options,
    check_images,
    given,
    load_options,
    model_options,
    open_llava,
)
from llava_native.urls import is_web_url

__all__ = ["chat"]


_FILE = click.Path(exists=True, dir_okay=False)


def _found(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name if is_web_url(name) else str(_FILE.convert(name, option, context)) for name in values)


@click.command()
@click.argument("images", nargs=-1, callback=_found)
@model_options
@click.option("--system", help="Instructions to the model.")
@answer_options
@load_options
@click.option("--allow-urls", is_flag=True, help="Fetch images that are named by a URL.")
@click.option("--timings", is_flag=True, help="Tell on stderr how long each stage took.")
def chat(
    images: tuple[str, ...],
    model: str | None,
    mmproj: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    allow_urls: bool,
    timings: bool,
    **load: Any,
) -> int:
    """Talk about IMAGES, and others that the questions name.

    Each line is a question; /help shows the commands. Questions may come through a pipe: then the answers
    go to stdout, one after another. Without -m and --mmproj the small embedded model answers.
    """
    from llava_native.cli.conversation import Conversation

    check_images(images, allow_urls)
    options = given(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with open_llava(model, mmproj, allow_urls=allow_urls, **given(**load)) as llava:
        return Conversation(
            llava, system=system, options=options, images=images, urls=allow_urls, timings=timings
        ).run()
