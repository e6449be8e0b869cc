"""Limits that follow from a model's metadata."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llava_native.errors import InvalidInputError
from llava_native.limits import check_cache_types, check_memory


def model(**attention: int) -> SimpleNamespace:
    metadata = {f"llama.attention.{key}": str(value) for key, value in attention.items()}
    return SimpleNamespace(n_embd=320, n_layer=2, metadata={"general.architecture": "llama", **metadata})


def test_keys_and_values_have_widths_of_their_own():
    odd_keys = model(head_count=4, key_length=80, value_length=64)
    check_cache_types(odd_keys, "f16", "q8_0")
    with pytest.raises(InvalidInputError, match=r"type_k='q8_0' .* \(80 wide\)"):
        check_cache_types(odd_keys, "q8_0", "f16")
    with pytest.raises(InvalidInputError, match=r"type_v='q8_0' .* \(80 wide\)"):
        check_cache_types(model(head_count=4), "f16", "q8_0")


def test_a_number_a_layer_is_not_guessed_from():
    with pytest.raises(InvalidInputError, match="unknown wide"):
        check_cache_types(model(), "q8_0", "f16")


def test_keys_and_values_must_fit_into_the_machine():
    cells, wide = 1000, model(head_count=4, head_count_kv=2, key_length=96, value_length=32)
    keys_and_values = cells * 2 * 2 * (96 + 32) * 2  # layers, heads, numbers, bytes
    check_memory(wide, cells, "f16", "f16", [{"memory_total": keys_and_values + cells * 100}])
    with pytest.raises(InvalidInputError, match="n_ctx=1000 takes"):
        check_memory(wide, cells, "f16", "f16", [{"memory_total": keys_and_values}])
