"""SentencePiece's tokens against the plain algorithm: merge the best pair of neighbours, again and again.

Patch 0018 looks for merges in pieces of a text only; the tokens must be those of the whole of it.
"""

from __future__ import annotations

from itertools import pairwise

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import llama_cpp_dir

from llava_native import Model

VOCABULARIES = ["llama-spm", "phi-3"]


class Vocabulary:
    """A vocabulary as the gguf package reads it, and the model that tokenises by it."""

    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.texts = fields["tokenizer.ggml.tokens"].contents()
        self.scores = fields["tokenizer.ggml.scores"].contents()
        prefix = fields.get("tokenizer.ggml.add_space_prefix")
        self.prefix = " " if prefix is None or prefix.contents() else ""
        self.ids = {text: i for i, text in enumerate(self.texts)}
        self.model = Model(path, vocab_only=True)

    def tokenize(self, text):
        symbols = list((self.prefix + text).replace(" ", "\u2581"))
        while pairs := [(-self.scores[self.ids[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols))
                        if a + b in self.ids]:  # fmt: skip
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return [token for symbol in symbols for token in self._ids(symbol)]

    def _ids(self, symbol):
        if symbol in self.ids:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request):
    found = Vocabulary(llama_cpp_dir() / "models" / f"ggml-vocab-{request.param}.gguf")
    yield found
    found.model.close()


WORDS = [
    "the", "over", " ", "  ", "\n\n", "\t", "don't", "...", "été", "Straße", "\u2581", "漢字", "日本語",
    "\U0001f642", "\U0001f469\u200d\U0001f467", "0x1F", "123456", "http://", "_", "ing", "\x00", "한국",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=14).map("".join)


@given(text=TEXTS)
def test_tokens_are_those_of_the_plain_algorithm(vocabulary, text):
    text = text.encode("utf-8", "ignore").decode()  # no lone surrogates
    expected = vocabulary.tokenize(text) if text else []
    assert vocabulary.model.tokenize(text, add_special=False) == expected


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_what_tokens_span_is_not_cut(vocabulary, n):
    """Of every n-th token of the vocabulary: as a text it is merged as far as it goes."""
    for text in vocabulary.texts[3 : 2000 * n : 40 * n]:
        plain = text.replace("\u2581", " ")
        assert vocabulary.model.tokenize(plain, add_special=False) == vocabulary.tokenize(plain)
