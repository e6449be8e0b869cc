"""A GGUF file taken apart, so that a test can change one thing in it and write it back."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import gguf_file

# ggml's tensor types that tests write: number -> elements and bytes of a block.
SIZES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144),
    13: (256, 176), 14: (256, 210), 15: (256, 292), 23: (256, 136), 24: (1, 1), 30: (1, 2),
}  # fmt: skip


@dataclass
class RawTensor:
    """A tensor as it lies in a file: shape in ggml's order, number of its type, bytes."""

    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None  # where the table shall say that it lies, if not where it does


@dataclass
class Parts:
    """A GGUF file taken apart."""

    kv: dict[str, bytes]
    tensors: dict[str, RawTensor]
    version: int = 3
    n_tensors: int | None = None
    n_kv: int | None = None
    extra_kv: list[tuple[bytes, bytes]] = field(default_factory=list)
    extra_tensors: list[tuple[bytes, RawTensor]] = field(default_factory=list)
    alignment: int = 32

    @classmethod
    def read(cls, path: Path) -> Parts:
        """Take a good file apart."""
        kv = {key: raw.data for key, raw in gguf_file.read_kv(path).items()}
        data = path.read_bytes()
        _, version, n_tensors, _ = struct.unpack_from("<4sIQQ", data)
        position = 24 + sum(8 + len(key.encode()) + len(value) for key, value in kv.items())
        table = []
        for _ in range(n_tensors):
            (size,) = struct.unpack_from("<Q", data, position)
            name = data[position + 8 : position + 8 + size].decode()
            position += 8 + size
            (n_dims,) = struct.unpack_from("<I", data, position)
            *shape, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, position + 4)
            position += 4 + 8 * n_dims + 12
            table.append((name, tuple(shape), kind, offset))
        start = -(-position // 32) * 32
        tensors = {
            name: RawTensor(shape, kind, data[start + offset : start + offset + nbytes(shape, kind)])
            for name, shape, kind, offset in table
        }
        return cls(kv, tensors, version)

    def set(self, key: str, value: Any) -> None:
        """Replace or add a value; see `gguf_file.write_gguf` for the types."""
        self.kv[key] = gguf_file._value(value)

    def reshape(self, name: str, shape: tuple[int, ...], kind: int | None = None) -> None:
        """Give a tensor another shape, and zeros for data."""
        kind = self.tensors[name].type if kind is None else kind
        self.tensors[name] = RawTensor(shape, kind, bytes(nbytes(shape, kind)))

    def to_bytes(self) -> bytes:
        """Return the file."""
        pairs = [(key.encode(), value) for key, value in self.kv.items()] + self.extra_kv
        table = [(name.encode(), tensor) for name, tensor in self.tensors.items()] + self.extra_tensors
        n_tensors = len(table) if self.n_tensors is None else self.n_tensors
        n_kv = len(pairs) if self.n_kv is None else self.n_kv
        head = bytearray(struct.pack("<4sIQQ", b"GGUF", self.version, n_tensors, n_kv))
        for key, value in pairs:
            head += struct.pack("<Q", len(key)) + key + value
        body = bytearray()
        for name, tensor in table:
            offset = len(body) if tensor.offset is None else tensor.offset
            head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
            head += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset)
            body += tensor.data + bytes(-len(tensor.data) % self.alignment)
        return bytes(head) + bytes(-len(head) % self.alignment) + bytes(body)


def nbytes(shape: tuple[int, ...], kind: int) -> int:
    """Return the size of a tensor's data."""
    block, size = SIZES[kind]
    return int(np.prod(shape, dtype=object)) // block * size
