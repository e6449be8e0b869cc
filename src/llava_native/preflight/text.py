"""The check of a text model: its vocabulary, its hyperparameters, and for two architectures its tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..gguf import GGUFHeader, Tensor, read_header
from ._rules import MATRIX, VECTOR, Keys, check_tensor
from .vocab import check_vocab

__all__ = ["TextModelInfo", "all_tensors", "check_text_model"]

_MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
_MAX_EXPERTS: Final = 1024  # LLAMA_MAX_EXPERTS
_ROPE_SCALING: Final = frozenset({"none", "linear", "yarn", "longrope"})
# ggml maps weights into memory and asserts that they are aligned (TENSOR_ALIGNMENT).
_MIN_ALIGNMENT: Final = 32
_ROPE_FACTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class TextModelInfo(NamedTuple):
    """What the header of a text model says.

    Attributes
    ----------
    files : tuple of str
        The file, or all parts of a split model in order.
    n_embd : int
        Width of the rows that an image becomes; 0 when only the vocabulary was checked, as are
        `n_layer` and `n_ctx_train`.
    tokenizer, tokenizer_pre : str
        ``"llama"`` (SentencePiece) or ``"gpt2"`` (BPE); the pre-tokenizer's name, empty in files from
        before 2024-04-29, which must be given one.
    tensors_checked : bool
        Whether all tensors that the graph touches were checked: for the architectures ``llama``
        (LLaMA, Vicuna, Mistral, TinyLlama and more) and ``phi3``.
    weights_nbytes : int
        Size of all tensors in all files.
    """

    files: tuple[str, ...]
    architecture: str
    n_embd: int
    n_layer: int
    n_ctx_train: int
    n_vocab: int
    tokenizer: str
    tokenizer_pre: str
    has_chat_template: bool
    tensors_checked: bool
    weights_nbytes: int


def check_text_model(header: GGUFHeader, *, vocab_only: bool = False) -> TextModelInfo:
    """Check that a file is a text model which the native loader and its graph can take.

    Parameters
    ----------
    header : GGUFHeader
        As `read_header` returns it; of a split model, the first part. The others are read.
    vocab_only : bool
        Check no more than is read of a model loaded with ``vocab_only``.

    Returns
    -------
    TextModelInfo
        Its shape.

    Raises
    ------
    ModelFormatError
        It is an mmproj or an adapter, a part of it is missing, or its keys or tensors contradict each
        other.
    UnsupportedModelError
        It has no vocabulary or one that is neither SentencePiece nor BPE, needs M-RoPE positions, is
        an embedding model, or has a layout that ggml cannot map.

    Notes
    -----
    Out of reach afterwards: the assertions of ``llama_model_base::load_hparams`` and of the vocabulary
    loader, and those of the tokenizer about missing BOS and EOS ids. For the architectures ``llama``
    and ``phi3`` also missing tensors, and shapes and types that the graph asserts. Other architectures
    get the generic checks only: their own loaders and graphs assert more.
    """
    keys = Keys(header)
    architecture = _check_kind(keys)
    vocab = check_vocab(keys)
    template = keys.has("tokenizer.chat_template")
    if vocab_only:
        return TextModelInfo(
            (header.path,), architecture, 0, 0, 0, vocab.n_tokens, vocab.model, vocab.pre, template, False, 0
        )
    tensors, files = _parts(keys)
    shape = _check_hparams(keys, architecture)
    checked = architecture in ("llama", "phi3")
    if checked:
        _check_attention(keys, shape)
        _check_tensors(keys, shape, vocab.n_tokens, tensors)
    elif not tensors:
        keys.fail("it has a vocabulary but no weights")
    for name in _ROPE_FACTORS:  # asserted while the loader looks for a device that takes them
        if name in tensors and tensors[name].type not in VECTOR:
            keys.unsupported(f"the tensor {name} has type {tensors[name].type}, not F32")
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return TextModelInfo(
        files, architecture, shape.n_embd, shape.n_layer, shape.n_ctx_train, vocab.n_tokens,
        vocab.model, vocab.pre, template, checked, nbytes,
    )  # fmt: skip


class _Shape(NamedTuple):
    architecture: str
    n_embd: int
    n_layer: int
    n_ctx_train: int
    n_expert: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    head_k: int
    head_v: int
    n_rot: int


def _check_kind(keys: Keys) -> str:
    architecture = keys.text("general.architecture")
    if architecture == "clip":
        keys.fail("this is an mmproj (a vision encoder): pass it as mmproj=, and the text model as model=")
    if keys.text("general.type", "model") == "adapter":
        keys.fail("this is a LoRA adapter, not a model")
    if keys.header.alignment < _MIN_ALIGNMENT:
        keys.unsupported(f"its alignment is {keys.header.alignment} bytes; ggml needs {_MIN_ALIGNMENT}")
    return architecture


def all_tensors(header: GGUFHeader) -> dict[str, Tensor]:
    """Return the tensors of all parts of a model.

    Raises
    ------
    ModelFormatError
        A part is missing, or belongs to another model.
    """
    return _parts(Keys(header))[0]


def _parts(keys: Keys) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of all parts of the model, and the parts' paths."""
    header = keys.header
    if header.get("split.count", 0) in (0, 1):
        return header.tensors, (header.path,)
    count, number = (_u16(keys, key) for key in ("split.count", "split.no"))
    ending = f"-{number + 1:05d}-of-{count:05d}.gguf"
    if not header.path.endswith(ending):
        keys.fail(f"it is part {number + 1} of {count}, and its name must end in {ending}")
    stem = header.path.removesuffix(ending)
    files = tuple(f"{stem}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count))
    if number != 0:
        keys.fail(f"it is part {number + 1} of {count}: pass the first part, {files[0]}")
    missing = [file for file in files if not os.access(file, os.R_OK)]
    if missing:
        keys.fail(f"it is part 1 of {count}, and {missing[0]} is missing: download all parts")
    tensors = dict(header.tensors)
    for i, file in enumerate(files[1:], start=1):
        part = read_header(file)
        if _u16(Keys(part), "split.no") != i:
            Keys(part).fail(f"its name says part {i + 1}, its header says {part.get('split.no') + 1}")
        if tensors.keys() & part.tensors.keys() or part.alignment < _MIN_ALIGNMENT:
            Keys(part).fail("it is not a part of the same model")
        tensors |= part.tensors
    expected = header.get("split.tensors.count")
    if expected != len(tensors):
        keys.fail(f"its {count} parts hold {len(tensors)} tensors, expected {expected}")
    return tensors, files


def _u16(keys: Keys, key: str) -> int:
    found = keys.header.metadata.get(key)
    if found is None or found.type != "u16":
        keys.fail(f"{key} must be of type u16, not {found.type if found else 'missing'}")
    return int(found.value)


def _check_hparams(keys: Keys, architecture: str) -> _Shape:
    """Check what upstream reads for every architecture, in ``llama_model_base::load_hparams``."""
    prefix = f"{architecture}."
    n_ctx_train = keys.u32(prefix + "context_length", low=1)
    n_embd = keys.u32(prefix + "embedding_length", low=1, high=1 << 20)
    n_layer = keys.u32(prefix + "block_count", low=1, high=_MAX_LAYERS)
    keys.u32(prefix + "nextn_predict_layers", 0, high=n_layer - 1)
    if not keys.flag(prefix + "attention.causal", True):
        keys.unsupported("it is not causal: an embedding model, not one that writes text")
    n_expert = _check_experts(keys, prefix, n_layer)
    _check_rope(keys, prefix)
    n_head = keys.per_layer(prefix + "attention.head_count", n_layer, 0, high=1 << 16)
    n_head_kv = keys.per_layer(prefix + "attention.head_count_kv", n_layer, n_head[0], high=1 << 16)
    n_ff = keys.per_layer(prefix + "feed_forward_length", n_layer, 0)
    head = n_embd // n_head[0] if n_head[0] else 0
    head_k = keys.u32(prefix + "attention.key_length", head)
    return _Shape(
        architecture, n_embd, n_layer, n_ctx_train, n_expert, n_head, n_head_kv, n_ff,
        head_k, keys.u32(prefix + "attention.value_length", head),
        keys.u32(prefix + "rope.dimension_count", head_k),
    )  # fmt: skip


def _check_experts(keys: Keys, prefix: str, n_layer: int) -> int:
    n_expert = keys.u32(prefix + "expert_count", 0, high=_MAX_EXPERTS)
    used = max(keys.per_layer(prefix + "expert_used_count", n_layer, 0))
    groups = keys.u32(prefix + "expert_group_count", 0)
    groups_used = keys.u32(prefix + "expert_group_used_count", 0)
    if not (0 < used <= n_expert if n_expert else used == 0):
        keys.fail(f"{prefix}expert_used_count is {used} of {n_expert} experts")
    if groups and (groups >= n_expert or n_expert % groups or (groups > 1 and not 0 < groups_used < groups)):
        keys.fail(f"{groups_used} of {groups} groups of experts, with {n_expert} experts, make no sense")
    return n_expert


def _check_rope(keys: Keys, prefix: str) -> None:
    scaling = keys.text(prefix + "rope.scaling.type", "linear")
    if scaling not in _ROPE_SCALING:
        keys.fail(f"{prefix}rope.scaling.type is {scaling!r}, which llama.cpp does not know")
    sections = keys.array(prefix + "rope.dimension_sections", "u32", "i32")
    if sections is not None and any(sections.tolist()[:2]):
        keys.unsupported("it needs M-RoPE positions, which this package does not make")
    keys.u32(prefix + "rope.scaling.original_context_length", 0)
    for key in ("rope.freq_base", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"):
        keys.f32(prefix + key, 1.0, low=0.0)


def _check_attention(keys: Keys, shape: _Shape) -> None:
    """Check what the graphs of llama and phi3 assert about heads."""
    n_head, n_head_kv = shape.n_head[0], shape.n_head_kv[0]
    for values in (shape.n_head, shape.n_head_kv, shape.n_ff):
        if len(set(values)) > 1:
            keys.unsupported(f"its layers differ ({values}), which {shape.architecture} does not allow")
    if not 0 < n_head_kv <= n_head or n_head % n_head_kv:
        keys.fail(f"{n_head} heads cannot share {n_head_kv} key/value heads")
    exact = shape.architecture == "phi3" or not keys.has(f"{shape.architecture}.attention.key_length")
    if exact and shape.head_k * n_head != shape.n_embd:
        keys.fail(f"{n_head} heads do not divide {shape.n_embd} features")
    if not 0 < shape.head_k == shape.head_v:
        keys.fail(f"keys of length {shape.head_k} and values of length {shape.head_v}")
    if shape.n_rot % 2 or not 0 < shape.n_rot <= shape.head_k:
        keys.fail(f"rope.dimension_count is {shape.n_rot} for heads of length {shape.head_k}")
    if shape.architecture == "llama" and shape.n_rot != shape.head_k:
        keys.fail(f"llama.rope.dimension_count is {shape.n_rot}, expected {shape.head_k}")
    if keys.u32(f"{shape.architecture}.nextn_predict_layers", 0):
        keys.unsupported("it has layers that predict further tokens, which its architecture does not run")
    keys.f32(f"{shape.architecture}.attention.layer_norm_rms_epsilon", low=0.0)


def _check_tensors(keys: Keys, shape: _Shape, n_vocab: int, tensors: dict[str, Tensor]) -> None:
    n_embd = shape.n_embd
    check_tensor(keys, tensors, "token_embd.weight", (n_embd, n_vocab), MATRIX)
    check_tensor(keys, tensors, "output_norm.weight", (n_embd,), VECTOR)
    check_tensor(keys, tensors, "output.weight", (n_embd, n_vocab), MATRIX, required=False)
    if "output.weight" not in tensors and {"output.scale", "output.input_scale"} & tensors.keys():
        keys.fail("it has scales for an output tensor that it lacks")
    for name in _ROPE_FACTORS:
        check_tensor(keys, tensors, name, (shape.n_rot // 2,), VECTOR, required=False)
    for i in range(shape.n_layer):
        block = f"blk.{i}."
        for name, size in _block_matrices(keys, shape, block, tensors):
            check_tensor(keys, tensors, f"{block}{name}.weight", size, MATRIX)
            for extra, length in (
                ("bias", size[1:]),
                ("scale", size[2:] or (1,)),
                ("input_scale", size[2:] or (1,)),
            ):
                check_tensor(keys, tensors, f"{block}{name}.{extra}", length, VECTOR, required=False)
        check_tensor(keys, tensors, f"{block}attn_norm.weight", (n_embd,), VECTOR)
        check_tensor(keys, tensors, f"{block}ffn_norm.weight", (n_embd,), VECTOR)


def _block_matrices(
    keys: Keys, shape: _Shape, block: str, tensors: dict[str, Tensor]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the matrices of one block and their shapes."""
    n_embd, n_ff, n_expert = shape.n_embd, shape.n_ff[0], shape.n_expert
    n_q, n_kv = shape.head_k * shape.n_head[0], shape.head_k * shape.n_head_kv[0]
    if f"{block}attn_qkv.weight" in tensors:
        yield "attn_qkv", (n_embd, n_q + 2 * n_kv)
    else:
        yield from (("attn_q", (n_embd, n_q)), ("attn_k", (n_embd, n_kv)), ("attn_v", (n_embd, n_kv)))
    yield "attn_output", (n_q, n_embd)
    if n_ff < 1:
        keys.fail(f"{shape.architecture}.feed_forward_length is {n_ff}")
    if shape.architecture == "phi3":
        yield from (("ffn_up", (n_embd, 2 * n_ff)), ("ffn_down", (n_ff, n_embd)))
    elif n_expert == 0:
        yield from (("ffn_gate", (n_embd, n_ff)), ("ffn_up", (n_embd, n_ff)), ("ffn_down", (n_ff, n_embd)))
    else:
        yield "ffn_gate_inp", (n_embd, n_expert)
        for name in ("ffn_gate_exps", "ffn_up_exps"):
            yield name, (n_embd, n_ff, n_expert)
        yield "ffn_down_exps", (n_ff, n_embd, n_expert)
