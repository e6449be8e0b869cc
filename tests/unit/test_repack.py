"""Which weights llama.cpp copies into another order, and when that is left out."""

from __future__ import annotations

import pytest

from llava_native.gguf import Tensor
from llava_native.repack import repacked_nbytes, should_repack

FEATURES = {
    "avx2": ("SSE3", "AVX", "AVX2", "REPACK"),
    "avx512": ("AVX", "AVX2", "AVX512", "REPACK"),
    "vnni": ("AVX", "AVX2", "AVX512", "AVX512_VNNI", "REPACK"),
    "arm": ("NEON", "DOTPROD", "REPACK"),
    "none": ("SSE3", "AVX", "AVX2"),
}


def cpu(name):
    return [
        {"type": "cpu", "features": dict.fromkeys(FEATURES[name], "1") | {"AMX_INT8": "0"}},
        {"type": "gpu", "features": {}},
    ]


def tensors(**types):
    """Matrices of 8 rows: type=bytes."""
    return [Tensor(f"blk.0.{kind}", (256, 8), kind, 0, size) for kind, size in types.items()]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("avx2", {"Q4_0": 10, "Q4_K": 20}),
        ("avx512", {"Q4_0": 10, "Q4_K": 20, "Q2_K": 5}),
        ("arm", {"Q4_0": 10, "Q4_K": 20, "Q6_K": 40}),
        ("none", {}),
    ],
)
def test_what_is_copied_is_the_cpus_business(name, sizes):
    weights = tensors(Q4_0=10, Q4_K=20, Q6_K=40, Q2_K=5, F16=80)
    assert repacked_nbytes(weights, cpu(name)) == sizes


def test_what_is_not_multiplied_in_groups_of_rows_is_not_copied():
    rows = Tensor("token_embd.weight", (256, 8), "Q4_0", 0, 10)
    odd = Tensor("output.weight", (256, 9), "Q4_0", 0, 10)
    flat = Tensor("blk.0.attn_norm.weight", (256,), "Q4_0", 0, 10)
    assert repacked_nbytes([rows, odd, flat], cpu("avx2")) == {}


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("avx2", {"Q4_K": 20, "Q6_K": 40}, False),
        ("avx2", {"Q4_K": 20, "Q4_0": 10}, False),
        ("avx2", {"Q4_K": 10, "Q4_0": 20}, True),
        ("avx2", {"Q4_0": 20}, True),
        ("avx2", {"Q8_0": 20}, True),  # nothing would be copied
        ("avx512", {"Q4_K": 20}, True),
        ("vnni", {"Q4_K": 20}, False),
        ("vnni", {"Q4_0": 20}, True),
        ("arm", {"Q4_K": 20}, True),
    ],
)
def test_left_out_where_most_would_be_slower(name, weights, expected):
    assert should_repack(tensors(**weights), cpu(name)) is expected
