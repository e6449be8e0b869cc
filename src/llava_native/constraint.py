"""What an answer must be: JSON of a schema, text of a regular expression or of a Lark grammar.

The work is llguidance's. GBNF grammars are llama.cpp's own; see ``SamplingParams``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from llava_native.errors import GrammarError, InvalidInputError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from llava_native._model import Model

__all__ = ["Constraint", "Matcher", "Vocabulary"]

# one space after commas and colons, as models are used to; free spaces would let some go on for ever
_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What an answer must be. Made by its class methods.

    Attributes
    ----------
    grammar : str
        In llguidance's own form.
    """

    grammar: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Self:
        """Ask for JSON that a schema describes.

        Raises
        ------
        GrammarError
            It is no schema, or nothing can meet it.
        """
        from llguidance import LLMatcher

        if schema is False:
            raise GrammarError("no JSON can meet the schema false")
        schema = {} if schema is True else schema
        try:
            return cls(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON))
        except (TypeError, ValueError, RecursionError) as exc:
            raise GrammarError(f"this is no JSON schema: {exc}") from exc

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Ask for text that a regular expression matches whole; no look-around, no back-references."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_regex(_text(pattern)))

    @classmethod
    def lark(cls, grammar: str) -> Self:
        """Ask for text of a Lark grammar; its rule ``start`` is where it starts."""
        from llguidance import LLMatcher

        return cls(LLMatcher.grammar_from_lark(_text(grammar)))


class Vocabulary:
    """A model's tokens as llguidance takes them; a large vocabulary takes a moment, so make it once."""

    def __init__(self, model: Model) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        # the tokenizer must not reach itself: Python's collector does not see through it
        words = _Words(model)
        ends = [token for token in range(model.n_vocab) if model.is_eog(token)]
        self.tokenizer: LLTokenizer = LLTokenizer(
            TokenizerWrapper(words), eos_token=ends or [words.eos_token_id]
        )


class _Words:
    """What llguidance's TokenizerWrapper asks for."""

    def __init__(self, model: Model) -> None:
        special = sorted(model.special_tokens.values())
        self.eos_token_id = next((token for token in (model.eos, model.eot) if token >= 0), -1)
        self.bos_token_id = model.bos if model.bos >= 0 else None
        self.tokens = [model.token_bytes(token) for token in range(model.n_vocab)]
        for token in special:
            self.tokens[token] = model.token_bytes(token, special=True)
        self.special_token_ids = special
        self._model = model

    def __call__(self, text: bytes) -> list[int]:
        """Tokenise what goes on after other text, as llguidance asks."""
        if not self._model.is_spm:
            return self._model.tokenize(text, add_special=False)
        # SentencePiece puts a space before a text; what stands behind a line's end gets none
        line = self._model.tokenize("\n", add_special=False)
        return self._model.tokenize(b"\n" + text, add_special=False)[len(line) :]


def checked(constraint: Constraint | None) -> Constraint | None:
    """Return a constraint that is one; InvalidInputError for anything else but None."""
    if constraint is None or isinstance(constraint, Constraint):
        return constraint
    raise InvalidInputError(
        f"constraint must be a Constraint, as Constraint.json_schema(…), not {constraint!r}"
    )


class Matcher:
    """Follows one answer and tells which tokens may come next.

    Parameters
    ----------
    constraint : Constraint
    vocabulary : Vocabulary

    Raises
    ------
    GrammarError
        The grammar does not parse, or nothing can follow it.
    """

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher

        self._matcher: LLMatcher = LLMatcher(vocabulary.tokenizer, constraint.grammar, log_level=0)
        self._check()

    def mask(self) -> bytes:
        """Return one bit a token, the lowest first: whether it may come next."""
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        """Go on by a token."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                f"the answer cannot follow this constraint: {self._matcher.get_error().strip()}"
            )


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"a grammar must be a str, not {value!r}")
    return value
