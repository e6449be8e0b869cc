"""A GGUF writer of a few lines, which also copies key/value pairs from another file as they lie there.

The ``gguf`` package takes fifteen seconds to read and write back the 280,000 merges of the Llama-3
vocabulary. Copying the bytes takes a fraction of one, and tests that need a *damaged* file must be
free to write any type under any key.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 32

# GGUF value types by the Python or NumPy type that stands for them.
_SCALARS: dict[type, tuple[int, str]] = {
    np.uint8: (0, "B"),
    np.int8: (1, "b"),
    np.uint16: (2, "H"),
    np.int16: (3, "h"),
    np.uint32: (4, "I"),
    int: (4, "I"),
    np.int32: (5, "i"),
    np.float32: (6, "f"),
    float: (6, "f"),
    bool: (7, "?"),
    np.uint64: (10, "Q"),
    np.int64: (11, "q"),
    np.float64: (12, "d"),
}
_SIZES = {code: struct.calcsize(f"<{form}") for code, form in _SCALARS.values()}
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES = {np.dtype("<f4"): 0, np.dtype("<f2"): 1}


@dataclass(frozen=True)
class Raw:
    """A value with its type, exactly as its bytes lie in a file; `count` is an array's length."""

    data: bytes
    count: int | None = None


def write_gguf(path: Path, kv: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a GGUF v3 file.

    Parameters
    ----------
    path : Path
        The file to write.
    kv : mapping
        Keys and values. ``int`` is written as uint32, ``float`` as float32; a NumPy scalar keeps its
        own type; a list is an array of int32, float32 or strings; a `Raw` is copied.
    tensors : mapping
        float32 or float16 arrays, rows first as NumPy has them (GGUF lists dimensions in reverse).
    """
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(kv)))
    for key, value in kv.items():
        head += _string(key) + _value(value)
    offset = 0
    for name, array in tensors.items():
        head += _string(name) + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *reversed(array.shape))
        head += struct.pack("<IQ", _TENSOR_TYPES[array.dtype], offset)
        offset += _aligned(array.nbytes)
    with path.open("wb") as file:
        file.write(head.ljust(_aligned(len(head)), b"\0"))
        for array in tensors.values():
            file.write(array.tobytes().ljust(_aligned(array.nbytes), b"\0"))


@functools.cache
def read_kv(path: Path) -> dict[str, Raw]:
    """Return the key/value pairs of a GGUF file, undecoded."""
    data = path.read_bytes()
    magic, _version, _n_tensors, n_kv = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file")
    position, pairs = 24, {}
    for _ in range(n_kv):
        end = _after_string(data, position)
        key = data[position + 8 : end].decode()
        position, count = _after_value(data, end)
        pairs[key] = Raw(data[end:position], count)
    return pairs


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    code, form = _SCALARS[type(value)]
    return struct.pack(f"<I{form}", code, value)


def _array(items: list[Any]) -> bytes:
    if isinstance(items[0], str):
        return struct.pack("<IQ", _STRING, len(items)) + b"".join(map(_string, items))
    code, form = (6, "f") if isinstance(items[0], float) else (5, "i")
    return struct.pack(f"<IQ{len(items)}{form}", code, len(items), *items)


def _after_string(data: bytes, position: int) -> int:
    (length,) = struct.unpack_from("<Q", data, position)
    return position + 8 + int(length)


def _after_value(data: bytes, position: int) -> tuple[int, int | None]:
    (code,) = struct.unpack_from("<I", data, position)
    position += 4
    if code == _STRING:
        return _after_string(data, position), None
    if code != _ARRAY:
        return position + _SIZES[code], None
    code, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if code != _STRING:
        return position + count * _SIZES[code], count
    for _ in range(count):
        position = _after_string(data, position)
    return position, count
