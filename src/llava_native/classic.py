"""The classic names: llava.h and clip.h of llama.cpp's examples/llava, 2023 to 2025, in Python.

``libllava`` was removed upstream in May 2025; these functions keep its names and meanings on today's
library. Pointers are buffers and objects, and what returned false or NULL raises.

What differs: image rows are Hugging Face's (the classic program ran one block less, padded below and to
the right, and resized without anti-aliasing); errors are exceptions of ``llava_native.errors``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llava_native._embedding import ImageEmbedding
from llava_native._encoder import ImageEncoder
from llava_native.errors import ClosedError, EmbeddingMismatchError, InvalidInputError

if TYPE_CHECKING:
    from llava_native._context import Context

__all__ = [
    "ClipCtx",
    "LlavaImageEmbed",
    "clip_embd_nbytes",
    "clip_free",
    "clip_image_size",
    "clip_model_load",
    "clip_n_mmproj_embd",
    "clip_n_patches",
    "llava_eval_image_embed",
    "llava_image_embed_free",
    "llava_image_embed_make_with_bytes",
    "llava_image_embed_make_with_filename",
    "llava_validate_embed_size",
]


class ClipCtx:
    """What ``clip_model_load`` returns: an encoder whose thread count may change between calls."""

    def __init__(self, fname: str) -> None:
        self._fname = fname
        self._encoder: ImageEncoder | None = ImageEncoder(fname)

    def encoder(self, n_threads: int | None = None) -> ImageEncoder:
        """Return the encoder with that many threads; a new number loads the file again."""
        if self._encoder is None:
            raise ClosedError("this clip_ctx was freed")
        if n_threads is not None and n_threads != self._encoder.n_threads:
            replacement = ImageEncoder(self._fname, n_threads=n_threads)
            self._encoder.close()
            self._encoder = replacement
        return self._encoder

    def free(self) -> None:
        """Free the encoder."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


class LlavaImageEmbed:
    """``struct llava_image_embed``: the rows of one image.

    Attributes
    ----------
    n_image_pos : int
        Rows.
    """

    def __init__(self, embed: ImageEmbedding) -> None:
        self._embed: ImageEmbedding | None = embed
        self.n_image_pos = embed.n_tokens

    @property
    def embed(self) -> ImageEmbedding:
        """The rows, a float32 buffer of shape (n_image_pos, n_embd)."""
        if self._embed is None:
            raise ClosedError("this llava_image_embed was freed")
        return self._embed

    def free(self) -> None:
        """Drop the rows; arrays that share their memory keep it."""
        self._embed = None


def clip_model_load(fname: str | os.PathLike[str], verbosity: int = 1) -> ClipCtx:
    """Load an mmproj file. `verbosity` has no effect: what it printed goes to ``logging``.

    Raises
    ------
    LlavaError, OSError
        As ``ImageEncoder``.
    """
    if verbosity < 0:
        raise InvalidInputError(f"verbosity must be at least 0, not {verbosity}")
    return ClipCtx(os.fsdecode(fname))


def clip_free(ctx: ClipCtx) -> None:
    """Free the encoder; embeddings that it made stay valid."""
    ctx.free()


def clip_n_mmproj_embd(ctx: ClipCtx) -> int:
    """Return the floats in a row."""
    return ctx.encoder().n_embd


def clip_image_size(ctx: ClipCtx) -> int:
    """Return the side in pixels of the square that the tower sees."""
    return ctx.encoder().image_size


def clip_n_patches(ctx: ClipCtx) -> int:
    """Return the rows of one image."""
    return ctx.encoder().n_tokens


def clip_embd_nbytes(ctx: ClipCtx) -> int:
    """Return the bytes of the rows of one image."""
    return clip_n_patches(ctx) * clip_n_mmproj_embd(ctx) * 4


def llava_validate_embed_size(ctx_llama: Context, ctx_clip: ClipCtx) -> bool:
    """Return True; raise ``EmbeddingMismatchError`` where the two belong to different models."""
    n_text, n_image = ctx_llama.model.n_embd, clip_n_mmproj_embd(ctx_clip)
    if n_text != n_image:
        raise EmbeddingMismatchError(
            f"the embedding of the language model has {n_text} floats and the projector's {n_image}: "
            "use the mmproj file that belongs to this model"
        )
    return True


def llava_image_embed_make_with_bytes(ctx_clip: ClipCtx, n_threads: int, image_bytes: Any) -> LlavaImageEmbed:
    """Encode an encoded image file in memory: bytes, or any buffer of them, which is only read.

    Raises
    ------
    ImageDecodeError, ImageTooLargeError
        It is not an image, a damaged one, or too large.
    """
    return LlavaImageEmbed(ctx_clip.encoder(n_threads).encode(memoryview(image_bytes)))


def llava_image_embed_make_with_filename(
    ctx_clip: ClipCtx, n_threads: int, image_path: str | os.PathLike[str]
) -> LlavaImageEmbed:
    """Encode an image file; raises as ``…_with_bytes``, and as ``open()``."""
    return LlavaImageEmbed(ctx_clip.encoder(n_threads).encode(os.fspath(image_path)))


def llava_image_embed_free(embed: LlavaImageEmbed) -> None:
    """Drop the rows."""
    embed.free()


def llava_eval_image_embed(ctx_llama: Context, embed: LlavaImageEmbed, n_batch: int, n_past: int) -> int:
    """Evaluate image rows into sequence 0, from position `n_past` on.

    Parameters
    ----------
    ctx_llama : Context
    embed : LlavaImageEmbed
    n_batch : int
        At least 1. The context's own ``n_batch`` decides the slices; they do not change the result.
    n_past : int
        Tokens to keep; what the sequence holds beyond them is dropped, as its positions are used again.

    Returns
    -------
    int
        The new ``n_past``.

    Raises
    ------
    InvalidInputError
        `n_past` is more than the sequence holds.
    ContextFullError, DecodeError
        As ``Context.eval``.
    """
    if n_batch < 1:
        raise InvalidInputError(f"n_batch must be at least 1, not {n_batch}")
    if n_past != ctx_llama.n_past():
        ctx_llama.truncate_sequence(0, n_past)
    return ctx_llama.eval(embed.embed)
