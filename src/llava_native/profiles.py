"""What old model files lack, and what it is: supplied at load, never written into the user's file.

Files from before May 2024 do not name their pre-tokenizer, nor the token that ends a turn; the first LLaVA
encoders do not say that they are what they are. Each thing supplied is one line in the log.
"""

from __future__ import annotations

import logging
from typing import Final

from llava_native.gguf import GGUFHeader

__all__ = ["assumed_mmproj_keys", "text_overrides"]

_log = logging.getLogger("llava_native")

_TOKENS: Final = "tokenizer.ggml.tokens"
_END_OF_TURN: Final = (b"<|eot_id|>", b"<|im_end|>", b"<|end|>")
_LLAVA_TENSORS: Final = frozenset({"v.patch_embd.weight", "mm.0.weight", "mm.2.weight"})
_COLOURS: Final = frozenset({"clip.vision.image_mean", "clip.vision.image_std"})


def text_overrides(header: GGUFHeader) -> dict[str, bool | int | float | str]:
    """Return the metadata that a text model lacks, as ``Model(kv_overrides=…)`` takes it.

    Parameters
    ----------
    header : GGUFHeader

    Returns
    -------
    dict
        ``tokenizer.ggml.pre`` for a vocabulary of Llama 3 without one: without it llama.cpp splits text
        otherwise than the model was trained, adds no BOS, and overflows the stack on long runs of
        digits. And the token that ends a turn, where the file names only the one that ends a text.
    """
    found: dict[str, bool | int | float | str] = {}
    tokens = header.get(_TOKENS)
    if tokens is None or getattr(tokens, "item_type", None) != "str":
        return found
    known = tokens.strings()
    unnamed = header.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in header.metadata
    if unnamed and b"<|start_header_id|>" in known and b"<|eot_id|>" in known:
        found["tokenizer.ggml.pre"] = "llama-bpe"
        _log.info("%s names no pre-tokenizer; Llama 3's is used", header.path)
    if "tokenizer.ggml.eot_token_id" not in header.metadata:
        end = next((token for token in _END_OF_TURN if token in known), None)
        if end is not None:
            found["tokenizer.ggml.eot_token_id"] = known.index(end)
            _log.info("%s names no end of a turn; %s is used", header.path, end.decode())
    return found


def assumed_mmproj_keys(header: GGUFHeader) -> frozenset[str]:
    """Return the keys of an encoder that the first LLaVA files lack, and our patch 0006 supplies.

    Parameters
    ----------
    header : GGUFHeader

    Returns
    -------
    frozenset of str
        For ``check_mmproj``; empty where nothing is lacking or the tensors are not those of a LLaVA.
    """
    if header.get("general.architecture") != "clip" or not set(header.tensors) >= _LLAVA_TENSORS:
        return frozenset()
    keys = {"clip.has_vision_encoder", "clip.projector_type", *_COLOURS} - set(header.metadata)
    if "clip.vision.projector_type" in header.metadata:
        keys.discard("clip.projector_type")
    if not keys >= _COLOURS:  # one of the two alone is damage
        keys -= _COLOURS
    if keys:
        _log.info("%s lacks %s; LLaVA-1.5's are used", header.path, ", ".join(sorted(keys)))
    return frozenset(keys)
