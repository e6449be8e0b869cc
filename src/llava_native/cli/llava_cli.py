"""``llava-cli``: the command lines of the model cards, as llama.cpp's program of April 2024 took them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_native.cli.options import LAYERS, TEMPERATURE, check_text, model_options, open_llava

if TYPE_CHECKING:
    from llava_native.errors import ImageDecodeError
    from llava_native.llava import Llava
    from llava_native.prompt import Part
    from llava_native.stream import TokenStream

__all__ = ["llava_cli"]

QUESTION = "describe the image in detail."
MARK = "<image>"
MIN_CTX = 2048
MAX_TOKENS = 256  # where -n says nothing
PREDICT = click.IntRange(-(2**31), 2**31 - 1)
VICUNA = (  # what the program wrote around a question, whatever the model
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions.\nUSER:",
    "\nASSISTANT:",
)
STOPS = ("<|im_end|>", "<|im_start|>", "USER:")
_BASE64 = re.compile(
    r"""<img\s+src=["']data:image/[a-z+.-]+;base64,(?P<data>[^"'>]*)["'][^>]*>""", re.IGNORECASE
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:x(?P<hex>[0-9a-fA-F]{1,2})|(?P<char>[nrt'\"\\]))")


def _unescape(text: str) -> str:
    r"""Replace \n \r \t \' \" \\ and \xHH; bytes of several \xHH may make one character."""
    if "\\" not in text:
        return text
    data = _ESCAPE.sub(_escaped, text)
    return data.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _escaped(match: re.Match[str]) -> str:
    if not match["hex"]:
        return _ESCAPES[match["char"]]
    byte = int(match["hex"], 16)
    return chr(byte if byte < 0x80 else 0xDC00 + byte)  # a byte of a character: put together afterwards


_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --ctx_size, as llama.cpp takes it
}


@click.command(context_settings=_SETTINGS)
@click.version_option(package_name="llava-native")
@model_options
@click.option("--image", "images", multiple=True, type=click.Path(), help="Several are several runs.")
@click.option("-p", "--prompt", help=f"The question, or a whole prompt with {MARK} in it.")
@click.option("-f", "--file", "prompt_file", type=click.Path(), help="A file with the prompt.")
@click.option("-e", "--escape", is_flag=True, help=r"Replace \n, \t, \xHH and the like in the prompt.")
@click.option("-n", "--predict", "--n-predict", "n_predict", type=PREDICT, default=-1, help="-1: 256 tokens.")
@click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(0), default=0, help="At least 2048.")
@click.option("-b", "--batch-size", "n_batch", type=click.IntRange(1))
@click.option("-ub", "--ubatch-size", "n_ubatch", type=click.IntRange(1))
@click.option("-t", "--threads", "n_threads", type=click.IntRange(1), help="CPU threads.")
@click.option("-ngl", "--gpu-layers", "--n-gpu-layers", "n_gpu_layers", type=LAYERS, default=-1)
@click.option("--temp", "temperature", type=TEMPERATURE, default=0.8, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True)
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True)
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True)
@click.option("--repeat-last-n", type=int, default=64, show_default=True)
@click.option(
    "-s", "--seed", type=click.IntRange(-1, 2**32 - 2), default=-1, help="-1: another one each time."
)
@click.option("-fa", "--flash-attn", is_flag=True, help="Flash attention, also where it is off.")
@click.option("--lora", multiple=True, type=click.Path(), help="A LoRA adapter; may be given again.")
@click.option("--lora-scaled", multiple=True, type=(click.Path(), float), help="One, and how much of it.")
@click.option("--chat-template", help="phi-3, llama-3, vicuna, mistral, chatml, Jinja or a file of it.")
@click.option("--verbose-prompt", is_flag=True, help="Write the prompt's tokens to stderr.")
@click.option("--log-disable", is_flag=True, help="No figures on stderr.")
def llava_cli(
    model: str | None,
    mmproj: str | None,
    images: tuple[str, ...],
    prompt: str | None,
    prompt_file: str | None,
    escape: bool,
    n_predict: int,
    n_ctx: int,
    seed: int,
    flash_attn: bool,
    lora: tuple[str, ...],
    lora_scaled: tuple[tuple[str, float], ...],
    chat_template: str | None,
    verbose_prompt: bool,
    log_disable: bool,
    **options: Any,
) -> None:
    """Ask a LLaVA model about an image.

    With <image> in the prompt, it is taken as it is, special tokens included. Without, it is a question,
    put into the model's own chat template, or LLaVA-1.5's for a file that has none. Without -m and
    --mmproj the small embedded model answers.
    """
    prompt = prompt if prompt_file is None else _read_prompt(prompt_file)
    prompt, embedded = _embedded_image(prompt or "")
    prompt = _unescape(prompt) if escape else prompt
    pictures: list[Any] = [embedded] if embedded is not None else list(images)
    if (model is None) != (mmproj is None):
        raise click.UsageError("-m and --mmproj go together; without both the embedded model answers")
    if n_predict == 0:
        raise click.UsageError("-n 0 asks for no answer")
    if not pictures:
        raise click.UsageError("there is no image: --image FILE, or one in base64 in the prompt")
    check_text(prompt)
    _check_files(pictures)
    load = {name: options.pop(name) for name in ("n_batch", "n_ubatch", "n_threads")}
    load = {name: value for name, value in load.items() if value is not None}
    load |= {"n_ctx": max(n_ctx, MIN_CTX), "n_gpu_layers": options.pop("n_gpu_layers")}
    if flash_attn:
        load["flash_attn"] = True
    options["seed"] = seed if seed >= 0 else None
    options["max_tokens"] = n_predict if n_predict >= 0 else MAX_TOKENS
    load["lora"] = [*lora, *lora_scaled]
    with open_llava(model, mmproj, chat_template=chat_template, n_seq_max=1, **load) as llava:
        for picture in pictures:  # as the program did: each alone, with a fresh context
            _answer(llava, picture, prompt, options, verbose_prompt, log_disable)


def _idle(_: click.Context, option: click.Parameter, value: object) -> None:
    if value:
        print(f"llava-cli: {option.opts[-1]} has no effect here", file=sys.stderr)


# flags that lines of the time often have, and that change no answer
for _names in (["--no-mmap"], ["--mlock"], ["--color"], ["-tb", "--threads-batch"], ["--keep"]):
    _kind: dict[str, Any] = {"type": int} if _names[0] in ("-tb", "--keep") else {"is_flag": True}
    llava_cli.params.append(click.Option(_names, hidden=True, expose_value=False, callback=_idle, **_kind))


def _read_prompt(path: str) -> str:
    from llava_native.errors import InvalidInputError

    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{path}, the file of -f, is no text in UTF-8") from exc


def _check_files(pictures: list[Any]) -> None:
    """Refuse images that are not there, before a model is loaded."""
    for picture in pictures:
        if isinstance(picture, str):
            try:
                Path(picture).stat()
            except OSError as exc:
                raise _no_image(picture, exc) from exc


def _no_image(picture: Any, exc: Exception) -> ImageDecodeError:
    from llava_native.errors import ImageDecodeError

    name = picture if isinstance(picture, str) else "the base64 in the prompt"
    return ImageDecodeError(f"is {name} really an image file? {exc}")


def _embedded_image(prompt: str) -> tuple[str, bytes | None]:
    """Take the first image in base64 out of a prompt."""
    found = _BASE64.search(prompt)
    if found is None:
        return prompt, None
    from llava_native.fetch import load_url

    data = load_url("data:;base64," + found["data"])
    return prompt[: found.start()] + prompt[found.end() :], data


def _answer(
    llava: Llava, picture: Any, prompt: str, options: dict[str, Any], verbose: bool, quiet: bool
) -> None:
    """Answer about one picture: the reply on stdout, the rest on stderr."""
    from llava_native.errors import ImageDecodeError

    parts = _parts(llava, picture, prompt)
    if verbose:
        _show_tokens(llava, parts)
    began = False
    try:
        with llava.stream_prompt(parts, stop=STOPS, **options) as stream:
            for token in stream:
                if not began and not quiet:
                    _report_image(stream)
                began = True
                print(token.text, end="", flush=True)
    except (ImageDecodeError, OSError) as exc:
        if began or isinstance(exc, (BrokenPipeError, TimeoutError)):
            raise
        raise _no_image(picture, exc) from exc
    print(flush=True)
    if not quiet:
        _report_times(stream)


def _parts(llava: Llava, picture: Any, prompt: str) -> list[Part]:
    """Return the whole prompt: what the user wrote around <image>, or a question in a chat template."""
    from llava_native.prompt import Text

    image = llava.planner.image_part(picture)
    before, mark, after = prompt.partition(MARK)  # only the first counts
    if mark:
        return [Text(before, special=True), image, Text(after, special=True)]
    question = prompt or QUESTION
    if llava.planner.template.name == "vicuna":
        return [Text(VICUNA[0], special=True), image, Text(question), Text(VICUNA[1], special=True)]
    return llava.planner.parts(llava.planner.question(question, [picture], None))


def _show_tokens(llava: Llava, parts: list[Part]) -> None:
    from llava_native.prompt import pieces

    for piece in pieces(llava.model, parts):
        if isinstance(piece, list):
            for token in piece:
                text = llava.model.token_bytes(token, special=True).decode("utf-8", "backslashreplace")
                print(f"{token:6d} -> '{text}'", file=sys.stderr)
        else:
            print(f"{len(piece):6d} rows of the image", file=sys.stderr)


def _report_image(stream: TokenStream) -> None:
    n_rows, seconds = stream.usage.image_tokens, stream.timings.encode_s
    print(f"encode_image_with_clip: image embedding created: {n_rows} tokens", file=sys.stderr)
    print(
        f"encode_image_with_clip: image encoded in {seconds * 1e3:8.2f} ms by CLIP "
        f"({seconds * 1e3 / max(n_rows, 1):8.2f} ms per image patch)",
        file=sys.stderr,
    )


def _report_times(stream: TokenStream) -> None:
    times, usage = stream.timings, stream.usage
    prompt = ("prompt eval", times.prefill_s, usage.prompt_tokens)
    answer = ("eval", times.decode_s, usage.completion_tokens)
    for what, seconds, n_tokens in (prompt, answer):
        rate = n_tokens / seconds if seconds else 0.0
        print(
            f"llava_print_timings: {what:>11} time = {seconds * 1e3:10.2f} ms / {n_tokens:5d} tokens "
            f"({rate:8.2f} tokens per second)",
            file=sys.stderr,
        )
