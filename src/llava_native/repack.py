"""Repacking: copies of quantised weights, in the order that a CPU's kernels want (ggml-cpu/repack.cpp)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from llava_native.gguf import Tensor

__all__ = ["repacked_nbytes", "should_repack"]

# What is copied, by what the CPU has.
_REPACKED: Final = {
    "AVX2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "AVX512": {"Q2_K"},
    "DOTPROD": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"},
}
# What AVX2 alone, and AVX-512 with VNNI, multiply faster as it is stored, see docs/benchmarks.md.
_SLOWER: Final = {"Q4_K"}


def repacked_nbytes(tensors: Iterable[Tensor], devices: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the bytes of the weights that would be copied, by their type.

    Parameters
    ----------
    tensors : iterable of Tensor
        Of a text model.
    devices : sequence of mapping
        As ``llava_native.devices`` returns them.
    """
    has = _cpu_features(devices)
    copied = set().union(*(types for feature, types in _REPACKED.items() if feature in has))
    if "REPACK" not in has:
        copied.clear()
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.type in copied and _is_multiplied(tensor):
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
    return sizes


def should_repack(tensors: Iterable[Tensor], devices: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the copies are worth their time and memory: whether most of them are multiplied faster.

    Notes
    -----
    Weights that are not copied stay mapped from their file, and processes share them.
    """
    has = _cpu_features(devices)
    if "AVX2" not in has or ("AVX512" in has and "AVX512_VNNI" not in has):
        return True
    sizes = repacked_nbytes(tensors, devices)
    return 2 * sum(size for kind, size in sizes.items() if kind in _SLOWER) <= sum(sizes.values())


def _cpu_features(devices: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Return what the CPU has; a GPU's device tells features of its own, none of these."""
    return frozenset(
        feature
        for device in devices
        for feature, value in device.get("features", {}).items()
        if value not in ("0", "")
    )


def _is_multiplied(tensor: Tensor) -> bool:
    """Tell whether matrices are multiplied with a tensor, in whole groups of rows."""
    return (
        len(tensor.shape) >= 2
        and tensor.shape[1] % 8 == 0
        and tensor.name != "token_embd.weight"  # whose rows are looked up
    )
