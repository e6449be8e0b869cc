"""Options that several commands have, and what they do with them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from llava_native.errors import InvalidInputError
from llava_native.urls import is_web_url

if TYPE_CHECKING:
    from llava_native.llava import Llava
    from llava_native.stream import TokenStream

__all__ = [
    "LAYERS", "SEED", "TEMPERATURE", "answer_options", "check_images", "check_text", "complain", "given",
    "load_options", "model_options", "open_llava", "report", "visible", "write",
]  # fmt: skip

_LINE_BREAK = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_Command = TypeVar("_Command", bound=Callable[..., Any])
LAYERS = click.IntRange(-1, 2**31 - 1)
TEMPERATURE = click.FloatRange(0, 1e6)
SEED = click.IntRange(0, 2**32 - 2)
_SHOWN = 80  # characters of a text in a message
_N_CTX = "Tokens of prompt and answer [4096; a named model's own; the embedded one's 2048]."
_TEMPLATES = "phi-3, llama-3, vicuna, mistral, chatml, Jinja or a file of it; default by the model."


def _all(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(command: _Command) -> _Command:
    """Add -m and --mmproj."""
    return _all(
        click.option("-m", "--model", type=click.Path(), help="The text model, a GGUF file."),
        click.option("--mmproj", type=click.Path(), help="The image encoder, a GGUF file."),
    )(command)


def load_options(command: _Command) -> _Command:
    """Add what decides how a model is loaded."""
    return _all(
        click.option("-c", "--n-ctx", type=click.IntRange(8), help=_N_CTX),
        click.option("-t", "--n-threads", type=click.IntRange(1), help="CPU threads [the physical cores]."),
        click.option("-ngl", "--n-gpu-layers", type=LAYERS, help="Layers on the GPU, -1 all [-1]."),
        click.option("--lora", multiple=True, type=click.Path(), callback=_list, help="A LoRA adapter."),
        click.option("--chat-template", help=_TEMPLATES),
    )(command)


def _list(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    return list(values) or None


def answer_options(command: _Command) -> _Command:
    """Add what decides how an answer is made."""
    return _all(
        click.option("-n", "--max-tokens", type=click.IntRange(1), help="Length of an answer [512]."),
        click.option("--temp", "temperature", type=TEMPERATURE, help="0 is greedy."),
        click.option("-s", "--seed", type=SEED, help="Makes answers with a temperature repeatable."),
    )(command)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def open_llava(model: str | None, mmproj: str | None, **options: Any) -> Llava:
    """Open the model that -m and --mmproj name, or the embedded one, and say on stderr that it is that.

    Raises
    ------
    click.UsageError
        One of the two is missing.
    """
    if model is None and mmproj is not None:
        raise click.UsageError("--mmproj needs the text model too: -m MODEL")
    from llava_native.llava import Llava

    if model is not None:
        return Llava(model, mmproj, **options)
    llava = Llava.demo(**options)
    print(f"llava-native: the embedded demo model answers ({llava.model.description})", file=sys.stderr)
    return llava


def check_images(images: Iterable[str], allow_urls: bool) -> None:
    """Refuse URLs unless they are allowed.

    Raises
    ------
    InvalidInputError
        One is not.
    """
    for name in images:
        if is_web_url(name) and not allow_urls:
            raise InvalidInputError(f"{name}: images from the web are off; --allow-urls allows them")


def check_text(text: str) -> None:
    """Refuse what has bytes in it that are no UTF-8, as arguments and lines of a pipe may have.

    Raises
    ------
    InvalidInputError
        It has some.
    """
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidInputError(f"{text[:_SHOWN]!r} is no text in UTF-8") from exc


def visible(text: str) -> str:
    """Show what would steer a terminal as what it is."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def complain(message: object, program: str = "llava-native") -> None:
    """Write a line to stderr."""
    print(f"{program}: {visible(str(message))}", file=sys.stderr)


def write(stream: TokenStream, name: str = "") -> None:
    """Write an answer to stdout as it comes, and a newline; behind a name, it is one line."""
    before = name  # not before there is a token: an image may turn out to be none
    for token in stream:
        _put(before + (_LINE_BREAK.sub(" ", token.text) if name else token.text))
        before = ""
    _put(before + "\n")


def _put(text: str) -> None:
    """Write to stdout; a failure is not that of the image that the text is about."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise click.ClickException(f"cannot write the answer: {exc.strerror}") from exc


def report(stream: TokenStream) -> None:
    """Tell on stderr how long each stage of an answer took."""
    times, usage = stream.timings, stream.usage
    print(
        f"{f'fetched in {times.fetch_s:.2f} s, ' if times.fetch_s else ''}"
        f"image {times.prepare_s:.2f} s, encode {times.encode_s:.2f} s, prefill {times.prefill_s:.2f} s "
        f"({usage.prompt_tokens} tokens), first token {times.first_token_s:.2f} s, "
        f"{usage.completion_tokens} tokens at {times.tokens_per_second:.1f} a second, "
        f"ended by {stream.finish_reason}",
        file=sys.stderr,
    )
