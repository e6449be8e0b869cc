"""``llava-native describe``: ask a question about pictures."""

from __future__ import annotations

import sys
from typing import Any

import click

from llava_native.llava import Llava
from llava_native.stream import TokenStream

__all__ = ["describe"]


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("-m", "--model", required=True, type=click.Path(), help="The text model, a GGUF file.")
@click.option("--mmproj", required=True, type=click.Path(), help="The image encoder, a GGUF file.")
@click.option("-p", "--prompt", default="Describe this image.", show_default=True, help="The question.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("-c", "--n-ctx", type=click.IntRange(8), default=4096, show_default=True)
@click.option("-t", "--n-threads", type=click.IntRange(1), help="CPU threads; default the physical cores.")
@click.option("-ngl", "--n-gpu-layers", type=int, default=-1, show_default=True, help="-1 for all.")
@click.option("--temp", "temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("-s", "--seed", type=int, help="Makes answers with a temperature repeatable.")
@click.option("--chat-template", help="phi-3, llama-3, vicuna or chatml; default by the model.")
@click.option("--timings", is_flag=True, help="Tell on stderr how long each stage took.")
def describe(
    images: tuple[str, ...],
    model: str,
    mmproj: str,
    prompt: str,
    n_ctx: int,
    n_threads: int | None,
    n_gpu_layers: int,
    chat_template: str | None,
    timings: bool,
    **options: Any,
) -> int:
    """Describe IMAGES, or answer a question about each of them.

    The answer streams to stdout. With several images each answer is one line after the image's name, and
    an image that cannot be read is reported on stderr and passed over.
    """
    failures = 0
    loaded = Llava(
        model,
        mmproj,
        n_ctx=n_ctx,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
        chat_template=chat_template,
    )
    with loaded as llava:
        for image in images:
            try:
                with llava.stream(prompt, image=image, **options) as stream:
                    _show(stream, f"{image}: " if len(images) > 1 else "")
            except (ValueError, OSError) as exc:  # of this image; the next may be sound
                if len(images) == 1 or isinstance(exc, BrokenPipeError):
                    raise
                print(f"llava-native: {image}: {exc}", file=sys.stderr)
                failures += 1
                continue
            if timings:
                _report(stream)
    return 1 if failures else 0


def _show(stream: TokenStream, name: str) -> None:
    for token in stream:
        print(name + token.text, end="", flush=True)
        name = ""
    print(name)


def _report(stream: TokenStream) -> None:
    times, usage = stream.timings, stream.usage
    print(
        f"image {times.prepare_s:.2f} s, encode {times.encode_s:.2f} s, prefill {times.prefill_s:.2f} s "
        f"({usage.prompt_tokens} tokens), first token {times.first_token_s:.2f} s, "
        f"{usage.completion_tokens} tokens at {times.tokens_per_second:.1f} a second, "
        f"ended by {stream.finish_reason}",
        file=sys.stderr,
    )
