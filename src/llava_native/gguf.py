"""Read the header of a GGUF file: key/value pairs and the tensor table, never the weights.

The native loaders abort the process on many headers that this module, and `preflight` on top of it,
turn into exceptions. It therefore reads a header exactly as ``ggml/src/gguf.cpp`` does, refuses what
that refuses, and refuses a little more where upstream would read past what it checked. Nothing is
allocated or looped over on the word of the file: every claimed count is first compared with the bytes
that are there.

The native libraries are not needed for it, and the vocabulary is left undecoded until somebody asks.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from ._strings import plainly_distinct, skip_strings, take_strings
from .errors import ModelFormatError, UnsupportedModelError

__all__ = ["GGUFArray", "GGUFHeader", "Tensor", "Value", "read_header"]

# Longest header that is read. The largest real ones, 250,000 tokens and their merges, have 20 MiB.
MAX_HEADER_BYTES: Final = 256 << 20
_MAX_PAIRS: Final = 1 << 16
_MAX_TENSORS: Final = 1 << 17
_MAX_DIMS: Final = 4  # GGML_MAX_DIMS
_MAX_NAME: Final = 64  # GGML_MAX_NAME, with its final NUL
_CHUNK: Final = 1 << 18
_LIKELY: Final = 20  # bytes of a string with its length; so many are read at once

_STRING: Final = 8
_ARRAY: Final = 9
# GGUF value types: number in the file -> our name for it and its struct format.
_SCALARS: Final[dict[int, tuple[str, struct.Struct]]] = {
    code: (name, struct.Struct("<" + form))
    for code, name, form in (
        (0, "u8", "B"), (1, "i8", "b"), (2, "u16", "H"), (3, "i16", "h"), (4, "u32", "I"), (5, "i32", "i"),
        (6, "f32", "f"), (7, "bool", "?"), (10, "u64", "Q"), (11, "i64", "q"), (12, "f64", "d"),
    )
}  # fmt: skip

# ggml tensor types: number in the file -> name, elements in a block, bytes in a block.
_TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
_REMOVED_TENSOR_TYPES: Final = frozenset({4, 5, 31, 32, 33, 36, 37, 38})

# First bytes of the files that people pass by mistake.
_OTHER_FILES: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself: run 'git lfs pull'"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint: convert it to GGUF first"),
    (b"<", "a web page: the download failed"),
    ((b"lmgg", b"fmgg", b"tjgg"), "a ggml file from before GGUF: convert the model again"),
)


class Value(NamedTuple):
    """A metadata value and its type: ``"u32"``, ``"f32"``, ``"bool"``, ``"str"``, ``"array"`` and so on."""

    type: str
    value: Any


class Tensor(NamedTuple):
    """An entry of the tensor table.

    Attributes
    ----------
    shape : tuple of int
        ggml's order: the length of a row comes first.
    type : str
        ggml's name, e.g. ``"F16"`` or ``"Q4_K"``.
    offset, nbytes : int
        Where the data lies, counted from the header's `data_offset`, and its size.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def ne(self) -> tuple[int, ...]:
        """The shape with all four dimensions, as upstream compares it."""
        return self.shape + (1,) * (_MAX_DIMS - len(self.shape))


class GGUFArray:
    """An array of the metadata, decoded when asked for.

    Attributes
    ----------
    item_type : str
        ``"str"`` or a scalar type as in `Value`.
    """

    __slots__ = ("_code", "_count", "_kept", "_source", "_start", "item_type")

    def __init__(self, source: _Source, code: int, count: int, start: int) -> None:
        self.item_type = "str" if code == _STRING else _SCALARS[code][0]
        self._source = source
        self._code = code
        self._count = count
        self._start = start
        self._kept: list[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"GGUFArray({self.item_type}, length {self._count})"

    def tolist(self) -> list[Any]:
        """Return the items; strings are decoded as UTF-8, with U+FFFD for what is not."""
        if self._code == _STRING:
            return [item.decode("utf-8", "replace") for item in self.strings()]
        form = _SCALARS[self._code][1].format[1:]
        return list(struct.unpack_from(f"<{self._count}{form}", self._source.data, self._start))

    def strings(self) -> list[bytes]:
        """Return the items of an array of strings as bytes; do not change the list."""
        if self._code != _STRING:
            raise TypeError(f"an array of {self.item_type} holds no strings")
        if self._kept is None:
            self._kept, _ = take_strings(self._source.data, self._start, self._count)
        return self._kept

    def plainly_distinct(self) -> bool:
        """Whether these strings are surely all different, and none of them is empty or has a NUL inside."""
        return self._code == _STRING and plainly_distinct(self._source.data, self._start, self._count)


class GGUFHeader(NamedTuple):
    """The header of one GGUF file.

    Attributes
    ----------
    metadata : dict of str to Value
        In the file's order. Large arrays are lazy.
    tensors : dict of str to Tensor
        In the file's order, which is also that of the data.
    data_offset, alignment, file_size : int
        Bytes.
    """

    path: str
    version: int
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]
    alignment: int
    data_offset: int
    file_size: int

    def __repr__(self) -> str:
        return f"<GGUFHeader {self.path!r}: {len(self.metadata)} values, {len(self.tensors)} tensors>"

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value under `key`, whatever its type, or `default`."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    def with_values(self, values: Mapping[str, Value]) -> GGUFHeader:
        """Return a copy with these values added or replaced, to check what a profile would supply."""
        return self._replace(metadata={**self.metadata, **values})

    def fingerprint(self, n_blocks: int = 64) -> str:
        """Return a short name for the content of the file, cheap enough to compute at every load.

        It is BLAKE2b-128, in hexadecimal, over the whole header, the file's size and `n_blocks` blocks
        of 4 KiB spread evenly over the tensor data, the last block included. Two models or two
        quantisations of one differ in it; two files that differ only between the blocks do not, so it
        is a tag against mix-ups, not against forgery.
        """
        from hashlib import blake2b  # pays its import only when used

        digest = blake2b(self.file_size.to_bytes(8, "little"), digest_size=16)
        with _open(self.path) as file:
            digest.update(file.read(self.data_offset))
            span = max(0, self.file_size - self.data_offset - 4096)
            for i in range(n_blocks):
                file.seek(self.data_offset + span * i // max(1, n_blocks - 1))
                digest.update(file.read(4096))
        return digest.hexdigest()


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read and check the header of a GGUF file.

    Parameters
    ----------
    path : path-like
        A regular file. Of a split model, one part.

    Returns
    -------
    GGUFHeader
        Everything in it lies within the file: keys and names are unique, types are known, and every
        tensor ends before the file does.

    Raises
    ------
    ModelFormatError
        The file is no GGUF file, damaged, or cut short by however little.
    UnsupportedModelError
        Version 1, big-endian, newer than this package, or with a tensor type that ggml dropped.
    OSError
        As from ``open()``.
    """
    name = os.fsdecode(path)
    with _open(name) as file:
        source = _Source(file, name)
        _check_magic(source)
        version = source.u32()
        _check_version(source, version)
        n_tensors, n_pairs = source.u64(), source.u64()
        source.check_count("tensors", n_tensors, 24, _MAX_TENSORS)
        source.check_count("key/value pairs", n_pairs, 13, _MAX_PAIRS)
        metadata = _read_metadata(source, n_pairs)
        alignment = _alignment(source, metadata)
        tensors = _read_tensors(source, n_tensors, alignment)
        data_offset = _padded(source.position, alignment) if tensors else source.position
        source.file = None
    _check_length(source, tensors, data_offset)
    return GGUFHeader(name, version, metadata, tensors, alignment, data_offset, source.size)


def _open(path: str) -> BinaryIO:
    """Open for reading, without waiting for a writer where the path is a pipe."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_PLACES: Final = tuple(struct.Struct(f"<{n}qIQ") for n in range(_MAX_DIMS + 1))  # shape, type, offset


class _Source:
    """The first bytes of a file, read as far as the parser gets, and its position in them."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        info = os.fstat(file.fileno())
        self.path = path
        self.size = info.st_size
        self.position = 0
        self.data = b""
        self.file: BinaryIO | None = file
        if not stat.S_ISREG(info.st_mode):
            raise ModelFormatError(f"{path} is not a regular file")

    def fail(self, what: str) -> NoReturn:
        """Raise the error for a header that makes no sense."""
        raise ModelFormatError(f"{self.path} is damaged: {what}. Download or convert it again")

    def reach(self, end: int) -> None:
        """Have the bytes before `end` in `data`."""
        if end <= len(self.data):
            return
        if end > self.size:
            self.fail(f"it ends inside its header (needs byte {end} of {self.size})")
        if end > MAX_HEADER_BYTES:
            self.fail(f"its header claims more than {MAX_HEADER_BYTES >> 20} MiB")
        assert self.file is not None, "arrays are decoded from what was read"
        # half as much again at least: appending copies all that was read before
        self.data += self.file.read(max(_CHUNK, end - len(self.data), len(self.data) // 2))
        if end > len(self.data):
            self.fail("it became shorter while it was read")

    def check_count(self, what: str, count: int, item_size: int, limit: int) -> None:
        """Refuse a count whose items, `item_size` bytes each at least, do not fit into the file."""
        if count * item_size > self.size - self.position or count > limit:
            self.fail(f"it claims {count} {what} in {self.size} bytes")

    def skip(self, size: int) -> int:
        """Move over `size` bytes, which are then in `data`, and return where they start."""
        start = self.position
        self.reach(start + size)
        self.position = start + size
        return start

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """Read values of this form."""
        start = self.skip(form.size)  # before `data` is looked up: it may grow
        return form.unpack_from(self.data, start)

    def u32(self) -> int:
        value: int = self.unpack(_U32)[0]
        return value

    def u64(self) -> int:
        value: int = self.unpack(_U64)[0]
        return value

    def string(self) -> bytes:
        size = self.u64()
        start = self.skip(size)
        return self.data[start : start + size]

    def name(self, what: str) -> str:
        """Read a key or a tensor's name.

        Upstream compares them as C strings: one with a NUL inside would be found under the name
        before the NUL there and not here.
        """
        raw = self.string()
        text = raw.decode("utf-8", "backslashreplace")
        if b"\0" in raw:
            self.fail(f"{what} {text!r} contains a NUL")
        return text

    def skip_strings(self, count: int) -> None:
        """Move over `count` strings."""
        self.reach(min(self.size, MAX_HEADER_BYTES, self.position + _LIKELY * count))
        while count:
            self.position, count = skip_strings(self.data, self.position, count)
            self.reach(self.position + 8 if count else self.position)


def _check_magic(source: _Source) -> None:
    source.reach(min(source.size, 64))
    start = source.data[:64]
    if start.startswith(b"GGUF"):
        source.position = 4
        return
    kind = next((kind for magic, kind in _OTHER_FILES if start.startswith(magic)), None)
    if not start:
        kind = "empty: the download failed"
    elif start[8:9] == b"{":
        kind = "a safetensors file: convert it to GGUF first"
    kind = kind or f"not a GGUF file: it starts with {start[:4]!r}"
    raise ModelFormatError(f"{source.path} is {kind}")


def _check_version(source: _Source, version: int) -> None:
    if version in (2, 3):
        return
    if version == 0:
        source.fail("it says GGUF version 0")
    if version & 0xFFFF == 0:
        what = "is a big-endian GGUF file; convert it for little-endian machines"
    elif version == 1:
        what = "is a GGUF file of version 1, which llama.cpp no longer reads; convert the model again"
    else:
        what = f"is a GGUF file of version {version}; this package reads versions 2 and 3"
    raise UnsupportedModelError(f"{source.path} {what}")


def _read_metadata(source: _Source, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = source.name("the key")
        if not key or key in metadata:
            source.fail(f"the key {key!r} occurs twice" if key else "a key is empty")
        metadata[key] = _read_value(source, key, source.u32())
    return metadata


def _read_value(source: _Source, key: str, code: int) -> Value:
    if code == _STRING:
        # Upstream hands the value on as a C string, so it ends at the first NUL.
        return Value("str", source.string().partition(b"\0")[0].decode("utf-8", "replace"))
    if code == _ARRAY:
        return Value("array", _read_array(source, key))
    if code not in _SCALARS:
        source.fail(f"the value of {key!r} has the unknown type {code}")
    name, form = _SCALARS[code]
    return Value(name, source.unpack(form)[0])


def _read_array(source: _Source, key: str) -> GGUFArray:
    code, count = source.u32(), source.u64()
    if code != _STRING and code not in _SCALARS:  # an array of arrays among them
        source.fail(f"the array {key!r} has items of the unknown type {code}")
    start = source.position
    if code == _STRING:
        source.check_count(f"strings under {key!r}", count, 8, MAX_HEADER_BYTES)
        source.skip_strings(count)
    else:
        size = _SCALARS[code][1].size
        source.check_count(f"items under {key!r}", count, size, MAX_HEADER_BYTES)
        source.skip(count * size)
    return GGUFArray(source, code, count, start)


def _alignment(source: _Source, metadata: dict[str, Value]) -> int:
    found = metadata.get("general.alignment")
    if found is None:
        return 32  # GGUF_DEFAULT_ALIGNMENT
    if found.type != "u32" or found.value == 0 or found.value & (found.value - 1):
        source.fail(f"its alignment is {found.value!r} ({found.type}), not a power of two (u32)")
    return int(found.value)


def _read_tensors(source: _Source, count: int, alignment: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    expected = 0
    for _ in range(count):
        tensor = _read_tensor(source)
        if tensor.name in tensors:
            source.fail(f"the tensor {tensor.name!r} occurs twice")
        if tensor.offset != expected:  # upstream wants them side by side, in order
            source.fail(f"the tensor {tensor.name!r} lies at {tensor.offset}, not at {expected}")
        expected = _padded(expected + tensor.nbytes, alignment)
        tensors[tensor.name] = tensor
    return tensors


def _read_tensor(source: _Source) -> Tensor:
    name = source.name("the tensor name")
    if len(name.encode()) >= _MAX_NAME:
        source.fail(f"the tensor name {name[:80]!r} is too long")
    n_dims = source.u32()
    if n_dims > _MAX_DIMS:
        source.fail(f"the tensor {name!r} has {n_dims} dimensions")
    *sizes, code, offset = source.unpack(_PLACES[n_dims])
    shape: tuple[int, ...] = tuple(sizes)
    if code not in _TENSOR_TYPES:
        why = "that llama.cpp dropped; quantise" if code in _REMOVED_TENSOR_TYPES else "unknown here; convert"
        raise UnsupportedModelError(
            f"{source.path}: the tensor {name!r} has type {code}, {why} the model again"
        )
    kind, block, block_bytes = _TENSOR_TYPES[code]
    n_elements = 1
    for size in shape:
        n_elements *= size
    if min(shape, default=1) < 0 or n_elements >= 1 << 63 or (shape[0] if shape else 1) % block:
        source.fail(f"the tensor {name!r} cannot have type {kind} and shape {shape}")
    return Tensor(name, shape, kind, offset, n_elements // block * block_bytes)


def _check_length(source: _Source, tensors: dict[str, Tensor], data_offset: int) -> None:
    """Refuse a file that ends before its last tensor does.

    The native mmproj loader does not look: what is missing stays uninitialised there.
    """
    ends = (tensor.offset + tensor.nbytes for tensor in tensors.values())
    needed = data_offset + max(ends, default=0)
    if source.size < needed:
        raise ModelFormatError(
            f"{source.path} is cut short: {needed} bytes expected, {source.size} present "
            f"({needed - source.size} missing). Download it again"
        )


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
