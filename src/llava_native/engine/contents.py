"""What the pieces of a prompt are to the caches, and how that is written down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from llava_native._embedding import ImageEmbedding
from llava_native.engine.embedding_cache import pixels_key, rows_key
from llava_native.engine.sequences import Content, ImageSpan

if TYPE_CHECKING:
    from llava_native.prompt import PendingImage, Piece

__all__ = ["content_of", "from_data", "natural", "to_data"]


def content_of(pieces: Iterable[Piece]) -> Content:
    """Return what the engine would evaluate of pieces; it ends at the first of which that is not known."""
    content: Content = []
    for piece in pieces:
        found = piece if isinstance(piece, list) else _span(piece)
        if found is None:
            break
        content.append(found)
    return content


def _span(piece: ImageEmbedding | PendingImage) -> ImageSpan | None:
    if isinstance(piece, ImageEmbedding):
        return ImageSpan(rows_key(piece), piece.n_tokens)
    pixels = piece.encoder.prepare(piece.image)
    if pixels.width != piece.encoder.image_size or pixels.height != piece.encoder.image_size:
        return None  # an encoder with tiles tells how many rows there are when it has made them
    return ImageSpan(pixels_key(pixels, piece.encoder), len(piece))


def to_data(content: Content) -> list[Any]:
    """Return a content as JSON can have it."""
    return [list(segment) if isinstance(segment, ImageSpan) else {"ids": segment} for segment in content]


def from_data(data: list[Any]) -> Content:
    """Return the content that ``to_data`` wrote.

    Raises
    ------
    TypeError, ValueError, LookupError
        It is none.
    """
    content: Content = []
    for segment in data:
        if isinstance(segment, dict):
            content.append([natural(token) for token in segment["ids"]])
        else:
            key, n_tokens = segment
            content.append(ImageSpan(str(key), natural(n_tokens)))
    return content


def natural(value: Any) -> int:
    """Return a number from a file, of 0 to 2**31 - 1; TypeError where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise TypeError(f"{value!r} is not a natural number")
    return value
