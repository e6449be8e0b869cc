"""Limits on what a context may be asked for, known before the library allocates anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava_native.errors import InvalidInputError

if TYPE_CHECKING:
    from llava_native._model import Model

__all__ = ["check_cache_types", "check_memory", "check_range"]

_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1}
_BLOCKS = {"q8_0": 32}  # numbers that are kept together
_CELL_BYTES = 44  # position, shift, sequences and counters of a cell, src/llama-kv-cells.h


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise InvalidInputError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise InvalidInputError(f"{name} must be {low} to {high}, not {value}")


def check_memory(
    model: Model, n_ctx: int, type_k: str, type_v: str, devices: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a memory larger than the machine's: the library writes all of it, and the system kills then."""
    kv_heads, keys, values = _heads(model)  # a number a layer: count the tables only
    head = keys * _BYTES[type_k] + values * _BYTES[type_v]
    needed = n_ctx * (_CELL_BYTES + model.n_layer * kv_heads * head)
    total = sum(device["memory_total"] for device in devices)
    if needed > total:
        raise InvalidInputError(
            f"n_ctx={n_ctx} takes {needed / 2**30:.1f} GiB, and this machine has {total / 2**30:.1f} in all"
        )


def check_cache_types(model: Model, type_k: str, type_v: str) -> None:
    """Refuse blocks that do not divide a head: without flash attention the library never looks.

    It reads the wrong numbers then, or aborts.
    """
    _, keys, values = _heads(model)
    for name, kind, length in (("type_k", type_k, keys), ("type_v", type_v, values)):
        block = _BLOCKS.get(kind, 1)
        if block > 1 and (not length or length % block):
            raise InvalidInputError(
                f"{name}={kind!r} keeps {block} numbers together, which does not divide the heads of this "
                f"model ({length or 'unknown'} wide): use 'f16'"
            )


def _heads(model: Model) -> tuple[int, int, int]:
    """Return how many heads the cache has, how wide their keys are, and their values.

    Zeros if a file gives a number a layer.
    """
    metadata = model.metadata
    attention = metadata.get("general.architecture", "") + ".attention."
    try:
        heads = int(metadata[attention + "head_count"])
        width = model.n_embd // heads
        kv_heads = int(metadata.get(attention + "head_count_kv", heads))
        keys = int(metadata.get(attention + "key_length", width))
        return kv_heads, keys, int(metadata.get(attention + "value_length", width))
    except (KeyError, ValueError, ZeroDivisionError):
        return 0, 0, 0
