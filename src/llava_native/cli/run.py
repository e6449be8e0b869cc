"""``llava-native run``: ask a named model, as ``ollama run`` does."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llava_native.cli.options import answer_options, given, load_options, open_llava, report, write

if TYPE_CHECKING:
    from llava_native.store import NamedModel

__all__ = ["run"]

DEMO = "demo"


@click.command()
@click.argument("name", default=DEMO)
@click.argument("prompt", nargs=-1)
@click.option("--system", help="Instructions to the model, instead of its own.")
@click.option("--text", "only_words", is_flag=True, help="Look for no images in the prompt.")
@click.option("--allow-urls", is_flag=True, help="Fetch images that are named by a URL.")
@answer_options
@load_options
@click.option("--timings", is_flag=True, help="Tell on stderr how long each stage took.")
def run(
    name: str,
    prompt: tuple[str, ...],
    system: str | None,
    only_words: bool,
    allow_urls: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    timings: bool,
    **load: Any,
) -> int:
    """Ask the model NAME, which `create` or `pull` made; "demo" is the small embedded one.

    PROMPT may name images: "photo.png What is this?". Without one a conversation begins; from a pipe, all
    of the input is the prompt.
    """
    from llava_native.cli.conversation import Conversation, begin_chat, question

    named = _find(name)
    options = dict(named.answer) if named else {}
    options |= given(max_tokens=max_tokens, temperature=temperature, seed=seed)
    system = system if system is not None else named.system if named else None
    history = named.messages if named else ()
    text = " ".join(prompt)
    if not prompt and not (sys.stdin is not None and sys.stdin.isatty()):
        text = sys.stdin.read().strip() if sys.stdin is not None else ""
        if not text:
            raise click.UsageError("there is no prompt")
    # before any model is loaded
    words, images = question(text, only_words=only_words, urls=allow_urls) if text else ("", [])
    opened = named.arguments() if named else {"model": None}
    opened |= given(allow_urls=allow_urls, **load)
    with open_llava(opened.pop("model"), opened.pop("mmproj", None), **opened) as llava:
        if not text:
            return Conversation(
                llava, system=system, history=history, options=options, only_words=only_words,
                urls=allow_urls, timings=timings,
            ).run()  # fmt: skip
        with begin_chat(llava, system, history).send(words, image=images or None, **options) as stream:
            write(stream)
        if timings:
            report(stream)
    return 0


def _find(name: str) -> NamedModel | None:
    """Return the model of a name, None for the embedded one."""
    from llava_native import store
    from llava_native.errors import ModelNotFoundError

    try:
        return store.find(name)
    except ModelNotFoundError:
        if name != DEMO:
            raise
        return None
