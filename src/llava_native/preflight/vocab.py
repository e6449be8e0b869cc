"""The check of a vocabulary, after ``llama_vocab::impl::load`` of ``src/llama-vocab.cpp``."""

from __future__ import annotations

from typing import Final, NamedTuple

from ._rules import Keys

__all__ = ["Vocab", "check_vocab"]

# Tokenizers -> the BOS and EOS ids that upstream assumes where a file names none.
_TOKENIZERS: Final[dict[str, tuple[int, int]]] = {"llama": (1, 2), "gpt2": (11, 11), "gemma4": (-1, -1)}
_NO_ID: Final = 0xFFFFFFFF  # -1, as old converters wrote for "none"
_MAX_TOKENS = 2**22
_IDS: Final = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf", "fim_mid",
    "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip
_FLAGS: Final = (
    "add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces",
)  # fmt: skip


class Vocab(NamedTuple):
    """The vocabulary's kind (``"llama"`` is SentencePiece), pre-tokenizer and size."""

    model: str
    pre: str
    n_tokens: int


def check_vocab(keys: Keys) -> Vocab:
    """Check the vocabulary of a text model."""
    model = keys.text("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        keys.unsupported("it has no vocabulary")
    if model not in _TOKENIZERS:
        keys.unsupported(f"its tokenizer is {model!r}, neither SentencePiece ('llama') nor BPE ('gpt2')")
    pre = keys.text("tokenizer.ggml.pre", "")
    keys.text("tokenizer.chat_template", "")
    keys.u32("tokenizer.ggml.token_type_count", 0)
    n_tokens = _check_tokens(keys)
    if model != "llama" and pre != "kimi-k2" and keys.array("tokenizer.ggml.merges", "str") is None:
        keys.fail("the key tokenizer.ggml.merges is missing")
    flags = {name: keys.flag("tokenizer.ggml." + name, True) for name in _FLAGS}
    ids = _check_ids(keys, n_tokens)
    for name, default in zip(("bos", "eos"), _TOKENIZERS[model], strict=True):
        # Where upstream is to add a token that does not exist, tokenizing aborts. SentencePiece adds no
        # EOS unless told to; whether BPE adds either depends on the pre-tokenizer: assume it may.
        wanted = flags[f"add_{name}_token"]
        if name == "eos":
            wanted = wanted and keys.has("tokenizer.ggml.add_eos_token")
        if wanted and ids.get(name, default) not in range(n_tokens):
            keys.fail(f"it adds a {name.upper()} token to every text, but has none")
    return Vocab(model, pre, n_tokens)


def _check_tokens(keys: Keys) -> int:
    array = keys.array("tokenizer.ggml.tokens", "str")
    if array is None or not len(array):
        keys.fail("it has no tokens (tokenizer.ggml.tokens)")
    n_tokens = len(array)
    if n_tokens > _MAX_TOKENS:
        keys.fail(f"it claims {n_tokens} tokens; the largest known vocabularies have 300,000")
    for key, types in (("scores", ("f32", "i32")), ("token_type", ("i32",))):
        values = keys.array(f"tokenizer.ggml.{key}", *types)
        if values is not None and len(values) < n_tokens:
            keys.fail(f"it has {n_tokens} tokens but only {len(values)} tokenizer.ggml.{key}")
    if array.plainly_distinct():
        return n_tokens
    tokens = array.strings()
    unique = set(tokens)
    if b"" in unique or b"\0" in b"".join(tokens):
        # Upstream takes each as a C string, and gives the empty ones a name of their own.
        cut = [token.partition(b"\0")[0] for token in tokens]
        tokens = [token or b"[EMPTY_%d]" % i for i, token in enumerate(cut)]
        unique = set(tokens)
    if len(unique) != n_tokens:
        seen: set[bytes] = set()
        for token in tokens:
            if token in seen:
                keys.fail(f"the token {token.decode('utf-8', 'replace')!r} occurs twice")
            seen.add(token)
    return n_tokens


def _check_ids(keys: Keys, n_tokens: int) -> dict[str, int]:
    """Return the special tokens that the file names and upstream accepts.

    Upstream ignores ids out of range with a warning. Files with such a padding id, or the like, are in
    use and work; for BOS, EOS and EOT it would mean wrong output.
    """
    ids = {}
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        value = keys.u32(key, _NO_ID, high=_NO_ID)
        if value < n_tokens:
            ids[name] = value
        elif value != _NO_ID and name in ("bos", "eos", "eot"):
            keys.fail(f"{key} is {value}, but there are {n_tokens} tokens")
    return ids
