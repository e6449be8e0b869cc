"""Write the trained network as GGUF files: a Llama text model and its LLaVA mmproj.

``python -m training.export --out DIR`` reads DIR/checkpoint.pt and writes DIR/export/*.gguf.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch

from .data import SPECIAL, load_tokenizer, special_ids
from .model import IMAGE_MEAN, IMAGE_STD, Trainee, make_config

NAME = "llava-native-demo"
QUANT = gguf.GGMLQuantizationType
FILE_TYPES = {"f32": (QUANT.F32, 0), "f16": (QUANT.F16, 1), "q8_0": (QUANT.Q8_0, 7)}
ROTARY = ("attn_q.weight", "attn_k.weight")  # the text model's tensors that `permute` reorders
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ['image', 'image_url'] -%}{{- '<image>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


def load_trained(folder: Path, averaged: bool = True) -> Trainee:
    """Load ``checkpoint.pt`` in `folder`: the averaged weights, or those of the last step."""
    tokenizer = load_tokenizer(folder)
    model = Trainee(make_config(tokenizer.get_vocab_size(), special_ids(tokenizer)))
    saved = torch.load(folder / "checkpoint.pt", weights_only=False, map_location="cpu")
    model.load_state_dict(saved["ema" if averaged else "model"])
    return model.eval()


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: QUANT) -> None:
    """Write one tensor: matrices as `kind`, everything else (and what Q8_0 cannot hold) in full."""
    data = tensor.detach().float().numpy()
    if data.ndim == 4 and kind != QUANT.F32:
        data = data.astype(np.float16)
    elif data.ndim == 2 and "position" not in name:
        if kind == QUANT.Q8_0 and data.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
            return
        data = data.astype(np.float16) if kind == QUANT.F16 else data
    writer.add_tensor(name, np.ascontiguousarray(data))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write everything out."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder a query or key matrix from Hugging Face's rotary halves to llama.cpp's pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer) -> None:
    """Write the byte-level BPE: tokens, types, merges, special ids and the chat template."""
    spec = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(spec["vocab"], key=spec["vocab"].get)
    types = [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    ids = special_ids(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["merges"]])
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["<|end|>"])
    writer.add_eot_token_id(ids["<|end|>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def text_tensors(model: Trainee) -> dict[str, torch.Tensor]:
    """Map the names of a Llama GGUF's tensors to the language model's parameters."""
    text = model.llava.model.language_model
    tensors = {"token_embd.weight": text.embed_tokens.weight, "output_norm.weight": text.norm.weight}
    for i, layer in enumerate(text.layers):
        attention, mlp = layer.self_attn, layer.mlp
        modules = {
            "attn_norm": layer.input_layernorm,
            "ffn_norm": layer.post_attention_layernorm,
            "attn_q": attention.q_proj,
            "attn_k": attention.k_proj,
            "attn_v": attention.v_proj,
            "attn_output": attention.o_proj,
            "ffn_gate": mlp.gate_proj,
            "ffn_up": mlp.up_proj,
            "ffn_down": mlp.down_proj,
        }
        tensors |= {f"blk.{i}.{name}.weight": module.weight for name, module in modules.items()}
    return tensors


def write_text_model(model: Trainee, tokenizer, path: Path, file_type: str) -> None:
    """Write the language model as a Llama GGUF.

    Parameters
    ----------
    model : Trainee
    tokenizer : tokenizers.Tokenizer
    path : Path
    file_type : {"f32", "f16", "q8_0"}
    """
    kind, number = FILE_TYPES[file_type]
    config = model.llava.model.language_model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_file_type(number)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    add_vocabulary(writer, tokenizer)
    for name, tensor in text_tensors(model).items():
        rotary = name.endswith(ROTARY)
        add_tensor(writer, name, permute(tensor, config.num_attention_heads) if rotary else tensor, kind)
    finish(writer)


def add_vision_keys(writer: gguf.GGUFWriter, config, legacy: bool) -> None:
    """Write the tower's metadata; the legacy layout of 2024 says no feature layer."""
    vision = config.vision_config
    blocks = vision.num_hidden_layers - 1  # the features come before the last
    if legacy:
        writer.add_bool("clip.has_text_encoder", False)
        writer.add_bool("clip.has_llava_projector", True)
        writer.add_description("image encoder for LLaVA")
    else:
        writer.add_type("mmproj")
        writer.add_array("clip.vision.feature_layer", [blocks])
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)  # that is: quick-GELU
    writer.add_uint32("clip.vision.image_size", vision.image_size)
    writer.add_uint32("clip.vision.patch_size", vision.patch_size)
    writer.add_uint32("clip.vision.embedding_length", vision.hidden_size)
    writer.add_uint32("clip.vision.feed_forward_length", vision.intermediate_size)
    writer.add_uint32("clip.vision.projection_dim", config.text_config.hidden_size)
    writer.add_uint32("clip.vision.block_count", blocks)
    writer.add_uint32("clip.vision.attention.head_count", vision.num_attention_heads)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    writer.add_array("clip.vision.image_mean", list(IMAGE_MEAN))
    writer.add_array("clip.vision.image_std", list(IMAGE_STD))


def vision_tensors(model: Trainee, legacy: bool = False) -> dict[str, torch.Tensor]:
    """Map the names of an mmproj's tensors to the parameters of vision tower and projector.

    The last block and the post-layernorm are left out: LLaVA's features (layer -2) come before them.
    """
    tower, projector = model.llava.model.vision_tower, model.llava.model.multi_modal_projector
    first, second = ("ffn_down", "ffn_up") if legacy else ("ffn_up", "ffn_down")
    tensors = {
        "v.class_embd": tower.embeddings.class_embedding,
        "v.patch_embd.weight": tower.embeddings.patch_embedding.weight,
        "v.position_embd.weight": tower.embeddings.position_embedding.weight,
        "v.pre_ln.weight": tower.pre_layrnorm.weight,
        "v.pre_ln.bias": tower.pre_layrnorm.bias,
    }
    for i, layer in enumerate(tower.encoder.layers[:-1]):
        attention = layer.self_attn
        modules = {
            "attn_q": attention.q_proj,
            "attn_k": attention.k_proj,
            "attn_v": attention.v_proj,
            "attn_out": attention.out_proj,
            "ln1": layer.layer_norm1,
            "ln2": layer.layer_norm2,
            first: layer.mlp.fc1,
            second: layer.mlp.fc2,
        }
        for name, module in modules.items():
            tensors |= {f"v.blk.{i}.{name}.weight": module.weight, f"v.blk.{i}.{name}.bias": module.bias}
    for name, module in (("mm.0", projector.linear_1), ("mm.2", projector.linear_2)):
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return tensors


def write_mmproj(model: Trainee, path: Path, file_type: str, legacy: bool = False) -> None:
    """Write vision tower and projector, see `vision_tensors`.

    Parameters
    ----------
    model : Trainee
    path : Path
    file_type : {"f32", "f16", "q8_0"}
    legacy : bool, default False
        Write the layout of 2024 ("23 of 24"): no ``feature_layer`` key, ``ffn_up`` and ``ffn_down`` swapped.
    """
    kind, number = FILE_TYPES[file_type]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_name(NAME)
    writer.add_file_type(number)
    add_vision_keys(writer, model.llava.config, legacy)
    for name, tensor in vision_tensors(model, legacy).items():
        add_tensor(writer, name, tensor, kind)
    finish(writer)


def export(folder: Path, target: Path, file_types=("f32", "f16", "q8_0")) -> list[Path]:
    """Write text models and mmprojs, today's and the legacy layout; returns the paths."""
    model, tokenizer = load_trained(folder), load_tokenizer(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for file_type in file_types:
        text = target / f"{NAME}-{file_type}.gguf"
        write_text_model(model, tokenizer, text, file_type)
        for legacy in (False, True):
            path = target / f"mmproj-{NAME}-{'legacy-' if legacy else ''}{file_type}.gguf"
            write_mmproj(model, path, file_type, legacy)
            paths.append(path)
        paths.append(text)
    return paths


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/llava_native/training")
    parser.add_argument("--to", type=Path, help="folder to write to; OUT/export if not given")
    parser.add_argument("--types", nargs="+", choices=sorted(FILE_TYPES), default=["f32", "f16", "q8_0"])
    parser.add_argument("--ship", type=Path, help="also copy the Q8_0 pair here, under the package's names")
    args = parser.parse_args()
    folder = args.to or args.out / "export"
    for path in export(args.out, folder, args.types):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path}")
    if args.ship:
        for name in (NAME, f"mmproj-{NAME}"):
            shutil.copyfile(folder / f"{name}-q8_0.gguf", args.ship / f"{name}.gguf")


if __name__ == "__main__":
    main()
