"""What both checks need: typed access to the metadata, and tensors of a given shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from ..errors import ModelFormatError, UnsupportedModelError
from ..gguf import GGUFArray, GGUFHeader, Tensor

__all__ = ["FLOATS", "MATRIX", "VECTOR", "Keys", "check_tensor"]

# Types that ggml can multiply with activations on every backend; Q8_1 and Q8_K are for activations.
MATRIX: Final = frozenset({
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0",
})  # fmt: skip
FLOATS: Final = frozenset({"F32", "F16", "BF16"})
# Norms and biases: ggml's CPU kernels abort on F32 activations with weights of another type.
VECTOR: Final = frozenset({"F32"})

_INT32_MAX: Final = 2**31 - 1


class Keys:
    """The metadata of a header, with types and ranges checked on access.

    Upstream reads a key as exactly one type: the text loader throws on another, the mmproj loader
    aborts. Every method takes a `default` for keys that may be absent; without one they must exist.
    """

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header

    def fail(self, what: str) -> NoReturn:
        """Raise for a file whose content contradicts itself."""
        raise ModelFormatError(f"{self.header.path}: {what}")

    def unsupported(self, what: str) -> NoReturn:
        """Raise for a sound file that this package does not run."""
        raise UnsupportedModelError(f"{self.header.path}: {what}")

    def has(self, key: str) -> bool:
        """Tell whether `key` exists."""
        return key in self.header.metadata

    def u32(self, key: str, default: int | None = None, *, low: int = 0, high: int = _INT32_MAX) -> int:
        """Return an unsigned number within `low` and `high`; the default is not checked."""
        if default is not None and not self.has(key):
            return default
        return self._within(key, self._typed(key, "u32"), low, high)

    def f32(self, key: str, default: float | None = None, *, low: float = -math.inf) -> float:
        """Return a finite number that is not below `low`."""
        if default is not None and not self.has(key):
            return default
        value: float = self._typed(key, "f32")
        if not math.isfinite(value) or value < low:
            self.fail(f"{key} is {value}")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a boolean."""
        if default is not None and not self.has(key):
            return default
        return bool(self._typed(key, "bool"))

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        if default is not None and not self.has(key):
            return default
        return str(self._typed(key, "str"))

    def array(self, key: str, *item_types: str) -> GGUFArray | None:
        """Return an array with items of one of these types, or None where the key is absent."""
        if not self.has(key):
            return None
        value: GGUFArray = self._typed(key, "array")
        if value.item_type not in item_types:
            self.fail(f"{key} must hold {' or '.join(item_types)}, not {value.item_type}")
        return value

    def numbers(self, key: str, item_type: str) -> tuple[Any, ...]:
        """Return the items of a short array of numbers, none where the key is absent."""
        value = self.array(key, item_type)
        if value is None:
            return ()
        if len(value) > 4096:
            self.fail(f"{key} has {len(value)} items")
        return tuple(value.tolist())

    def per_layer(self, key: str, n_layer: int, default: int, *, high: int = _INT32_MAX) -> tuple[int, ...]:
        """Return a number for each layer, given as one u32 or as an array."""
        if not self.has(key):
            return (default,) * n_layer
        if self.header.metadata[key].type != "array":
            return (self.u32(key, high=high),) * n_layer
        items = self.array(key, "u32", "i32", "bool")
        if items is None or len(items) != n_layer:
            self.fail(f"{key} has {len(items or ())} items for {n_layer} layers")
        return tuple(self._within(key, int(item), 0, high) for item in items.tolist())

    def _typed(self, key: str, kind: str) -> Any:
        found = self.header.metadata.get(key)
        if found is None:
            self.fail(f"the key {key} is missing")
        if found.type != kind:
            self.fail(f"{key} must be of type {kind}, not {found.type}")
        return found.value

    def _within(self, key: str, value: int, low: int, high: int) -> int:
        if not low <= value <= high:
            self.fail(f"{key} is {value}, not within {low} and {high}")
        return value


def check_tensor(
    keys: Keys,
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
    types: frozenset[str],
    *,
    required: bool = True,
) -> None:
    """Refuse a tensor that is missing, or of another shape or type than the graph expects."""
    tensor = tensors.get(name)
    if tensor is None:
        if required:
            keys.fail(f"the tensor {name} is missing")
        return
    if tensor.ne != shape + (1,) * (4 - len(shape)):
        keys.fail(f"the tensor {name} has shape {tensor.shape}, expected {shape}")
    if tensor.type not in types:
        keys.unsupported(f"the tensor {name} has type {tensor.type}, which its place does not take")
