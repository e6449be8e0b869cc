"""Repacking: copies of weights in the order that a CPU's kernels want (ggml-cpu/repack.cpp, ggml-cpu/amx)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from llava_native.gguf import Tensor
from llava_native.machine import cpu_features

__all__ = ["copied_nbytes", "should_repack"]

# What is copied, by what the CPU has.
_REPACKED: Final = {
    "AVX2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "AVX512": {"Q2_K"},
    "DOTPROD": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4", "Q1_0"},
}
# What AMX copies first, and how much larger the copy is.
_AMX: Final = {
    "Q4_0": 1.0,
    "Q4_1": 1.0,
    "Q8_0": 38 / 34,
    "Q4_K": 148 / 144,
    "Q5_K": 180 / 176,
    "Q6_K": 1.0,
    "IQ4_XS": 138 / 136,
    "F16": 1.0,
}
# What is multiplied as fast as it is stored (docs/benchmarks.md): by AVX2 alone or AVX-512 with VNNI; by AMX.
_NO_FASTER: Final = {"Q4_K"}
_NO_FASTER_BY_AMX: Final = {"Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"}


def copied_nbytes(tensors: Iterable[Tensor], devices: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the bytes of the copies that would be made, by the name of the weight that is copied.

    Parameters
    ----------
    tensors : iterable of Tensor
        Of a text model.
    devices : sequence of mapping
        As ``llava_native.devices`` returns them.
    """
    has = cpu_features(devices)
    repacked = set().union(*(types for feature, types in _REPACKED.items() if feature in has))
    if "REPACK" not in has:
        repacked.clear()
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) < 2 or tensor.name == "token_embd.weight":  # whose rows are looked up
            continue
        by_amx = "AMX_INT8" in has and tensor.type in _AMX and len(tensor.shape) == 2
        if by_amx and tensor.shape[1] % 32 == 0:
            sizes[tensor.name] = round(tensor.nbytes * _AMX[tensor.type])
        elif tensor.type in repacked and tensor.shape[1] % 8 == 0:
            sizes[tensor.name] = tensor.nbytes
    return sizes


def should_repack(tensors: Collection[Tensor], devices: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the copies are worth their time and memory: whether most of them are multiplied faster.

    Notes
    -----
    Weights that are not copied stay mapped from their file, and processes share them.
    """
    has = cpu_features(devices)
    if "AVX2" not in has or ("AVX512" in has and "AVX512_VNNI" not in has):
        return True
    no_faster = _NO_FASTER_BY_AMX if "AMX_INT8" in has else _NO_FASTER
    sizes = copied_nbytes(tensors, devices)
    useless = sum(sizes.get(tensor.name, 0) for tensor in tensors if tensor.type in no_faster)
    return 2 * useless <= sum(sizes.values())
