"""Broken model files, each made from a good one, and the exception that each must end in.

`CASES` is a registry: the unit tests check it against the preflight, and a test that loads files in a
child process can check it against the whole package. A good file is taken apart (`Parts`), one thing
in it is changed, and it is written back; nothing here needs a vocabulary of llama.cpp's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llava_native.errors import ModelFormatError, UnsupportedModelError

from . import gguf_file, tiny_models
from .gguf_parts import Parts, RawTensor, nbytes

Role = Literal["text", "mmproj"]


def good_text(path: Path, *, architecture: str = "llama", n_vocab: int = 300, **kv: Any) -> Path:
    """Write a tiny text model with a SentencePiece vocabulary of byte tokens and a few words."""
    params = tiny_models.TextParams(n_vocab=n_vocab, n_head_kv=2)
    weights = tiny_models.text_weights(params, seed=0)
    if architecture == "phi3":
        weights = _fused(weights, params.n_layer)
    head = params.n_embd // params.n_head
    words = [f"▁w{i}" for i in range(n_vocab - 259)]
    shape = {
        "context_length": 512, "embedding_length": params.n_embd, "block_count": params.n_layer,
        "feed_forward_length": params.n_ff, "rope.dimension_count": head, "rope.freq_base": 10000.0,
        "attention.head_count": params.n_head, "attention.head_count_kv": params.n_head_kv,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    pairs = {
        "general.architecture": architecture,
        "general.name": "tiny",
        **{f"{architecture}.{key}": value for key, value in shape.items()},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **kv,
    }
    tensors = {name: array.astype("<f2" if array.ndim == 2 else "<f4") for name, array in weights.items()}
    gguf_file.write_gguf(path, pairs, tensors)
    return path


def good_mmproj(path: Path, **arguments: Any) -> Path:
    """Write a tiny mmproj of the legacy kind that fits `good_text`."""
    return tiny_models.write_mmproj(path, **arguments).path


def _fused(weights: dict[str, np.ndarray], n_layer: int) -> dict[str, np.ndarray]:
    """Return the tensors as the phi3 architecture lays them out."""
    fused = dict(weights)
    for i in range(n_layer):
        parts = [fused.pop(f"blk.{i}.attn_{name}.weight") for name in "qkv"]
        fused[f"blk.{i}.attn_qkv.weight"] = np.concatenate(parts)
        gate, up = (fused.pop(f"blk.{i}.ffn_{name}.weight") for name in ("gate", "up"))
        fused[f"blk.{i}.ffn_up.weight"] = np.concatenate((gate, up))
    return fused


@dataclass(frozen=True)
class Case:
    """One way to break a file.

    Attributes
    ----------
    role : {"text", "mmproj"}
        As what the broken file is passed.
    damage : callable
        Changes the good file's parts in place, or returns the bytes of the broken file.
    error : type
        Exact class of the exception.
    says : str
        What the message contains.
    source : {"text", "mmproj"}
        Which good file is broken; the other one in the cases of swapped files.
    """

    name: str
    role: Role
    damage: Callable[[Parts], bytes | None]
    error: type[Exception]
    says: str
    source: Role

    def write(self, good: Path, path: Path) -> Path:
        """Write the broken file made of a good one."""
        parts = Parts.read(good)
        broken = self.damage(parts)
        path.write_bytes(parts.to_bytes() if broken is None else broken)
        return path


CASES: list[Case] = []


def _case(
    name: str,
    role: Role,
    damage: Callable[[Parts], Any],
    says: str,
    error: type[Exception] = ModelFormatError,
    source: Role | None = None,
) -> None:
    CASES.append(Case(f"{role}: {name}", role, damage, error, says, source or role))


def _nothing(parts: Parts) -> None:
    """The file is sound, but not what it is passed as."""


def _bytes(data: bytes) -> Callable[[Parts], bytes]:
    def damage(parts: Parts) -> bytes:
        return data

    return damage


def _set(key: str, value: Any) -> Callable[[Parts], None]:
    return lambda parts: parts.set(key, value)


def _drop(*keys: str) -> Callable[[Parts], None]:
    def damage(parts: Parts) -> None:
        for key in keys:
            del parts.kv[key]

    return damage


def _lose(*names: str) -> Callable[[Parts], None]:
    def damage(parts: Parts) -> None:
        for name in names:
            del parts.tensors[name]

    return damage


def _shape(name: str, *shape: int, kind: int | None = None) -> Callable[[Parts], None]:
    return lambda parts: parts.reshape(name, shape, kind)


def _attribute(**values: Any) -> Callable[[Parts], None]:
    def damage(parts: Parts) -> None:
        for key, value in values.items():
            setattr(parts, key, value)

    return damage


def _cut(size: int) -> Callable[[Parts], bytes]:
    def damage(parts: Parts) -> bytes:
        # The padding after the last tensor is not missed: cut from where its data ends.
        whole, last = parts.to_bytes(), list(parts.tensors.values())[-1]
        return whole[: len(whole) - (-len(last.data) % 32) - size]

    return damage


def _claim(key: str, raw: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.kv.__setitem__(key, raw)


def _doubled_tokens(parts: Parts) -> None:
    n = struct.unpack_from("<Q", parts.kv["tokenizer.ggml.tokens"], 8)[0]
    parts.set("tokenizer.ggml.tokens", [f"t{i}" for i in range(n - 1)] + ["t7"])


def _nul_tokens(parts: Parts) -> None:
    n = struct.unpack_from("<Q", parts.kv["tokenizer.ggml.tokens"], 8)[0]
    parts.set("tokenizer.ggml.tokens", [f"t{i}" for i in range(n - 1)] + ["t7\0tail"])


def _alignment(alignment: int) -> Callable[[Parts], None]:
    def damage(parts: Parts) -> None:
        parts.alignment = alignment
        parts.set("general.alignment", alignment)

    return damage


def _offset(name: str, offset: int) -> Callable[[Parts], None]:
    return lambda parts: setattr(parts.tensors[name], "offset", offset)


def _add_tensor(
    name: bytes, *shape: int, kind: int = 0, data: bytes | None = None
) -> Callable[[Parts], None]:
    return lambda parts: parts.extra_tensors.append(
        (name, RawTensor(shape, kind, bytes(nbytes(shape, kind)) if data is None else data))
    )


def _gelu_and_silu(parts: Parts) -> None:
    parts.set("clip.use_gelu", True)
    parts.set("clip.use_silu", True)


def _empty_projector(parts: Parts) -> None:
    parts.reshape("mm.2.weight", (64, 0))
    parts.reshape("mm.2.bias", (0,))


def _linear_projector(parts: Parts) -> None:
    del parts.tensors["mm.2.weight"], parts.tensors["mm.2.bias"]


_U64_MAX = 2**64 - 1


def _format_cases(role: Role) -> None:
    """Damage that makes no difference between the two kinds of file."""
    last_quarter = lambda parts: parts.to_bytes()[: 3 * len(parts.to_bytes()) // 4]  # noqa: E731
    _case("empty", role, _bytes(b""), "empty")
    _case("garbage", role, _bytes(np.random.default_rng(0).bytes(100_000)), "not a GGUF file")
    _case("another magic", role, lambda parts: b"GGML" + parts.to_bytes()[4:], "not a GGUF file")
    _case("a web page", role, _bytes(b"<!DOCTYPE html><html>404</html>"), "web page")
    _case("an LFS pointer", role, _bytes(b"version https://git-lfs.github.com/spec/v1\n"), "LFS")
    _case("64 bytes short", role, _cut(64), "cut short")
    _case("one byte short", role, _cut(1), "cut short")
    _case("4 KB short", role, _cut(4096), "cut short")
    _case("three quarters", role, last_quarter, "cut short")
    _case("24 bytes", role, lambda parts: parts.to_bytes()[:24], "claims")
    _case("version 0", role, _attribute(version=0), "version 0")
    _case("version 1", role, _attribute(version=1), "version 1", UnsupportedModelError)
    _case("version 4", role, _attribute(version=4), "version 4", UnsupportedModelError)
    _case("big-endian", role, _attribute(version=3 << 24), "big-endian", UnsupportedModelError)
    _case("2**63 tensors", role, _attribute(n_tensors=2**63), "claims")
    _case("too many tensors", role, _attribute(n_tensors=100_000), "claims")
    _case("2**64-1 pairs", role, _attribute(n_kv=_U64_MAX), "claims")
    _case("huge string", role, _claim("general.name", struct.pack("<IQ", 8, 2**62)), "ends inside")
    _case("huge array", role, _claim("x", struct.pack("<IIQ", 9, 10, 2**61)), "claims")
    _case("huge array of strings", role, _claim("x", struct.pack("<IIQ", 9, 8, 2**60)), "claims")
    _case("array of arrays", role, _claim("x", struct.pack("<IIQIQ", 9, 9, 1, 4, 0)), "unknown type 9")
    _case("unknown value type", role, _claim("x", struct.pack("<IQ", 13, 1)), "unknown type 13")
    _case("key twice", role, _attribute(extra_kv=[(b"general.name", gguf_file._value("x"))]), "twice")
    _case("empty key", role, _attribute(extra_kv=[(b"", gguf_file._value("x"))]), "empty")
    _case("NUL in a key", role, _attribute(extra_kv=[(b"a\0b", gguf_file._value("x"))]), "NUL")
    _case("alignment 48", role, _set("general.alignment", 48), "alignment")
    _case("alignment 0", role, _set("general.alignment", 0), "alignment")
    _case("alignment of type u64", role, _set("general.alignment", np.uint64(32)), "alignment")
    first = {"text": "output_norm.weight", "mmproj": "mm.0.bias"}[role]
    _case(
        "half a header",
        role,
        lambda parts: parts.to_bytes().partition(first.encode())[0],
        "inside its header",
    )
    _case("tensor twice", role, _add_tensor(first.encode(), 32), "twice")
    _case("tensor name too long", role, _add_tensor(b"x" * 64, 32), "too long")
    _case("five dimensions", role, _add_tensor(b"x", 2, 2, 2, 2, 2), "5 dimensions")
    _case("negative dimension", role, _add_tensor(b"x", 2**64 - 4, data=bytes(32)), "shape")
    _case("product overflows", role, _add_tensor(b"x", 2**32, 2**32, data=bytes(32)), "shape")
    _case("row is no whole block", role, _add_tensor(b"x", 33, kind=8, data=bytes(64)), "shape")
    _case(
        "tensor type dropped", role, _add_tensor(b"x", 32, kind=4, data=b""), "type 4", UnsupportedModelError
    )
    _case("tensor type unknown", role, _add_tensor(b"x", 32, kind=99, data=b""), "99", UnsupportedModelError)
    _case("offset past the end", role, _offset(first, 1 << 40), "lies at")
    _case("offset of another", role, _offset(first, 0), "lies at")
    _case("offset unaligned", role, _offset(first, 33), "lies at")
    _case(
        "general.architecture missing", role, _drop("general.architecture"), "general.architecture is missing"
    )
    _case("general.architecture a number", role, _set("general.architecture", 1), "type str")


def _text_cases() -> None:
    case = lambda name, *rest: _case(name, "text", *rest)  # noqa: E731
    case("an mmproj", _nothing, "mmproj=", ModelFormatError, "mmproj")
    case("a LoRA adapter", _set("general.type", "adapter"), "adapter")
    case("alignment 8", _alignment(8), "ggml needs 32", UnsupportedModelError)
    for key in ("context_length", "embedding_length", "block_count"):
        case(f"{key} missing", _drop(f"llama.{key}"), f"{key} is missing")
        case(f"{key} of type u64", _set(f"llama.{key}", np.uint64(2)), "type u32, not u64")
        case(f"{key} of type i32", _set(f"llama.{key}", np.int32(2)), "type u32, not i32")
        case(f"{key} 0", _set(f"llama.{key}", 0), f"{key} is 0")
    case("block_count a million", _set("llama.block_count", 10**6), "block_count is 1000000")
    case("block_count 513", _set("llama.block_count", 513), "block_count is 513")
    case("block_count one more", _set("llama.block_count", 3), "blk.2.attn_q.weight is missing")
    case("all blocks nextn", _set("llama.nextn_predict_layers", 2), "nextn_predict_layers is 2")
    case("one block nextn", _set("llama.nextn_predict_layers", 1), "further tokens", UnsupportedModelError)
    case("experts used of none", _set("llama.expert_used_count", 2), "expert_used_count is 2 of 0")
    case("experts unused", _set("llama.expert_count", 8), "expert_used_count is 0 of 8")
    case("experts too many", _set("llama.expert_count", 1025), "expert_count is 1025")
    case("expert groups of none", _set("llama.expert_group_count", 4), "groups")
    case("rope type", _set("llama.rope.scaling.type", "bogus"), "bogus")
    case("rope type a number", _set("llama.rope.scaling.type", 1), "type str")
    case("rope base NaN", _set("llama.rope.freq_base", float("nan")), "freq_base is nan")
    case("rope dimensions 8", _set("llama.rope.dimension_count", 8), "dimension_count is 8, expected 16")
    case("rope dimensions odd", _set("llama.rope.dimension_count", 15), "dimension_count is 15")
    case("M-RoPE", _set("llama.rope.dimension_sections", [16, 24, 24, 0]), "M-RoPE", UnsupportedModelError)
    case("heads 0", _set("llama.attention.head_count", 0), "0 heads")
    case("heads 3", _set("llama.attention.head_count", 3), "3 heads")
    case("heads 6", _set("llama.attention.head_count", 6), "6 heads do not divide 64")
    case("heads of type f32", _set("llama.attention.head_count", 4.0), "type u32, not f32")
    case("heads for 3 layers", _set("llama.attention.head_count", [4, 4, 4]), "3 items for 2 layers")
    case("heads differ", _set("llama.attention.head_count_kv", [2, 4]), "differ", UnsupportedModelError)
    case("kv heads 3", _set("llama.attention.head_count_kv", 3), "key/value heads")
    case("kv heads 0", _set("llama.attention.head_count_kv", 0), "key/value heads")
    case("value length", _set("llama.attention.value_length", 32), "values of length 32")
    case("ffn length 0", _set("llama.feed_forward_length", 0), "feed_forward_length is 0")
    case("epsilon missing", _drop("llama.attention.layer_norm_rms_epsilon"), "epsilon is missing")
    case("epsilon negative", _set("llama.attention.layer_norm_rms_epsilon", -1.0), "epsilon is -1")
    case("epsilon of type f64", _set("llama.attention.layer_norm_rms_epsilon", np.float64(1e-5)), "not f64")
    case("not causal", _set("llama.attention.causal", False), "causal", UnsupportedModelError)
    case("no tokenizer", _drop("tokenizer.ggml.model"), "no vocabulary", UnsupportedModelError)
    case("tokenizer none", _set("tokenizer.ggml.model", "none"), "no vocabulary", UnsupportedModelError)
    case("tokenizer bert", _set("tokenizer.ggml.model", "bert"), "'bert'", UnsupportedModelError)
    case("BPE without merges", _set("tokenizer.ggml.model", "gpt2"), "merges is missing")
    case("tokens missing", _drop("tokenizer.ggml.tokens"), "no tokens")
    case("tokens a number", _set("tokenizer.ggml.tokens", 300), "type array")
    case("tokens numbers", _set("tokenizer.ggml.tokens", [1] * 300), "must hold str")
    case("token twice", _doubled_tokens, "'t7' occurs twice")
    case("token twice up to a NUL", _nul_tokens, "'t7' occurs twice")
    case("scores too few", _set("tokenizer.ggml.scores", [0.0] * 299), "only 299")
    case("token types too few", _set("tokenizer.ggml.token_type", [1] * 10), "only 10")
    case("token types strings", _set("tokenizer.ggml.token_type", ["1"] * 300), "must hold i32")
    case("BOS out of range", _set("tokenizer.ggml.bos_token_id", 300), "bos_token_id is 300")
    case("BOS of type i32", _set("tokenizer.ggml.bos_token_id", np.int32(1)), "type u32")
    case("more tokens than rows", _shape("token_embd.weight", 64, 299), "token_embd.weight has shape")
    for name in ("token_embd.weight", "output_norm.weight", "blk.1.attn_norm.weight", "blk.0.ffn_norm.weight",
                 "blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.0.ffn_down.weight"):  # fmt: skip
        case(f"{name} missing", _lose(name), f"{name} is missing")
    case("attn_k shape", _shape("blk.1.attn_k.weight", 64, 64), "attn_k.weight has shape")
    case("norm in f16", _shape("blk.0.attn_norm.weight", 64, kind=1), "type F16", UnsupportedModelError)
    case("matrix in i8", _shape("blk.0.ffn_up.weight", 64, 128, kind=24), "type I8", UnsupportedModelError)
    case("bias shape", _add_tensor(b"blk.0.attn_q.bias", 32), "attn_q.bias has shape")
    case(
        "rope factors in f16", _add_tensor(b"rope_freqs.weight", 8, kind=1), "type F16", UnsupportedModelError
    )
    case("part 1 of 2 alone", _split(0), "must end in -00001-of-00002.gguf")


def _split(number: int) -> Callable[[Parts], None]:
    def damage(parts: Parts) -> None:
        parts.set("split.count", np.uint16(2))
        parts.set("split.no", np.uint16(number))
        parts.set("split.tensors.count", np.int32(len(parts.tensors)))

    return damage


def _mmproj_cases() -> None:
    case = lambda name, *rest: _case(name, "mmproj", *rest)  # noqa: E731
    vision = "clip.vision."
    case("a text model", _nothing, "model=", ModelFormatError, "text")
    case("projector_type a number", _set("clip.projector_type", 1), "type str")
    for kind, says in (
        ("qwen2vl_merger", "M-RoPE"),
        ("ultravox", "audio"),
        ("ldp", "ldp"),
        ("bogus", "bogus"),
    ):
        case(f"projector {kind}", _set("clip.projector_type", kind), says, UnsupportedModelError)
    case("no vision", _set("clip.has_vision_encoder", False), "no vision encoder", UnsupportedModelError)
    case("audio", _set("clip.has_audio_encoder", True), "audio", UnsupportedModelError)
    for key in ("clip.has_vision_encoder", "clip.use_gelu", "clip.use_silu", "clip.has_audio_encoder"):
        case(f"{key} of type u32", _set(key, 1), "type bool, not u32")
    case("gelu and silu", _gelu_and_silu, "both true")
    case("general.name a number", _set("general.name", 1), "type str")
    case("general.description a number", _set("general.description", 1), "type str")
    for key in ("image_size", "patch_size", "embedding_length", "feed_forward_length", "block_count",
                "projection_dim", "attention.head_count"):  # fmt: skip
        case(f"{key} missing", _drop(vision + key), f"lacks {vision + key}", UnsupportedModelError)
        case(f"{key} of type u64", _set(vision + key, np.uint64(2)), "type u32, not u64")
        case(f"{key} of type f32", _set(vision + key, 2.0), "type u32, not f32")
        case(f"{key} 2**31", _set(vision + key, 2**31), f"{key} is {2**31}")
    for key in ("image_size", "patch_size", "embedding_length", "block_count", "attention.head_count"):
        case(f"{key} 0", _set(vision + key, 0), f"{key} is 0")
    for key in ("attention.head_count_kv", "attention.head_dim"):
        case(f"{key} of type u64", _set(vision + key, np.uint64(4)), "type u32, not u64")
    case("query_num of type u64", _set("clip.minicpmv_query_num", np.uint64(4)), "type u32, not u64")
    case("head_dim", _set(vision + "attention.head_dim", 16), "heads do not divide")
    case("heads 5", _set(vision + "attention.head_count", 5), "5 heads")
    case("block_count a million", _set(vision + "block_count", 10**6), "block_count is 1000000")
    case("block_count 201", _set(vision + "block_count", 201), "block_count is 201")
    case("block_count one more", _set(vision + "block_count", 3), "v.blk.2.attn_q.weight is missing")
    case("patch larger than image", _set(vision + "patch_size", 56), "patch_size is 56")
    case("image size 42", _set(vision + "image_size", 42), "position_embd.weight has shape")
    case("patch size 7", _set(vision + "patch_size", 7), "patch_embd.weight has shape")
    case("epsilon of type f64", _set(vision + "attention.layer_norm_epsilon", np.float64(1e-5)), "not f64")
    case("epsilon NaN", _set(vision + "attention.layer_norm_epsilon", float("nan")), "epsilon is nan")
    for key in ("image_mean", "image_std"):
        case(f"{key} missing", _drop(vision + key), f"lacks {vision + key}", UnsupportedModelError)
        case(f"{key} of two", _set(vision + key, [0.5, 0.5]), "three finite numbers")
        case(f"{key} of integers", _set(vision + key, [1, 1, 1]), "must hold f32")
        case(f"{key} a number", _set(vision + key, 0.5), "type array")
    case("image_std 0", _set(vision + "image_std", [0.0, 1.0, 1.0]), "must be positive")
    case("feature_layer out of range", _set(vision + "feature_layer", [3]), "feature_layer")
    case("feature_layer negative", _set(vision + "feature_layer", [-2]), "feature_layer")
    case("feature_layer a number", _set(vision + "feature_layer", 2), "type array")
    case("two feature layers", _set(vision + "feature_layer", [1, 2]), "mm.0.weight has shape")
    case("pinpoints odd", _set(vision + "image_grid_pinpoints", [336, 672, 336]), "pinpoints")
    case("pinpoints below one tile", _set(vision + "image_grid_pinpoints", [336, 27]), "pinpoints")
    case("pinpoints between two tiles", _set(vision + "image_grid_pinpoints", [336, 340]), "pinpoints")
    case("merge type a number", _set(vision + "mm_patch_merge_type", 1), "type str")
    case("linear projector of v1", _linear_projector, "LLaVA-v1", UnsupportedModelError)
    for name in ("v.patch_embd.weight", "v.position_embd.weight", "v.pre_ln.bias", "mm.0.weight", "mm.0.bias",
                 "mm.2.bias", *(f"v.blk.{i}.{part}.{kind}" for i, part, kind in _BLOCK_TENSORS)):  # fmt: skip
        case(f"{name} missing", _lose(name), f"{name} is missing")
    case("class_embd missing", _lose("v.class_embd"), "position_embd.weight has shape")
    case("class_embd in f16", _shape("v.class_embd", 32, kind=1), "type F16", UnsupportedModelError)
    case(
        "patch kernel in i8",
        _shape("v.patch_embd.weight", 14, 14, 3, 32, kind=24),
        "I8",
        UnsupportedModelError,
    )
    case("patch bias shape", _add_tensor(b"v.patch_embd.bias", 16), "patch_embd.bias has shape")
    case("projector without rows", _empty_projector, "rows are empty")
    case("attn_v shape", _shape("v.blk.1.attn_v.weight", 32, 64), "attn_v.weight has shape")
    case("norm shape", _shape("v.blk.0.ln1.weight", 31), "ln1.weight has shape")
    case("norm in f16", _shape("v.blk.0.ln2.weight", 32, kind=1), "type F16", UnsupportedModelError)
    case("ffn shapes", _shape("v.blk.0.ffn_up.weight", 128, 32), "ffn_up.weight has shape")
    case("projector width", _shape("mm.0.weight", 16, 64), "mm.0.weight has shape")
    case("projector layers", _shape("mm.2.weight", 32, 64), "mm.2.weight has shape")


_BLOCK_TENSORS = (
    (0, "attn_q", "weight"), (1, "attn_k", "bias"), (1, "attn_v", "weight"), (0, "attn_out", "weight"),
    (1, "ln1", "weight"), (0, "ln2", "bias"), (1, "ffn_up", "weight"), (0, "ffn_down", "bias"),
)  # fmt: skip

for _role in ("text", "mmproj"):
    _format_cases(_role)
_text_cases()
_mmproj_cases()
