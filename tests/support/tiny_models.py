"""Tiny LLaVA models with random weights, written in under a second and the same on every machine.

All weights are float16 numbers, whichever type the file stores, so a file in any layout and type
holds exactly the arrays that the functions return: the references in `reference` need no tolerance
for storage. Their scale keeps activations near 1 through every layer, and the position embeddings
are as large as the patches, so that a shifted position, a dropped layer or a swapped row shows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .gguf_file import Raw, read_kv, write_gguf

Weights = dict[str, np.ndarray]
Layout = Literal["legacy", "full", "modern"]
Vocab = Literal["phi-3", "llama-bpe", "llama-spm"]
Dtype = Literal["f32", "f16"]

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# Both are text-only: they trim or concatenate `content`, so a list of parts breaks them.
CHAT_TEMPLATES: dict[Vocab, str] = {
    "phi-3": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}"
        "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
        "{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}"
        "{% endif %}{% endfor %}"
    ),
    "llama-bpe": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
        "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
}

_LEGACY_NAMES: dict[Vocab, str] = {
    "phi-3": "LLaMA v2",
    "llama-bpe": "llava-llama-3-8b-v1_1",
    "llama-spm": "LLaMA v2",
}


@dataclass(frozen=True)
class VisionParams:
    """Shape of a vision tower; `n_layer` counts the whole tower, whatever the file keeps of it."""

    image_size: int = 28
    patch_size: int = 14
    n_embd: int = 32
    n_head: int = 4
    n_layer: int = 3
    n_ff: int = 64
    n_embd_text: int = 64
    eps: float = 1e-5

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextParams:
    """Shape of a Llama; `n_vocab` is that of the copied vocabulary."""

    n_vocab: int
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_layer: int = 2
    n_ff: int = 128
    n_ctx_train: int = 2048
    rope_base: float = 10000.0
    eps: float = 1e-5


@dataclass(frozen=True)
class TinyModel:
    """A file, the weights in it and their shape."""

    path: Path
    weights: Weights = field(repr=False)
    params: Any


@dataclass(frozen=True)
class TinyLlava:
    """A text model and the mmproj that fits it."""

    text: TinyModel
    mmproj: TinyModel


def llama_cpp_dir() -> Path:
    """Return the llama.cpp tree that the build uses: the user's, or the vendored one."""
    named = os.environ.get("LLAVA_NATIVE_LLAMA_CPP")
    return Path(named) if named else Path(__file__).parents[2] / "vendor" / "llama.cpp"


def write_pair(
    folder: Path,
    *,
    layout: Layout = "legacy",
    vocab: Vocab = "phi-3",
    dtype: Dtype = "f16",
    seed: int = 0,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> TinyLlava:
    """Write ``text.gguf`` and ``mmproj.gguf`` into `folder`.

    Parameters
    ----------
    vision, text : mapping, optional
        Further arguments of `write_mmproj` and `write_text_model`; the width of the projector's
        rows follows the text model.
    """
    text_model = write_text_model(folder / "text.gguf", vocab=vocab, dtype=dtype, seed=seed, **(text or {}))
    shape = {"n_embd_text": text_model.params.n_embd, **(vision or {})}
    mmproj = write_mmproj(folder / "mmproj.gguf", layout=layout, dtype=dtype, seed=seed, **shape)
    return TinyLlava(text_model, mmproj)


def write_mmproj(
    path: Path,
    *,
    layout: Layout = "legacy",
    dtype: Dtype = "f16",
    seed: int = 0,
    kv: Mapping[str, Any] | None = None,
    drop_tensors: Collection[str] = (),
    **shape: Any,
) -> TinyModel:
    """Write the vision tower and projector of a LLaVA-1.5.

    Parameters
    ----------
    path : Path
        The file to write.
    layout : {"legacy", "full", "modern"}
        ``legacy`` is what the converter of April 2024 wrote: the last block dropped and not counted,
        no post-layernorm, ``ffn_up`` and ``ffn_down`` swapped, 377-tensor style. ``modern`` is what
        today's ``legacy-models/convert_image_encoder_to_gguf.py`` writes for a configuration with
        ``vision_feature_layer = -2``: the same and ``clip.vision.feature_layer``.
        (``convert_hf_to_gguf.py`` refuses LLaVA-1.5.) ``full`` keeps every block and the
        post-layernorm, under the right names. The right features are the same for all three.
    dtype : {"f32", "f16"}
        Type of the matrices. The legacy and modern layouts store the projector and the patch kernel
        as f16 anyway, as their converter does.
    seed : int
        The weights depend on it and on the shape, on nothing else.
    kv : mapping, optional
        Values that replace or join the file's; None removes a key.
    drop_tensors : collection of str
        GGUF names to leave out.
    **shape
        Fields of `VisionParams`.

    Returns
    -------
    TinyModel
        Its weights are float32 under their Hugging Face names, the whole tower in each layout.
    """
    params = VisionParams(**shape)
    weights = vision_weights(params, seed)
    tensors: Weights = {}
    for name, array in weights.items():
        gguf_name = _mmproj_name(name, layout, params)
        if gguf_name is not None and gguf_name not in drop_tensors:
            tensors[gguf_name] = _stored(array, _mmproj_dtype(gguf_name, array, layout, dtype))
    write_gguf(path, _merged(_mmproj_kv(layout, dtype, params), kv), tensors)
    return TinyModel(path, weights, params)


def write_text_model(
    path: Path,
    *,
    vocab: Vocab = "phi-3",
    dtype: Dtype = "f16",
    seed: int = 0,
    chat_template: str | None = None,
    legacy: bool = True,
    likely: int | None = None,
    kv: Mapping[str, Any] | None = None,
    drop_tensors: Collection[str] = (),
    **shape: Any,
) -> TinyModel:
    """Write a Llama with a real vocabulary.

    Parameters
    ----------
    path : Path
        The file to write.
    vocab : {"phi-3", "llama-bpe", "llama-spm"}
        Which of llama.cpp's vocabulary files to copy.
    dtype : {"f32", "f16"}
        Type of the matrices.
    seed : int
        The weights depend on it and on the shape, on nothing else.
    chat_template : str, optional
        Template to store; see `CHAT_TEMPLATES` for the seed models' kind. None stores none.
    legacy : bool
        Whether to lack what the converters of April 2024 lacked: ``tokenizer.ggml.pre``, a telling
        ``general.name``; a BPE vocabulary then has the scores that they wrote.
    likely : int, optional
        A token that comes about every sixth time, as the end of a turn.
    kv, drop_tensors
        As for `write_mmproj`.
    **shape
        Fields of `TextParams`, except `n_vocab`.

    Returns
    -------
    TinyModel
        Its weights are float32 under their GGUF names, with the rows of ``attn_q`` and ``attn_k`` in
        GGUF's order (rotated pairs side by side).
    """
    vocabulary = _vocabulary(vocab, legacy)
    n_vocab = vocabulary["tokenizer.ggml.tokens"].count
    assert n_vocab is not None
    shape.setdefault("rope_base", 500000.0 if vocab == "llama-bpe" else 10000.0)
    params = TextParams(n_vocab=n_vocab, **shape)
    weights = text_weights(params, seed)
    if likely is not None:
        weights["output.weight"][likely] *= 4
    metadata = _text_kv(params, dtype, _LEGACY_NAMES[vocab] if legacy else f"Tiny {vocab}")
    metadata |= vocabulary
    if legacy and vocab == "llama-bpe":
        metadata["tokenizer.ggml.scores"] = [0.0] * n_vocab
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = chat_template
    tensors = {
        name: _stored(array, dtype if array.ndim == 2 else "f32")
        for name, array in weights.items()
        if name not in drop_tensors
    }
    write_gguf(path, _merged(metadata, kv), tensors)
    return TinyModel(path, weights, params)


def write_recurrent_model(path: Path, *, seed: int = 0, n_embd: int = 64, n_layer: int = 2) -> Path:
    """Write a Mamba with Phi-3's vocabulary: a text model whose memory is one state, not a cell a token."""
    vocabulary = _vocabulary("phi-3", legacy=False)
    n_vocab = vocabulary["tokenizer.ggml.tokens"].count
    n_inner, n_state, n_conv, n_rank = 2 * n_embd, 8, 4, 4
    draw = _Draw(seed)
    draw.normal("token_embd.weight", (n_vocab, n_embd), 1.0)
    draw.norm("output_norm", n_embd, bias=False)
    draw.linear("output", n_vocab, n_embd, bias=False)
    for i in range(n_layer):
        block = f"blk.{i}."
        draw.norm(f"{block}attn_norm", n_embd, bias=False)
        draw.linear(f"{block}ssm_in", 2 * n_inner, n_embd, bias=False)
        draw.linear(f"{block}ssm_conv1d", n_inner, n_conv)
        draw.linear(f"{block}ssm_x", n_rank + 2 * n_state, n_inner, bias=False)
        draw.linear(f"{block}ssm_dt", n_inner, n_rank)
        draw.normal(f"{block}ssm_a", (n_inner, n_state), 0.1, mean=-1.0)
        draw.normal(f"{block}ssm_d", (n_inner,), 1.0)
        draw.linear(f"{block}ssm_out", n_embd, n_inner, bias=False)
    metadata = {
        "general.architecture": "mamba",
        "mamba.context_length": 2048,
        "mamba.embedding_length": n_embd,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.block_count": n_layer,
        "mamba.ssm.conv_kernel": n_conv,
        "mamba.ssm.inner_size": n_inner,
        "mamba.ssm.state_size": n_state,
        "mamba.ssm.time_step_rank": n_rank,
        "mamba.attention.layer_norm_rms_epsilon": 1e-5,
    }
    write_gguf(path, metadata | vocabulary, {n: _stored(array, "f32") for n, array in draw.weights.items()})
    return path


def vision_weights(params: VisionParams, seed: int) -> Weights:
    """Return a whole CLIP tower and its projector under their Hugging Face names."""
    draw = _Draw(seed)
    n, patch = params.n_embd, params.patch_size
    root = "vision_model."
    draw.normal(f"{root}embeddings.class_embedding", (n,), 1.0)
    draw.normal(f"{root}embeddings.patch_embedding.weight", (n, 3, patch, patch), (3 * patch**2) ** -0.5)
    draw.normal(f"{root}embeddings.position_embedding.weight", (params.n_patches + 1, n), 1.0)
    draw.norm(f"{root}pre_layrnorm", n)
    for i in range(params.n_layer):
        block = f"{root}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            draw.linear(f"{block}self_attn.{part}", n, n)
        draw.norm(f"{block}layer_norm1", n)
        draw.linear(f"{block}mlp.fc1", params.n_ff, n)
        draw.linear(f"{block}mlp.fc2", n, params.n_ff)
        draw.norm(f"{block}layer_norm2", n)
    draw.norm(f"{root}post_layernorm", n)
    draw.linear("multi_modal_projector.linear_1", params.n_embd_text, n)
    draw.linear("multi_modal_projector.linear_2", params.n_embd_text, params.n_embd_text)
    return draw.weights


def text_weights(params: TextParams, seed: int) -> Weights:
    """Return the weights of a Llama under their GGUF names."""
    draw = _Draw(seed + 1_000_003)  # unlike the tower's, for the same seed
    n, head = params.n_embd, params.n_embd // params.n_head
    draw.normal("token_embd.weight", (params.n_vocab, n), 1.0)
    for i in range(params.n_layer):
        block = f"blk.{i}."
        draw.norm(f"{block}attn_norm", n, bias=False)
        draw.linear(f"{block}attn_q", n, n, bias=False)
        draw.linear(f"{block}attn_k", params.n_head_kv * head, n, bias=False)
        draw.linear(f"{block}attn_v", params.n_head_kv * head, n, bias=False)
        draw.linear(f"{block}attn_output", n, n, bias=False)
        draw.norm(f"{block}ffn_norm", n, bias=False)
        draw.linear(f"{block}ffn_gate", params.n_ff, n, bias=False)
        draw.linear(f"{block}ffn_up", params.n_ff, n, bias=False)
        draw.linear(f"{block}ffn_down", n, params.n_ff, bias=False)
    draw.norm("output_norm", n, bias=False)
    draw.linear("output", params.n_vocab, n, bias=False)
    return draw.weights


class _Draw:
    """Collects random weights, each a float16 number in a float32 array."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.weights: Weights = {}

    def normal(self, name: str, shape: tuple[int, ...], scale: float, mean: float = 0.0) -> None:
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale) + np.float32(mean)
        self.weights[name] = values.astype(np.float16).astype(np.float32)

    def linear(self, name: str, n_out: int, n_in: int, *, bias: bool = True) -> None:
        self.normal(f"{name}.weight", (n_out, n_in), n_in**-0.5)
        if bias:
            self.normal(f"{name}.bias", (n_out,), 0.1)

    def norm(self, name: str, size: int, *, bias: bool = True) -> None:
        self.normal(f"{name}.weight", (size,), 0.1, mean=1.0)
        if bias:
            self.normal(f"{name}.bias", (size,), 0.1)


def _mmproj_name(name: str, layout: Layout, params: VisionParams) -> str | None:
    """Return the GGUF name of a Hugging Face tensor, None where the layout leaves it out."""
    if layout != "full" and (".post_layernorm" in name or f".layers.{params.n_layer - 1}." in name):
        return None
    swapped = ("ffn_down", "ffn_up") if layout != "full" else ("ffn_up", "ffn_down")
    for old, new in (
        ("multi_modal_projector.linear_1", "mm.0"),
        ("multi_modal_projector.linear_2", "mm.2"),
        ("vision_model", "v"),
        ("encoder.layers", "blk"),
        ("embeddings.", ""),
        ("_proj", ""),
        ("self_attn.", "attn_"),
        ("layer_norm", "ln"),
        ("pre_layrnorm", "pre_ln"),  # Hugging Face's own spelling
        ("post_layernorm", "post_ln"),
        ("mlp.fc1", swapped[0]),
        ("mlp.fc2", swapped[1]),
        ("embedding", "embd"),
    ):
        name = name.replace(old, new)
    return name


def _mmproj_dtype(name: str, array: np.ndarray, layout: Layout, dtype: Dtype) -> Dtype:
    if array.ndim < 2:
        return "f32"
    always_f16 = layout != "full" and (array.ndim == 4 or name.startswith("mm."))
    return "f16" if always_f16 else dtype


def _mmproj_kv(layout: Layout, dtype: Dtype, params: VisionParams) -> dict[str, Any]:
    """Return the 19 pairs of the old converter, in its order, or 20 for the modern layout."""
    n_block = params.n_layer if layout == "full" else params.n_layer - 1
    pairs = {
        "general.architecture": "clip",
        "clip.has_text_encoder": False,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "general.file_type": int(dtype == "f16"),
        "general.name": "openai/clip-vit-large-patch14-336",
        "general.description": "image encoder for LLaVA",
        "clip.projector_type": "mlp",
        "clip.vision.image_size": params.image_size,
        "clip.vision.patch_size": params.patch_size,
        "clip.vision.embedding_length": params.n_embd,
        "clip.vision.feed_forward_length": params.n_ff,
        "clip.vision.projection_dim": 768,
        "clip.vision.attention.head_count": params.n_head,
        "clip.vision.attention.layer_norm_epsilon": params.eps,
        "clip.vision.block_count": n_block,
        "clip.vision.image_mean": CLIP_MEAN,
        "clip.vision.image_std": CLIP_STD,
        "clip.use_gelu": False,
    }
    if layout == "modern":
        pairs["clip.vision.feature_layer"] = [n_block]
    return pairs


def _text_kv(params: TextParams, dtype: Dtype, name: str) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": int(dtype == "f16"),
        "llama.vocab_size": params.n_vocab,
        "llama.context_length": params.n_ctx_train,
        "llama.embedding_length": params.n_embd,
        "llama.block_count": params.n_layer,
        "llama.feed_forward_length": params.n_ff,
        "llama.rope.dimension_count": params.n_embd // params.n_head,
        "llama.rope.freq_base": params.rope_base,
        "llama.attention.head_count": params.n_head,
        "llama.attention.head_count_kv": params.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": params.eps,
    }


def _vocabulary(vocab: Vocab, legacy: bool) -> dict[str, Raw]:
    left_out = {"tokenizer.chat_template"} | ({"tokenizer.ggml.pre"} if legacy else set())
    pairs = read_kv(llama_cpp_dir() / "models" / f"ggml-vocab-{vocab}.gguf")
    return {k: v for k, v in pairs.items() if k.startswith("tokenizer.") and k not in left_out}


def _stored(array: np.ndarray, dtype: Dtype) -> np.ndarray:
    return array.astype("<f2" if dtype == "f16" else "<f4")


def _merged(pairs: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    merged = {**pairs, **(changes or {})}
    return {key: value for key, value in merged.items() if value is not None}
