"""Which weights llama.cpp copies into another order, and when that is left out."""

from __future__ import annotations

import pytest

from llava_native.gguf import Tensor
from llava_native.repack import copied_nbytes, should_repack

FEATURES = {
    "avx2": ("SSE3", "AVX", "AVX2", "REPACK"),
    "avx512": ("AVX", "AVX2", "AVX512", "REPACK"),
    "vnni": ("AVX", "AVX2", "AVX512", "AVX512_VNNI", "REPACK"),
    "amx": ("AVX", "AVX2", "AVX512", "AVX512_VNNI", "AMX_INT8", "REPACK"),
    "arm": ("NEON", "DOTPROD", "REPACK"),
    "none": ("SSE3", "AVX", "AVX2"),
}


def cpu(name):
    return [
        {"type": "cpu", "features": {"AMX_INT8": "0"} | dict.fromkeys(FEATURES[name], "1")},
        {"type": "gpu", "features": {}},
    ]


def tensors(**types):
    """Matrices of 32 rows: type=bytes."""
    return [Tensor(f"blk.0.{kind}", (256, 32), kind, 0, size) for kind, size in types.items()]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("avx2", {"Q4_0": 10, "Q4_K": 1440}),
        ("avx512", {"Q4_0": 10, "Q4_K": 1440, "Q2_K": 5}),
        ("arm", {"Q4_0": 10, "Q4_K": 1440, "Q6_K": 40}),
        ("amx", {"Q4_0": 10, "Q4_K": 1480, "Q6_K": 40, "Q2_K": 5, "F16": 80}),
        ("none", {}),
    ],
)
def test_what_is_copied_is_the_cpus_business(name, sizes):
    weights = tensors(Q4_0=10, Q4_K=1440, Q6_K=40, Q2_K=5, F16=80)
    assert copied_nbytes(weights, cpu(name)) == {f"blk.0.{kind}": size for kind, size in sizes.items()}


def test_what_is_not_multiplied_in_groups_of_rows_is_not_copied():
    rows = Tensor("token_embd.weight", (256, 32), "Q4_0", 0, 10)
    odd = Tensor("output.weight", (256, 33), "Q4_0", 0, 10)
    flat = Tensor("blk.0.attn_norm.weight", (256,), "Q4_0", 0, 10)
    assert copied_nbytes([rows, odd, flat], cpu("avx2")) == {}
    few = Tensor("blk.0.attn_k.weight", (256, 8), "Q8_0", 0, 10)  # AMX wants 32 rows
    assert copied_nbytes([few], cpu("amx")) == {}
    assert copied_nbytes([Tensor(few.name, few.shape, "Q4_0", 0, 10)], cpu("amx")) == {few.name: 10}
    experts = Tensor("blk.0.ffn_up_exps.weight", (256, 32, 4), "Q6_K", 0, 10)  # nor does it take these
    assert copied_nbytes([experts], cpu("amx")) == {}


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
        ("amx", {"Q4_K": 20, "Q6_K": 40, "Q8_0": 10, "F16": 10}, False),
        ("amx", {"Q4_0": 20, "F16": 10}, True),
        ("arm", {"Q4_K": 20}, True),
    ],
)
def test_left_out_where_most_would_be_slower(name, weights, expected):
    assert should_repack(tensors(**weights), cpu(name)) is expected
