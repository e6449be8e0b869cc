"""The four tokens that stand for a text model where an encoder works alone."""

from __future__ import annotations

from importlib import resources

from support.gguf_file import write_gguf

KV = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}


def test_the_shipped_file_is_this(tmp_path):
    """To make it anew: write KV to src/llava_native/empty_vocab.gguf."""
    write_gguf(tmp_path / "made.gguf", KV, {})
    shipped = resources.files("llava_native").joinpath("empty_vocab.gguf").read_bytes()
    assert shipped == (tmp_path / "made.gguf").read_bytes()
    assert len(shipped) < 1024
