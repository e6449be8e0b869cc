"""What a pair of models will take of memory, known from their headers before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from llava_native.errors import NotEnoughMemoryError
from llava_native.gguf import GGUFHeader, read_header
from llava_native.machine import Room, default_flash_attn, host_room
from llava_native.preflight.text import all_tensors
from llava_native.repack import copied_nbytes, should_repack

__all__ = ["MemoryEstimate", "check_fits", "estimate_memory", "estimate_pair"]

# bytes of a value in the key/value cache; q8_0 has a scale of two bytes for each 32
_KV_BYTES: Final = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
_CELL_BYTES: Final = 44  # position, shift, sequences and counters of a cell, src/llama-kv-cells.h
_KV_PAD: Final = 256  # cells, GGML_PAD in src/llama-context.cpp


class MemoryEstimate(NamedTuple):
    """Bytes that a model and its encoder will take, at least.

    Attributes
    ----------
    weights : int
        Of the text model, mapped from its file: the system can drop and read them again.
    repacked : int
        Copies of quantised weights in the order that the CPU's kernels want; their originals are dropped.
    kv : int
        Keys and values of `n_ctx` tokens.
    compute : int
        Intermediate results of the text model, and its logits.
    encoder : int
        Weights of the image encoder, and its intermediate results.

    Notes
    -----
    Not in it: the interpreter, decoded images, and rows in the embedding cache.
    """

    weights: int
    repacked: int
    kv: int
    compute: int
    encoder: int

    @property
    def private(self) -> int:
        """All but what is mapped from a file."""
        return self.total - self.weights

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    def __str__(self) -> str:
        parts = ((name, size) for name, size in self._asdict().items() if size)
        return ", ".join(f"{name} {_shown(size)}" for name, size in parts)


def estimate_memory(
    text: GGUFHeader | None,
    mmproj: GGUFHeader | None = None,
    *,
    n_ctx: int = 4096,
    n_batch: int = 2048,
    n_ubatch: int = 672,
    n_outputs: int = 16,
    flash_attn: bool | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    repack: bool | None = None,
    devices: Sequence[Mapping[str, Any]] = (),
    on_gpu: bool = False,
) -> MemoryEstimate:
    """Return what will be taken, from the headers alone.

    Parameters
    ----------
    text : GGUFHeader or None
        Of a split model, the first part. None for a model that is loaded already.
    mmproj : GGUFHeader, optional
    n_ctx, n_batch, n_ubatch, n_outputs, flash_attn, type_k, type_v
        As ``Context`` takes them.
    repack : bool, optional
        As ``Model`` takes it.
    devices : sequence of mapping
        As ``llava_native.devices`` returns them: which weights are copied depends on the CPU, and how
        attention is computed.
    on_gpu : bool, default False
        The layers go to a GPU: nothing is repacked, and flash attention is on unless it is refused.

    Returns
    -------
    MemoryEstimate

    Raises
    ------
    ModelFormatError
        A part of a split model is missing.

    Notes
    -----
    Numbers that a header lacks, or that make no sense, count as 0 here; the loader refuses them.
    Against what llama.cpp allocates: weights and keys/values are exact, compute buffers up to a tenth too
    large for the shapes of the seed models.
    """
    shape = _TextShape(text) if text is not None else None
    n_ctx = n_ctx or (shape.n_ctx_train if shape else 0)
    weights = repacked = kv = compute = 0
    if shape is not None:
        tensors = all_tensors(shape.header).values()
        copies = not on_gpu and (should_repack(tensors, devices) if repack is None else repack)
        sizes = copied_nbytes(tensors, devices) if copies else {}
        repacked = sum(sizes.values())
        weights = sum(tensor.nbytes for tensor in tensors if tensor.name not in sizes)
        kv = shape.kv(n_ctx, type_k, type_v)
        if flash_attn is None:
            flash_attn = on_gpu or bool(default_flash_attn(devices, type_k, type_v))
        compute = shape.compute(n_ctx, min(n_ubatch, n_batch, n_ctx), flash_attn, on_gpu)
        compute += n_outputs * shape.n_vocab * 4
    encoder = _encoder(mmproj) if mmproj is not None else 0
    return MemoryEstimate(weights, repacked, kv, compute, encoder)


def estimate_pair(
    model: str | os.PathLike[str] | None, mmproj: str | os.PathLike[str] | None, **options: Any
) -> MemoryEstimate:
    """Do ``estimate_memory`` with the files' headers, which are read first."""
    headers = [None if path is None else read_header(path) for path in (model, mmproj)]
    return estimate_memory(*headers, **options)


def check_fits(
    estimate: MemoryEstimate, limit: int | None = None, room: Room | None = None, n_ctx: int = 0
) -> None:
    """Refuse what cannot fit.

    Parameters
    ----------
    estimate : MemoryEstimate
    limit : int, optional
        Bytes that it may have; what the machine has is then not looked at.
    room : Room, optional
        Default: what the machine, or this process's control group, has.
    n_ctx : int
        For the message.

    Raises
    ------
    NotEnoughMemoryError
        All of it is more than `limit` or than there is at all, or what is not mapped from a file is more
        than is free now.
    """
    wanted = f"loading takes {_shown(estimate.total)} ({estimate})"
    advice = f"; use a smaller n_ctx (now {n_ctx}) or a smaller model" if n_ctx else ""
    if limit is not None:
        if estimate.total > limit:
            raise NotEnoughMemoryError(f"{wanted}, and memory_limit is {_shown(limit)}{advice}")
        return
    room = room or host_room()
    if room is None:
        return
    if estimate.total > room.total:
        raise NotEnoughMemoryError(f"{wanted}, and {room.of} has {_shown(room.total)} in all{advice}")
    if estimate.private > room.free:
        raise NotEnoughMemoryError(
            f"{wanted}, of which {_shown(estimate.private)} must be free, and {room.of} has "
            f"{_shown(room.free)} free{advice}, or give memory_limit= to load all the same"
        )


class _TextShape:
    """The numbers of a text model that sizes depend on; 0 where the header has none."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        architecture = str(header.get("general.architecture", ""))
        number = _Numbers(header, architecture)
        self.n_ctx_train = number("context_length")
        self.n_embd, self.n_layer = number("embedding_length"), number("block_count")
        self.n_head = number("attention.head_count")
        n_head_kv = number("attention.head_count_kv", self.n_head)
        head = self.n_embd // self.n_head if self.n_head else 0
        self.n_keys = n_head_kv * number("attention.key_length", head)
        self.n_values = n_head_kv * number("attention.value_length", head)
        self.n_ff = number("feed_forward_length")
        tokens = header.get("tokenizer.ggml.tokens", ())
        self.n_vocab = len(tokens) if hasattr(tokens, "__len__") else 0

    def kv(self, n_ctx: int, type_k: str, type_v: str) -> int:
        """Return the bytes of keys and values, and of the table of cells."""
        cells = -(-n_ctx // _KV_PAD) * _KV_PAD
        values = self.n_keys * _KV_BYTES.get(type_k, 4.0) + self.n_values * _KV_BYTES.get(type_v, 4.0)
        return int(cells * (_CELL_BYTES + self.n_layer * values))

    def compute(self, n_ctx: int, n_tokens: int, flash_attn: bool, on_gpu: bool) -> int:
        """Return the bytes of the intermediate results that live at one time, at most.

        Fitted to what ggml's allocator does: with the scores of all heads over the whole context, which
        flash attention does not keep, live the mask and seven rows of a layer; later the feed-forward ones.
        What goes to a GPU, the mask and the first rows, is in main memory, too.
        """
        cells = -(-n_ctx // _KV_PAD) * _KV_PAD
        scores = 0 if flash_attn else self.n_head * cells + 5 * self.n_embd + self.n_keys + self.n_values
        mask = cells / 2 if flash_attn else cells  # of two bytes, or of four
        sent = mask + self.n_embd if on_gpu else 0
        return int(n_tokens * 4 * (mask + sent + max(scores, 3 * self.n_ff + 4 * self.n_embd)))


class _Numbers:
    """Numbers of a header, under a prefix."""

    def __init__(self, header: GGUFHeader, prefix: str) -> None:
        self._header = header
        self._prefix = prefix

    def __call__(self, key: str, default: int = 0) -> int:
        value = self._header.get(f"{self._prefix}.{key}", default)
        if hasattr(value, "tolist"):  # a number a layer
            value = max(
                value.tolist() if value.item_type != "str" and len(value) <= 4096 else (0,), default=0
            )
        return value if isinstance(value, int) and 0 <= value < 2**31 else 0


def _encoder(header: GGUFHeader) -> int:
    """Return the bytes of an encoder's weights and of its intermediate results."""
    number = _Numbers(header, "clip.vision")
    patch = number("patch_size")
    n = (number("image_size") // patch) ** 2 + 1 if patch else 0
    width = number("feed_forward_length") + 2 * number("embedding_length") + number("projection_dim")
    scores = 0
    patches = header.tensors.get("v.blk.0.attn_q.weight")
    if patches is not None and patches.type == "F32":  # flash attention is off, see ImageEncoder
        scores = number("attention.head_count") * n
    pixels = 2 * 3 * number("image_size") ** 2  # as they are, and unfolded into patches
    return sum(tensor.nbytes for tensor in header.tensors.values()) + (n * (width + scores) + pixels) * 4


def _shown(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
