"""The check of a vision encoder: what ``tools/mtmd/clip.cpp`` reads, and what its LLaVA graph touches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from ..errors import UnsupportedModelError
from ..gguf import GGUFHeader
from ._rules import FLOATS, MATRIX, VECTOR, Keys, check_tensor

__all__ = ["MmprojInfo", "check_mmproj", "missing_mmproj_keys"]

# Keys without which clip.cpp refuses a file or has no type of projector; the first mmproj files, of
# 2023, lack some of them.
_REQUIRED_KEYS: Final = (
    "clip.has_vision_encoder",
    "clip.projector_type",
    "clip.vision.image_size",
    "clip.vision.patch_size",
    "clip.vision.embedding_length",
    "clip.vision.feed_forward_length",
    "clip.vision.projection_dim",
    "clip.vision.block_count",
    "clip.vision.attention.head_count",
    "clip.vision.attention.layer_norm_epsilon",
    "clip.vision.image_mean",
    "clip.vision.image_std",
)
# Keys that clip.cpp reads where they exist, and aborts on where their type is another.
_OPTIONAL_U32: Final = ("attention.head_count_kv", "attention.head_dim")
_OPTIONAL_STR: Final = ("general.name", "general.description", "clip.vision.projector_type")
# About 33 graph nodes a block, of 8192 that clip.cpp has room for.
_MAX_BLOCKS: Final = 200
# As OpenAI's CLIP has them, on which every LLaVA-1.5 was trained.
_CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
_AUDIO: Final = frozenset({
    "ultravox", "qwen2a", "qwen3a", "glma", "voxtral", "meralion", "musicflamingo", "lfm2a", "gemma3na",
    "gemma4a", "gemma4ua", "dots3note_a", "granite_speech", "mimo_audio", "parakeet", "qwen3tts_spkenc",
    "qwen3tts_gen", "pockettts_spkenc", "pockettts_gen",
})  # fmt: skip
_MROPE: Final = frozenset({
    "qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "qwen2.5o", "ling3vl", "glm4v", "glm5v",
    "paddleocr", "hunyuanvl", "exaone4_5", "mimovl",
})  # fmt: skip


class MmprojInfo(NamedTuple):
    """What the header of an mmproj file says about its encoder.

    Attributes
    ----------
    image_size, patch_size : int
        Pixels along an edge.
    n_patches : int
        Rows that one image (or one tile) becomes.
    n_embd : int
        Width of these rows; it must equal the text model's.
    n_embd_vision, n_head, n_layer : int
        Of the tower; `n_layer` is ``block_count``.
    projector_type : str
        ``"mlp"`` or ``"mlp_norm"``.
    has_class_embd, has_post_ln : bool
        Whether the tower has a CLS token, and a norm after its last block. Legacy files, which
        already lack the last block, have no such norm.
    feature_layers : tuple of int
        ``clip.vision.feature_layer``, empty where absent.
    image_mean, image_std : tuple of float
        Three each, of pixels between 0 and 1.
    image_grid_pinpoints : tuple of (int, int)
        Resolutions that LLaVA-1.6 tiles an image into; empty for LLaVA-1.5.
    mm_patch_merge_type : str
        ``"flat"``, or ``"spatial_unpad"`` in LLaVA-1.6.
    dtype : str
        ggml type that most bytes of the weights have.
    weights_nbytes : int
        Size of all tensors. clip.cpp uses a null buffer when it cannot allocate them: compare it with
        the free memory of the device first.
    fingerprint : str
        `GGUFHeader.fingerprint`, the tag of embeddings that this encoder made.
    """

    path: str
    image_size: int
    patch_size: int
    n_patches: int
    n_embd: int
    n_embd_vision: int
    n_head: int
    n_layer: int
    projector_type: str
    has_class_embd: bool
    has_post_ln: bool
    feature_layers: tuple[int, ...]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_grid_pinpoints: tuple[tuple[int, int], ...]
    mm_patch_merge_type: str
    dtype: str
    weights_nbytes: int
    fingerprint: str

    @property
    def is_llava15(self) -> bool:
        """Whether an image is one square of fixed size, without tiles."""
        return not self.image_grid_pinpoints and self.mm_patch_merge_type != "spatial_unpad"


def missing_mmproj_keys(header: GGUFHeader) -> tuple[str, ...]:
    """Return the keys that llama.cpp needs and this mmproj lacks, as the first files of 2023 do."""
    has_type = "clip.vision.projector_type" in header.metadata
    return tuple(
        key
        for key in _REQUIRED_KEYS
        if key not in header.metadata and not (has_type and key == "clip.projector_type")
    )


def check_mmproj(header: GGUFHeader, assumed: Collection[str] = ()) -> MmprojInfo:
    """Check that a file is a LLaVA vision encoder which the native loader and its graph can take.

    Parameters
    ----------
    header : GGUFHeader
        As `read_header` returns it.
    assumed : collection of str
        Keys that may be lacking, because the native loader takes LLaVA-1.5's values for them.

    Returns
    -------
    MmprojInfo
        The encoder's shape and preprocessing.

    Raises
    ------
    ModelFormatError
        It is a text model, or its keys or tensors do not fit together.
    UnsupportedModelError
        It is an encoder that this package does not run: LLaVA-v1's single linear layer, a file without
        the keys of `missing_mmproj_keys`, and every projector but ``mlp``; among these the
        M-RoPE encoders (qwen2vl and later), whose rows need positions of their own, and audio.

    Notes
    -----
    Out of reach afterwards: a key whose type ``clip.cpp`` asserts, a tensor that its LLaVA graph
    dereferences or multiplies in another shape or type, too many blocks for the graph, numbers that
    its kernels assert. Not covered: too little memory.
    """
    keys = Keys(header)
    _check_kind(keys, assumed)
    image_size = keys.u32("clip.vision.image_size", low=1, high=8192)  # as upstream
    patch_size = keys.u32("clip.vision.patch_size", low=1, high=image_size)
    n_embd = keys.u32("clip.vision.embedding_length", low=1)
    n_head = keys.u32("clip.vision.attention.head_count", low=1)
    n_layer = keys.u32("clip.vision.block_count", low=1, high=_MAX_BLOCKS)
    if keys.u32("clip.vision.attention.head_dim", 0) * n_head not in (0, n_embd) or n_embd % n_head:
        keys.fail(f"{n_head} heads do not divide {n_embd} features")
    _check_scalars(keys)
    features = keys.numbers("clip.vision.feature_layer", "i32")
    if any(not 0 <= layer <= n_layer for layer in features):
        keys.fail(f"clip.vision.feature_layer {features} is not within the {n_layer} blocks")
    n_patches = (image_size // patch_size) ** 2
    _check_embeddings(keys, n_embd, patch_size, n_patches)
    for i in range(n_layer):
        _check_block(keys, f"v.blk.{i}.", n_embd)
    # clip.cpp's own way to tell: no converter writes "mlp_norm".
    projector = "mlp_norm" if "mm.3.weight" in header.tensors else "mlp"
    width = _check_projector(keys, projector, n_embd * max(1, len(set(features))))
    nbytes = Counter[str]()
    for tensor in header.tensors.values():
        nbytes[tensor.type] += tensor.nbytes
    return MmprojInfo(
        header.path, image_size, patch_size, n_patches, width, n_embd, n_head, n_layer, projector,
        "v.class_embd" in header.tensors, "v.post_ln.weight" in header.tensors, features,
        _rgb(keys, "clip.vision.image_mean", _CLIP_MEAN), _rgb(keys, "clip.vision.image_std", _CLIP_STD),
        _pinpoints(keys, image_size),
        keys.text("clip.vision.mm_patch_merge_type", "flat"),
        nbytes.most_common(1)[0][0], nbytes.total(), header.fingerprint(),
    )  # fmt: skip


def _check_kind(keys: Keys, assumed: Collection[str]) -> None:
    """Refuse whatever is not a vision encoder, and files that lack what one needs."""
    architecture = keys.text("general.architecture")
    if architecture != "clip":
        keys.fail(
            f"this is no vision encoder but a model of architecture {architecture!r}: "
            "pass the text model as model= and the mmproj file as mmproj="
        )
    for key in ("clip.has_audio_encoder", "clip.has_gen_audio_encoder"):
        if keys.flag(key, False):
            keys.unsupported("the mmproj has an audio encoder; this package runs vision encoders only")
    for key in _OPTIONAL_STR:
        keys.text(key, "")
    projector = keys.text("clip.projector_type", "") or keys.text("clip.vision.projector_type", "")
    if projector not in ("", "mlp"):
        why = "which this package does not run; it runs LLaVA's 'mlp'"
        if projector in _MROPE:
            why = "whose rows need M-RoPE positions, which this package does not make"
        elif projector in _AUDIO:
            why = "which is for audio; this package runs vision encoders only"
        keys.unsupported(f"the mmproj has a projector of type {projector!r}, {why}")
    missing = [key for key in missing_mmproj_keys(keys.header) if key not in assumed]
    if missing or not (projector or "clip.projector_type" in assumed):
        keys.unsupported(f"the mmproj lacks {', '.join(missing or _REQUIRED_KEYS[1:2])}; convert it again")
    if not keys.flag("clip.has_vision_encoder", True):
        keys.unsupported("the mmproj has no vision encoder")


def _check_scalars(keys: Keys) -> None:
    """Check the types of all remaining keys that clip.cpp reads for an mlp projector."""
    keys.u32("clip.vision.feed_forward_length")
    keys.u32("clip.vision.projection_dim")
    keys.f32("clip.vision.attention.layer_norm_epsilon", low=0.0)
    for key in _OPTIONAL_U32:
        keys.u32(f"clip.vision.{key}", 0)
    keys.u32("clip.minicpmv_query_num", 0)
    if keys.has("clip.minicpmv_version"):
        keys.unsupported("the mmproj is a MiniCPM-V encoder")
    if keys.flag("clip.use_gelu", False) and keys.flag("clip.use_silu", False):
        keys.fail("clip.use_gelu and clip.use_silu are both true")
    keys.flag("clip.use_silu", False)


def _check_embeddings(keys: Keys, n_embd: int, patch_size: int, n_patches: int) -> None:
    tensors = keys.header.tensors
    check_tensor(keys, tensors, "v.patch_embd.weight", (patch_size, patch_size, 3, n_embd), FLOATS)
    check_tensor(keys, tensors, "v.patch_embd.bias", (n_embd,), VECTOR, required=False)
    check_tensor(keys, tensors, "v.class_embd", (n_embd,), VECTOR, required=False)
    n_rows = n_patches + ("v.class_embd" in tensors)
    check_tensor(keys, tensors, "v.position_embd.weight", (n_embd, n_rows), MATRIX)
    for norm in ("v.pre_ln", "v.post_ln"):
        if f"{norm}.weight" in tensors or f"{norm}.bias" in tensors:
            _check_norm(keys, norm, n_embd)


def _check_block(keys: Keys, block: str, n_embd: int) -> None:
    tensors = keys.header.tensors
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        _check_linear(keys, block + name, n_embd, n_embd)
    _check_norm(keys, block + "ln1", n_embd)
    _check_norm(keys, block + "ln2", n_embd)
    for name in ("ffn_up", "ffn_down"):
        if f"{block}{name}.weight" not in tensors:
            keys.fail(f"the tensor {block}{name}.weight is missing")
    # The converters of 2023 and 2024 swapped the two names; clip.cpp tells by the length of a row.
    up, down = ("ffn_up", "ffn_down")
    if tensors[f"{block}{down}.weight"].ne[0] == n_embd:
        up, down = down, up
    n_ff = tensors[f"{block}{up}.weight"].ne[1]
    _check_linear(keys, block + up, n_embd, n_ff)
    _check_linear(keys, block + down, n_ff, n_embd)
    for name in ("ffn_gate.weight", "ffn_gate_exps.weight"):
        if block + name in tensors:
            keys.unsupported(f"the mmproj has gated blocks ({block}{name}), which no LLaVA has")


def _check_projector(keys: Keys, kind: str, n_in: int) -> int:
    """Check the projector's layers and return the width of its rows."""
    tensors = keys.header.tensors
    last = "mm.3" if kind == "mlp_norm" else "mm.2"
    for name in ("mm.0", last):
        if f"{name}.weight" not in tensors:
            if name == "mm.2" and "mm.0.weight" in tensors:
                raise UnsupportedModelError(
                    f"{keys.header.path}: the projector is the single linear layer of LLaVA-v1, "
                    "which llama.cpp does not run; use a LLaVA-1.5 or 1.6 model"
                )
            keys.fail(f"the tensor {name}.weight is missing")
    n_hidden, n_out = tensors["mm.0.weight"].ne[1], tensors[f"{last}.weight"].ne[1]
    _check_linear(keys, "mm.0", n_in, n_hidden)
    _check_linear(keys, last, n_hidden, n_out)
    if kind == "mlp_norm":
        _check_norm(keys, "mm.1", n_hidden)
        _check_norm(keys, "mm.4", n_out)
    if not n_out:
        keys.fail("the projector's rows are empty")
    return n_out


def _check_linear(keys: Keys, name: str, n_in: int, n_out: int) -> None:
    check_tensor(keys, keys.header.tensors, f"{name}.weight", (n_in, n_out), MATRIX)
    check_tensor(keys, keys.header.tensors, f"{name}.bias", (n_out,), VECTOR)


def _check_norm(keys: Keys, name: str, size: int) -> None:
    check_tensor(keys, keys.header.tensors, f"{name}.weight", (size,), VECTOR)
    check_tensor(keys, keys.header.tensors, f"{name}.bias", (size,), VECTOR)


def _rgb(keys: Keys, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    if not keys.has(key):
        return default
    values = keys.numbers(key, "f32")
    if len(values) != 3 or not all(map(math.isfinite, values)):
        keys.fail(f"{key} must hold three finite numbers, not {values}")
    if key.endswith("_std") and min(values) <= 0:
        keys.fail(f"{key} must be positive, not {values}")
    return (values[0], values[1], values[2])


def _pinpoints(keys: Keys, image_size: int) -> tuple[tuple[int, int], ...]:
    key = "clip.vision.image_grid_pinpoints"
    values = keys.numbers(key, "i32")
    # Anything but whole tiles leaves one that is smaller than a patch, or none: mtmd asserts both.
    if len(values) % 2 or any(value % image_size or not 0 < value <= 64 * image_size for value in values):
        keys.fail(f"{key} must hold pairs of multiples of {image_size}, not {values}")
    return tuple(zip(values[::2], values[1::2], strict=True))
