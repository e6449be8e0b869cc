"""Tell a text model from an image encoder, and whether two files belong together, by their headers alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from llava_native.errors import EmbeddingMismatchError, ModelFormatError
from llava_native.gguf import GGUFHeader, read_header
from llava_native.preflight.mmproj import MmprojInfo, check_mmproj
from llava_native.preflight.text import TextModelInfo, check_text_model
from llava_native.profiles import assumed_mmproj_keys

__all__ = ["Pair", "is_mmproj", "read_pair"]


class Pair(NamedTuple):
    """A text model and, where there is one, its image encoder: their headers and what they say."""

    text: GGUFHeader
    text_info: TextModelInfo
    mmproj: GGUFHeader | None
    mmproj_info: MmprojInfo | None


def is_mmproj(header: GGUFHeader) -> bool:
    """Tell whether a file calls itself an image encoder."""
    return bool(header.get("general.architecture") == "clip")


def read_pair(paths: Sequence[str | os.PathLike[str]]) -> Pair:
    """Read one or two files, in any order, and check that they make a model.

    Parameters
    ----------
    paths : sequence of path-like
        A text model, and perhaps its mmproj.

    Returns
    -------
    Pair

    Raises
    ------
    ModelFormatError
        There is no text model among them, or there are two of a kind, or one is damaged.
    EmbeddingMismatchError
        They have different widths.
    OSError
        As from ``open()``.
    """
    headers = [read_header(path) for path in paths]
    texts = [header for header in headers if not is_mmproj(header)]
    encoders = [header for header in headers if is_mmproj(header)]
    if len(texts) != 1 or len(encoders) > 1:
        names = " and ".join(header.path for header in headers)
        kinds = f"{len(texts)} text models and {len(encoders)} image encoders (mmproj)"
        raise ModelFormatError(f"{names}: {kinds}; one text model is needed, and one mmproj at most")
    text_info = check_text_model(texts[0])
    if not encoders:
        return Pair(texts[0], text_info, None, None)
    mmproj_info = check_mmproj(encoders[0], assumed=assumed_mmproj_keys(encoders[0]))
    if mmproj_info.n_embd != text_info.n_embd:
        raise EmbeddingMismatchError(
            f"the rows of {encoders[0].path} have {mmproj_info.n_embd} floats, and {texts[0].path} takes "
            f"{text_info.n_embd}: the mmproj belongs to another model"
        )
    return Pair(texts[0], text_info, encoders[0], mmproj_info)
