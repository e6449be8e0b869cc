"""Prompts as lists of parts: text that is ours, text that is a user's, and image rows.

Only a template's own text is searched for special tokens. A user's text is text, whatever it says:
``<image>`` or ``<|end|>`` in it changes neither the images nor the special tokens.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from llava_native.errors import PromptTooLongError

if TYPE_CHECKING:
    from llava_native._embedding import ImageEmbedding
    from llava_native._encoder import ImageEncoder
    from llava_native._model import Model
    from llava_native.images import ImageLike

__all__ = [
    "Part",
    "PendingImage",
    "Piece",
    "Prompt",
    "Text",
    "check_length",
    "pieces",
]


@dataclasses.dataclass(frozen=True)
class Text:
    """Text of a prompt; `special` where it is ours and may name special tokens."""

    text: str
    special: bool = False


class PendingImage(NamedTuple):
    """An image of a prompt that is encoded when its stream begins."""

    encoder: ImageEncoder
    image: ImageLike

    def __len__(self) -> int:
        """Rows that it will have; of an encoder with tiles, at least."""
        return self.encoder.n_tokens


Part: TypeAlias = "Text | ImageEmbedding | PendingImage"
Piece: TypeAlias = "list[int] | ImageEmbedding | PendingImage"


class Prompt(NamedTuple):
    """What a stream evaluates before its first token, and how many tokens that is, as far as is known.

    Isolated, texts may be left to the other process as they are; they are not among the tokens.
    """

    pieces: Sequence[Piece | Text]
    n_tokens: int


_SPACES = " \t\n\v\f\r"  # what C's isspace calls one, as llama.cpp does: not every space of Unicode


def pieces(model: Model, parts: Iterable[Part]) -> list[Piece]:
    """Tokenise parts into runs of token ids and images, in their order; BOS first where the model wants it.

    Special tokens are looked for in our own text only. What stands between two of them (or an image) is
    tokenised as one text, ours and the user's together, so that the tokens are those of the whole prompt.
    A BOS that our own text starts with is not put there twice.
    """
    out: list[Piece] = []
    ids: list[int] = [model.bos] if model.add_bos and model.bos >= 0 else []
    specials = {
        text.decode("utf-8", "replace"): (token, left, right)
        for text, token, left, right in model._special()
        if text
    }
    text = ""
    strip_left = False

    def flush() -> None:
        nonlocal text, strip_left
        if strip_left:
            text = text.lstrip(_SPACES)
        if text:
            ids.extend(model.tokenize(text, add_special=False))
        text, strip_left = "", False

    for part in parts:
        if not isinstance(part, Text):
            flush()
            out += [ids, part] if ids else [part]
            ids = []
            continue
        for fragment in _split(part.text, specials) if part.special else [part.text]:
            if not (part.special and fragment in specials):
                text += fragment
                continue
            token, strips_left, strips_right = specials[fragment]
            text = text.rstrip(_SPACES) if strips_left else text
            flush()
            if out or ids != [token] or token != model.bos:
                ids.append(token)
            strip_left = strips_right
    flush()
    return [*out, ids] if ids else out


def _split(text: str, specials: Iterable[str]) -> list[str]:
    """Split text at the special tokens in it, keeping them."""
    found = sorted((special for special in specials if special in text), key=len, reverse=True)
    if not found:
        return [text]
    return [part for part in re.split("(" + "|".join(map(re.escape, found)) + ")", text) if part]


def check_length(n_tokens: int, n_ctx: int) -> None:
    """Raise PromptTooLongError unless the prompt leaves room for a token of the answer."""
    if n_tokens >= n_ctx:
        raise PromptTooLongError(
            f"the prompt has {n_tokens} tokens, and n_ctx={n_ctx} must also hold the answer; shorten it, "
            "use fewer images, or make the context larger",
            n_tokens=n_tokens,
            n_ctx=n_ctx,
        )
