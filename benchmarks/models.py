"""Write models of the seeds' real shapes with random weights: speed does not depend on the values.

The files have the metadata, tensor names, types and sizes of xtuner's llava-phi-3-mini and
llava-llama-3-8b-v1_1 files, vocabulary included; only what they say means nothing. Weights are drawn
tensor by tensor from a seed and written as they are drawn, so memory stays at one tensor.

    python benchmarks/models.py                         # phi-3-mini: mmproj F16 and Q4_K_M text
    python benchmarks/models.py --model llama-3-8b      # the same for llama-3-8b
    python benchmarks/models.py --keep-f16              # keep the F16 text file (7.6 GB) too
    python benchmarks/models.py --only mmproj stub      # without the large text file
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import peers

SEED = 20240429
CHUNK = 1 << 22  # values drawn at a time
NORM_EPS = 1e-5
KINDS = ("mmproj", "stub", "text")
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

PHI3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|system|>' + '\n' + message['content'] + '<|end|>' + '\n'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


@dataclasses.dataclass(frozen=True)
class TextShape:
    """What a seed's text file says about itself."""

    stem: str
    name: str
    vocab_file: str
    template: str
    n_vocab: int
    n_ctx: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    rope_base: float
    n_plain: tuple[int, int]  # ids of ordinary text: the only ones that greedy decoding may pick

    @property
    def n_kv(self) -> int:
        """Width of the keys and of the values."""
        return self.n_embd // self.n_head * self.n_head_kv


@dataclasses.dataclass(frozen=True)
class VisionShape:
    """CLIP ViT-L/14-336 as the April 2024 converter wrote it: the last block left out."""

    n_embd: int = 1024
    n_ff: int = 4096
    n_layer: int = 23
    n_head: int = 16
    image_size: int = 336
    patch_size: int = 14
    projection_dim: int = 768

    @property
    def n_positions(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to draw: NumPy shape, type, mean and standard deviation of its values."""

    name: str
    shape: tuple[int, ...]
    dtype: type
    std: float
    mean: float = 0.0
    zero_outside: tuple[int, int] | None = None  # rows kept; all others are zero

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


TEXT = {
    "phi-3-mini": TextShape(
        stem="llava-phi-3-mini",
        name="LLaMA v2",
        vocab_file="ggml-vocab-phi-3.gguf",
        template=PHI3_TEMPLATE,
        n_vocab=32064,
        n_ctx=4096,
        n_embd=3072,
        n_ff=8192,
        n_layer=32,
        n_head=32,
        n_head_kv=32,
        rope_base=10000.0,
        n_plain=(259, 32000),
    ),
    "llama-3-8b": TextShape(
        stem="llava-llama-3-8b-v1_1",
        name="llava-llama-3-8b-v1_1",
        vocab_file="ggml-vocab-llama-bpe.gguf",
        template=LLAMA3_TEMPLATE,
        n_vocab=128256,
        n_ctx=8192,
        n_embd=4096,
        n_ff=14336,
        n_layer=32,
        n_head=32,
        n_head_kv=8,
        rope_base=500000.0,
        n_plain=(256, 128000),
    ),
}
EMBD_STD = 0.3  # of a token's row; the projector's rows come out about as large


def text_tensors(shape: TextShape) -> Iterator[Tensor]:
    """Yield a llama model's tensors, scaled so that the residual stream neither dies nor explodes.

    Matrices have unit gain; the two that write into the residual share one unit of variance among
    all layers. Rows of the head outside `n_plain` are zero, so greedy decoding never picks a
    control token and never ends early.
    """
    embd, kv, ff, half = shape.n_embd, shape.n_kv, shape.n_ff, np.float16
    gain, residual = embd**-0.5, (2 * shape.n_layer) ** -0.5
    yield Tensor("token_embd.weight", (shape.n_vocab, embd), half, EMBD_STD)
    for i in range(shape.n_layer):
        block = f"blk.{i}."
        yield Tensor(block + "attn_q.weight", (embd, embd), half, 1.8 * gain)
        yield Tensor(block + "attn_k.weight", (kv, embd), half, 1.8 * gain)
        yield Tensor(block + "attn_v.weight", (kv, embd), half, gain)
        yield Tensor(block + "attn_output.weight", (embd, embd), half, 3 * gain * residual)
        yield Tensor(block + "ffn_gate.weight", (ff, embd), half, gain)
        yield Tensor(block + "ffn_up.weight", (ff, embd), half, gain)
        yield Tensor(block + "ffn_down.weight", (embd, ff), half, 2 * ff**-0.5 * residual)
        yield Tensor(block + "attn_norm.weight", (embd,), np.float32, 0.1, 1.0)
        yield Tensor(block + "ffn_norm.weight", (embd,), np.float32, 0.1, 1.0)
    yield Tensor("output_norm.weight", (embd,), np.float32, 0.1, 1.0)
    yield Tensor("output.weight", (shape.n_vocab, embd), half, 4 * gain, zero_outside=shape.n_plain)


def vision_tensors(shape: VisionShape, n_embd_text: int) -> Iterator[Tensor]:
    """Yield the legacy mmproj's tensors: 16 a block, no post-layernorm, ffn names swapped."""
    embd, ff, half, single = shape.n_embd, shape.n_ff, np.float16, np.float32
    residual, patch = (2 * shape.n_layer) ** -0.5, shape.patch_size
    yield Tensor("v.class_embd", (embd,), single, 0.02)
    yield Tensor("v.patch_embd.weight", (embd, 3, patch, patch), half, (3 * patch**2) ** -0.5)
    yield Tensor("v.position_embd.weight", (shape.n_positions, embd), half, 0.3)
    yield Tensor("v.pre_ln.weight", (embd,), single, 0.1, 1.0)
    yield Tensor("v.pre_ln.bias", (embd,), single, 0.02)
    # "ffn_down" is CLIP's fc1 and "ffn_up" its fc2 in files of that age
    linears = (
        ("attn_q", embd, embd, 1.5),
        ("attn_k", embd, embd, 1.5),
        ("attn_v", embd, embd, 1.0),
        ("attn_out", embd, embd, 3 * residual),
        ("ffn_down", ff, embd, 1.0),
        ("ffn_up", embd, ff, 2 * residual),
    )
    for i in range(shape.n_layer):
        for name, rows, columns, gain in linears:
            yield Tensor(f"v.blk.{i}.{name}.weight", (rows, columns), half, gain * columns**-0.5)
            yield Tensor(f"v.blk.{i}.{name}.bias", (rows,), single, 0.02)
        for name in ("ln1", "ln2"):
            yield Tensor(f"v.blk.{i}.{name}.weight", (embd,), single, 0.1, 1.0)
            yield Tensor(f"v.blk.{i}.{name}.bias", (embd,), single, 0.02)
    yield Tensor("mm.0.weight", (n_embd_text, embd), half, embd**-0.5)
    yield Tensor("mm.0.bias", (n_embd_text,), single, 0.02)
    yield Tensor("mm.2.weight", (n_embd_text, n_embd_text), half, EMBD_STD / 0.8 * n_embd_text**-0.5)
    yield Tensor("mm.2.bias", (n_embd_text,), single, 0.02)


def draw(tensor: Tensor, seed: int) -> np.ndarray:
    """Return the tensor's values; they depend on the seed and the tensor's name only."""
    stream = np.random.SeedSequence([seed, zlib.crc32(tensor.name.encode())])
    random = np.random.Generator(np.random.SFC64(stream))
    out: np.ndarray = np.empty(int(np.prod(tensor.shape)), tensor.dtype)
    for start in range(0, out.size, CHUNK):
        part = random.standard_normal(min(CHUNK, out.size - start), np.float32)
        part *= tensor.std
        part += tensor.mean
        out[start : start + part.size] = part
    out = out.reshape(tensor.shape)
    if tensor.zero_outside:
        low, high = tensor.zero_outside
        out[:low] = 0
        out[high:] = 0
    return out


def add_vocab(writer: gguf.GGUFWriter, shape: TextShape, vocab: Path) -> None:
    """Add the tokenizer, taken from one of llama.cpp's vocab-only files, as the 2024 files have it.

    A BPE vocabulary gets scores and no ``tokenizer.ggml.pre``; an SPM one has scores anyway and is
    padded with ``<dummy000NN>``.
    """
    fields = gguf.GGUFReader(vocab).fields
    take = {key.rpartition(".")[2]: key for key in fields if key.startswith("tokenizer.ggml.")}
    values = {name: fields[key].contents() for name, key in take.items()}
    tokens, types = values["tokens"], values["token_type"]
    pads = [i for i, text in enumerate(tokens) if text.startswith("[PAD")]
    for n, i in enumerate(pads, 1):
        tokens[i], types[i] = f"<dummy{n:05}>", gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model(values["model"])
    writer.add_token_list(tokens)
    writer.add_token_scores(values.get("scores", [0.0] * len(tokens)))
    writer.add_token_types(types)
    if "merges" in values:
        writer.add_token_merges(values["merges"])
    writer.add_bos_token_id(values["bos_token_id"])
    writer.add_eos_token_id(values["eos_token_id"])
    if "unknown_token_id" in values:
        writer.add_unk_token_id(values["unknown_token_id"])
        writer.add_pad_token_id(values["padding_token_id"])
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
    writer.add_chat_template(shape.template)


def add_text_keys(writer: gguf.GGUFWriter, shape: TextShape) -> None:
    """Add the model's own keys, those of the April 2024 ``convert.py``."""
    writer.add_name(shape.name)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_vision_keys(writer: gguf.GGUFWriter, shape: VisionShape) -> None:
    """Add the 19 keys (``general.architecture`` counted) of the 2024 image-encoder converter."""
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_name("openai/clip-vit-large-patch14-336")
    writer.add_description("image encoder for LLaVA")
    writer.add_string("clip.projector_type", "mlp")
    writer.add_uint32("clip.vision.image_size", shape.image_size)
    writer.add_uint32("clip.vision.patch_size", shape.patch_size)
    writer.add_uint32("clip.vision.embedding_length", shape.n_embd)
    writer.add_uint32("clip.vision.feed_forward_length", shape.n_ff)
    writer.add_uint32("clip.vision.projection_dim", shape.projection_dim)
    writer.add_uint32("clip.vision.attention.head_count", shape.n_head)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", NORM_EPS)
    writer.add_uint32("clip.vision.block_count", shape.n_layer)
    writer.add_array("clip.vision.image_mean", list(IMAGE_MEAN))
    writer.add_array("clip.vision.image_std", list(IMAGE_STD))
    writer.add_bool("clip.use_gelu", False)


def stream(writer: gguf.GGUFWriter, path: Path, tensors: list[Tensor], seed: int) -> Path:
    """Write header, keys and tensors to `path`, one tensor in memory at a time."""
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(tensor.dtype), tensor.nbytes)
    partial = path.with_suffix(".partial")
    writer.write_header_to_file(partial)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(draw(tensor, seed))
    writer.close()
    return partial.replace(path)


def write_mmproj(path: Path, n_embd_text: int, *, shape: VisionShape | None = None, seed: int = SEED) -> Path:
    """Write a CLIP-L/14-336 mmproj in F16 in the legacy layout: 377 tensors, 608 MB."""
    shape = shape or VisionShape()
    writer = gguf.GGUFWriter(None, "clip")
    add_vision_keys(writer, shape)
    return stream(writer, path, list(vision_tensors(shape, n_embd_text)), seed)


def write_text(path: Path, shape: TextShape, vocab: Path, *, seed: int = SEED) -> Path:
    """Write a text model in F16; `vocab` is a vocab-only GGUF of llama.cpp's ``models`` folder."""
    writer = gguf.GGUFWriter(None, "llama")
    add_text_keys(writer, shape)
    add_vocab(writer, shape, vocab)
    return stream(writer, path, list(text_tensors(shape)), seed)


def quantize(tool: Path, source: Path, target: Path, kind: str = "Q4_K_M", threads: int = 0) -> Path:
    """Quantise with llama.cpp's own program."""
    partial = target.with_suffix(".partial")
    command = [str(tool), str(source), str(partial), kind]
    if threads:
        command.append(str(threads))
    subprocess.run(command, check=True, stdout=sys.stderr)
    return partial.replace(target)


def _vocab(source: str | Path | None, shape: TextShape) -> Path:
    """Return llama.cpp's vocab-only file for this model."""
    return peers.source_dir(source) / "models" / shape.vocab_file


def _ensure_text(
    folder: Path, shape: TextShape, source: str | Path | None, seed: int, tool: Path | None
) -> Path:
    """Return the Q4_K_M text file, made from a streamed F16 one that is kept for the caller to drop."""
    target, full = folder / f"{shape.stem}-int4.gguf", folder / f"{shape.stem}-f16.gguf"
    if not target.exists():
        if not full.exists():
            write_text(full, shape, _vocab(source, shape), seed=seed)
        tool = tool or peers.build(source, cache=folder, targets=("llama-quantize",))["llama-quantize"]
        quantize(tool, full, target)
    return target


def ensure(
    model: str = "phi-3-mini",
    *,
    only: tuple[str, ...] = KINDS,
    cache: str | Path | None = None,
    source: str | Path | None = None,
    keep_f16: bool = False,
    seed: int = SEED,
    tool: Path | None = None,
) -> dict[str, Path]:
    """Return the model's files, written first if the cache lacks them.

    Parameters
    ----------
    model : {"phi-3-mini", "llama-3-8b"}
        Which seed's shapes.
    only : tuple of {"mmproj", "text", "stub"}
        Which files. The stub is the text model with one layer, in F16: it has the width that the
        mmproj needs and costs next to nothing, for timing images alone.
    cache, source
        As in `peers.build`.
    keep_f16 : bool, default False
        Keep the F16 text file that the Q4_K_M one is made from.
    seed : int
        Of the weights.
    tool : Path, optional
        A ``llama-quantize``; default the one that `peers.build` builds.

    Returns
    -------
    dict of str to Path
        The files asked for and, if kept, ``"text_f16"``.
    """
    folder, shape = peers.cache_dir(cache), TEXT[model]
    full = folder / f"{shape.stem}-f16.gguf"
    files: dict[str, Path] = {}
    if "mmproj" in only:
        files["mmproj"] = folder / f"{shape.stem}-mmproj-f16.gguf"
        if not files["mmproj"].exists():
            write_mmproj(files["mmproj"], shape.n_embd, seed=seed)
    if "stub" in only:
        files["stub"] = folder / f"{shape.stem}-stub-f16.gguf"
        if not files["stub"].exists():
            write_text(files["stub"], dataclasses.replace(shape, n_layer=1), _vocab(source, shape), seed=seed)
    if "text" in only:
        files["text"] = _ensure_text(folder, shape, source, seed, tool)
        if keep_f16:
            files["text_f16"] = (
                full if full.exists() else write_text(full, shape, _vocab(source, shape), seed=seed)
            )
        else:
            full.unlink(missing_ok=True)
    return files


def main(argv: list[str] | None = None) -> int:
    """Write the models from the command line; print one ``kind bytes path`` line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=sorted(TEXT), default="phi-3-mini")
    parser.add_argument("--cache", help="cache folder (default LLAVA_NATIVE_BENCH_CACHE or the platform's)")
    parser.add_argument("--source", help="llama.cpp tree (default vendor/llama.cpp)")
    parser.add_argument("--quantize", type=Path, help="an llama-quantize to use instead of building one")
    parser.add_argument("--keep-f16", action="store_true")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args(argv)
    files = ensure(
        args.model,
        only=tuple(args.only),
        cache=args.cache,
        source=args.source,
        keep_f16=args.keep_f16,
        seed=args.seed,
        tool=args.quantize,
    )
    for kind, path in files.items():
        print(kind, path.stat().st_size, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
