"""Prompts, texts, grammars and sampling parameters that somebody will pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_native import ImageEmbedding, Llava, Model
from llava_native.errors import (
    GrammarError,
    InvalidInputError,
    PromptTooLongError,
    TimeoutExpiredError,
)

from . import tiny_models
from .gauntlet import Case, Scene

CASES: list[Case] = []
Error = type[BaseException] | None


def _case(name: str, run: Callable[[Scene], Any], raises: Error, says: str = "") -> None:
    CASES.append(Case(name, run, raises, says))


# -- texts


def _bpe(scene: Scene) -> Path:
    """A vocabulary of Llama 3's without its pre-tokenizer, as the files of April 2024 are."""
    path = scene.folder / "bpe.gguf"
    if not path.exists():
        tiny_models.write_text_model(path, vocab="llama-bpe", n_embd=8, n_layer=1, n_ff=8)
    return path


def _long(pre: str | None, texts: dict[str, str], refused: bool) -> None:
    """Tokenise texts with one vocabulary, which takes long to load."""

    def run(scene: Scene) -> None:
        overrides = {"tokenizer.ggml.pre": pre} if pre else {}
        with Model(_bpe(scene), vocab_only=True, kv_overrides=overrides) as model:
            for name, text in texts.items():
                print(name, file=sys.stderr, flush=True)  # shown with a crash
                if refused:
                    with pytest.raises(InvalidInputError, match="in a row"):
                        model.tokenize(text)
                else:
                    assert model.detokenize(model.tokenize(text, add_special=False)) == text, name

    _case(f"text: {'refused' if refused else 'long'}, pre-tokenizer {pre}", run, None)


_RUNS = {
    "letters": "a" * 100_000,
    "digits": "7" * 100_000,
    "full stops": "." * 100_000,
    "spaces": " " * 100_000,
    "Chinese": "漢" * 100_000,
    "halves": "½" * 100_000,
    "digits and halves": "1½" * 50_000,
    "underscores and signs": "_+" * 50_000,
    "accents": "\u0301" * 100_000,
    "control characters and signs": "\x1c+" * 50_000,
}
_long("default", _RUNS, refused=True)
_long("default", {"words": "abcdefghi " * 10_000, "mixed": "Ab1 +\n漢" * 10_000}, refused=False)
_long(None, _RUNS | {"accented": "a\u0301" * 50_000}, refused=False)


def _text(name: str, text: Any, raises: Error, says: str = "") -> None:
    _case(f"tokenize: {name}", lambda s: s.model.tokenize(text), raises, says)
    _case(f"prompt: {name}", lambda s: s.llava.generate(text, max_tokens=2), raises, says)


_text("NUL", "a\0b", None)
_text("nothing", "", None)
_text("surrogates", "\ud800", UnicodeEncodeError)
_text("None", None, TypeError)
_text("a number", 5, TypeError)
_text("a list", ["a"], TypeError)
_text("noncharacters", "\ufffe\uffff\U0010ffff", None)
_case("tokenize: bytes that are no UTF-8", lambda s: s.model.tokenize(b"\xff\xfe\x80"), None)
_case("tokenize: 100k letters of an SPM vocabulary", lambda s: s.model.tokenize("a" * 100_000), None)
_case("prompt: too long", lambda s: s.llava.generate("a" * 10_000), PromptTooLongError, "n_ctx=")
_case("prompt: too many images", lambda s: s.llava.generate(
    "x", image=["/nowhere.png"] * 100), PromptTooLongError, "n_ctx=")  # fmt: skip
_case("prompt: system too long", lambda s: s.llava.generate("a", system="a" * 10_000), PromptTooLongError)


# -- Llava


def _option(raises: Error, says: str = "", **options: Any) -> None:
    def run(scene: Scene) -> None:
        scene.llava.generate("x", **{"max_tokens": 3, "temperature": 0} | options)

    _case(f"generate {len(CASES)}: {str(options)[:50]}", run, raises, says)


_option(InvalidInputError, "max_tokens", max_tokens=0)
_option(InvalidInputError, "max_tokens", max_tokens=-1)
_option(InvalidInputError, "max_tokens", max_tokens="3")
_option(InvalidInputError, "max_tokens", max_tokens=2.5)
_option(None, max_tokens=10**12, stop="")
_option(TimeoutExpiredError, timeout=0)
_option(InvalidInputError, timeout=-1)
_option(InvalidInputError, timeout=math.nan)
_option(None, timeout=math.inf)
_option(InvalidInputError, "stop", stop=5)
_option(InvalidInputError, "stop", stop=[5])
_option(InvalidInputError, "stop", stop=[None])
_option(InvalidInputError, "stop", stop=b"x")
_option(TypeError, temprature=0.5)
_option(TypeError, cancel=True)
_option(InvalidInputError, "temperature", temperature=math.nan)
_option(InvalidInputError, "top_k", top_k=-1)
_option(InvalidInputError, "seed", seed=-1)
_option(InvalidInputError, "logit_bias", logit_bias={"1": 1})
_option(InvalidInputError, "300", logit_bias={300: 1.0})
_option(InvalidInputError, "logit_bias", logit_bias={1: math.nan})
_option(None, logit_bias=dict.fromkeys(range(300), -math.inf))
_option(None, logit_bias=dict.fromkeys(range(300), -math.inf), temperature=0.8)
_option(None, logit_bias=dict.fromkeys(range(300), -math.inf), temperature=0.8, mirostat_mode=2)
_option(None, logit_bias={5: 1e30}, temperature=1e6)
_option(FileNotFoundError, image="/nowhere.png")
_option(IsADirectoryError, image="/tmp")
_option(None, image=[])
_option(TypeError, image=5)
_option(TypeError, image=[[None]])
_case("Llava: image without an encoder", lambda s: Llava(s.model, n_ctx=64).__class__ and s.keep(
    Llava(s.model, n_ctx=300)).generate("x", image="x.png"), InvalidInputError, "mmproj")  # fmt: skip
_case("Llava: chat_template", lambda s: Llava(s.model, chat_template="x"), InvalidInputError, "vicuna")


# -- sampling


def _sampling(name: str, raises: Error = None, says: str = "", rows: Any = None, **params: Any) -> None:
    def run(scene: Scene) -> None:
        sampler = scene.sampler(**{"seed": 1} | params)
        scene.ctx.eval([1, 2, 3])
        if rows is not None:
            scene.ctx.eval(ImageEmbedding.from_buffer(rows))
        for _ in range(5):
            scene.ctx.eval([sampler.sample(scene.ctx)])

    _case(f"sampling: {name}", run, raises, says)


_EXTREMES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "plain": {},
    "hot": {"temperature": 1e6, "top_k": 0},
    "cold": {"temperature": 1e-30},
    "one": {"top_k": 1},
    "all": {"top_k": 2**31 - 1, "top_p": 1, "min_p": 0},
    "none": {"top_p": 0, "min_p": 1, "top_k": 0},
    "typical": {"typical_p": 0.0},
    "typical half": {"typical_p": 0.5},
    "xtc": {"xtc_probability": 1.0, "xtc_threshold": 0.0},
    "penalties": {"repeat_penalty": 1e3, "frequency_penalty": 1e3, "presence_penalty": -1e3},
    "long memory": {"repeat_penalty": 1.1, "repeat_last_n": -1},
    "dry": {"dry_multiplier": 1e3, "dry_base": 1e3, "dry_allowed_length": 0},
    "dry, no breakers": {"dry_multiplier": 1.0, "dry_sequence_breakers": ()},
    "dry, odd breakers": {"dry_multiplier": 1.0, "dry_sequence_breakers": ("", "\0", "x" * 100_000, "é")},
    "mirostat 1": {"mirostat_mode": 1, "mirostat_tau": 0, "mirostat_eta": 1e3},
    "mirostat 2": {"mirostat_mode": 2, "mirostat_tau": 0, "mirostat_eta": 1e3},
}
for _name, _params in _EXTREMES.items():
    _sampling(_name, **_params)
    # no such logits are a choice, and some samplers would run over the end of their table
    for _value in (math.nan, math.inf, -math.inf):
        _sampling(f"{_name}, rows of {_value}", rows=np.full((2, 64), _value, np.float32), **_params)
for _name in ("repeat_last_n", "dry_penalty_last_n"):
    _sampling(f"{_name} 2**31-1", InvalidInputError, _name, **{_name: 2**31 - 1})
    _sampling(f"{_name} 2**24", repeat_penalty=1.1, dry_multiplier=1.0, **{_name: 2**24})
_sampling("breakers of numbers", InvalidInputError, "dry_sequence_breakers", dry_multiplier=1.0,
          dry_sequence_breakers=(5,))  # fmt: skip


# -- grammars


def _grammar(name: str, grammar: Any, raises: Error = GrammarError, says: str = "", **params: Any) -> None:
    _sampling(f"grammar, {name}", raises, says, grammar=grammar, **params)


_grammar("empty", "")
_grammar("blank", " \n")
_grammar("a comment", "# x")
_grammar("a sentence", "Answer in JSON, please.")
_grammar("no root", "a ::= [b]")
_grammar("another root", "root ::= [a]", grammar_root="x")
_grammar("NUL in it", 'root ::= "a"\0"b"', says="NUL")
_grammar("NUL in the root", "root ::= [a]*", grammar_root="root\0", says="NUL")
_grammar("surrogates", 'root ::= "\ud800"', UnicodeEncodeError)
_grammar("bytes", b"root ::= [a]", InvalidInputError, "grammar")
_grammar("undefined rule", "root ::= x")
_grammar("defined twice", 'root ::= "a"\nroot ::= "b"* "c"*', None)
_grammar("left recursion", 'root ::= root "a" | "b"')
_grammar("left recursion in a circle", 'root ::= x\nx ::= y "a"\ny ::= root | "b"')
_grammar("left recursion behind an empty rule", 'root ::= x root "a"\nx ::= "b"?')
_grammar("only itself", "root ::= root")
_BROKEN = (
    '"a', "[a", "(", ")", '"a" )', "[z-", '"\\', '"\\x', '"\\u12', "{3}", "a{", '"a"{2', '"a"{2,1}',
    '"a"{99999999999}', "<", "<|eot", "<[1", "<[999999999999999999999]>", "!<|x|>", "[z-a]+", "::=", "|*",
)  # fmt: skip
for _bad in _BROKEN:
    _grammar(f"root ::= {_bad}", f"root ::= {_bad}")
_grammar("100k parentheses", "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, says="nests")
_grammar("100k open parentheses", "root ::= " + "(" * 100_000)
_grammar("100k rules in a chain", "\n".join(f"r{i} ::= r{i + 1}" for i in range(100_000)) + "\nroot ::= r0")
_grammar("3000 rules in a chain", "\n".join(
    f"r{i} ::= r{i + 1}" for i in range(3000)) + '\nr3000 ::= "a"*\nroot ::= r0', None)  # fmt: skip
_grammar("10 MB of alternatives", "root ::= (" + '"abcdefgh" | ' * 770_000 + '"b")*', says="at most")
_grammar("repeated too often", 'root ::= "a"{100000}')
_grammar("repeated a thousand times three times", 'root ::= (("a"{1000}){1000}){1000}', None)
_grammar("stars of stars", 'root ::= (("a"*)*)*', None)
_grammar("many ways to say the same", "root ::= (" + '"a"? ' * 30 + ")", None)
_grammar("nothing can follow", 'root ::= "\U0010ffff"+', None)
_grammar("a token that no vocabulary has", "root ::= <[100000]>*", None)
