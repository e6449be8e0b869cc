"""The seed models' files, tiny, under the names of their cards; and their Modelfiles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .tiny_models import CHAT_TEMPLATES, TinyLlava, Vocab, write_mmproj, write_text_model

Seed = Literal["llava-phi-3-mini", "llava-llama-3-8b-v1_1"]
VOCABS: dict[Seed, Vocab] = {"llava-phi-3-mini": "phi-3", "llava-llama-3-8b-v1_1": "llama-bpe"}
ENDS: dict[Seed, int] = {"llava-phi-3-mini": 32007, "llava-llama-3-8b-v1_1": 128009}  # of a turn
PHI_3_TEMPLATE = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""
LLAMA_3_TEMPLATE = """{{ if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>{{ end }}{{ if .Prompt }}<|start_header_id|>user<|end_header_id|>

{{ .Prompt }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

{{ .Response }}<|eot_id|>"""
TEMPLATES: dict[Seed, str] = {"llava-phi-3-mini": PHI_3_TEMPLATE, "llava-llama-3-8b-v1_1": LLAMA_3_TEMPLATE}
STOPS: dict[Seed, list[str]] = {
    "llava-phi-3-mini": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"],
    "llava-llama-3-8b-v1_1": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


def modelfile(seed: Seed, quant: Literal["f16", "int4"] = "int4") -> str:
    """Return the Modelfile of a seed's repository."""
    stops = "".join(f'PARAMETER stop "{stop}"\n' for stop in STOPS[seed])
    return (
        f"FROM ./{seed}-{quant}.gguf\nFROM ./{seed}-mmproj-f16.gguf\n"
        f'TEMPLATE """{TEMPLATES[seed]}"""\n{stops}PARAMETER num_keep 4\nPARAMETER num_ctx 4096\n'
    )


def write_seed(folder: Path, seed: Seed, *, own_template: bool = True, n_seed: int = 0) -> TinyLlava:
    """Write what a card has its reader download: two text models, an mmproj and two Modelfiles.

    The text models are the same one under both names, and their answers end soon.
    """
    vocab = VOCABS[seed]
    template = CHAT_TEMPLATES[vocab] if own_template else None
    text = write_text_model(
        folder / f"{seed}-int4.gguf", vocab=vocab, chat_template=template, seed=n_seed, likely=ENDS[seed]
    )
    (folder / f"{seed}-f16.gguf").hardlink_to(text.path)
    mmproj = write_mmproj(folder / f"{seed}-mmproj-f16.gguf", n_embd_text=text.params.n_embd, seed=n_seed)
    for quant in ("f16", "int4"):
        (folder / f"OLLAMA_MODELFILE_{quant.upper()}").write_text(modelfile(seed, quant))
    return TinyLlava(text, mmproj)
