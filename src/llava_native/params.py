"""SamplingParams: how the next token is chosen, under llama.cpp's names."""

from __future__ import annotations

import dataclasses
import difflib
import math
import random
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Protocol

from llava_native.errors import InvalidInputError

__all__ = ["SamplingParams", "TokenMatcher", "sampling_params"]

_MAX_SEED = 2**32 - 2  # 2**32 - 1 means "random" to llama.cpp


class TokenMatcher(Protocol):
    """Tells a ``Sampler`` which tokens may come next."""

    def mask(self) -> bytes:
        """Return one bit a token, the lowest first: whether it may come next."""

    def accept(self, token: int) -> None:
        """Go on by a token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. Defaults are llama.cpp's own.

    Parameters
    ----------
    temperature : float, default 0.8
        0 takes the likeliest token always, after penalties, DRY, bias and grammar; `top_k` to `xtc_…` and
        Mirostat then have no effect.
    top_k : int, default 40
        Keep the `top_k` likeliest tokens; 0 keeps all.
    top_p : float, default 0.95
        Keep the likeliest tokens that together have this probability; 1 keeps all.
    min_p : float, default 0.05
        Keep tokens at least this likely, relative to the likeliest; 0 keeps all.
    typical_p : float, default 1.0
        Locally typical sampling; 1 is off.
    xtc_probability, xtc_threshold : float, default 0.0 and 0.1
        Exclude top choices: with this probability, drop all but the least likely token above the
        threshold.
    repeat_penalty, frequency_penalty, presence_penalty : float, default 1.0, 0.0, 0.0
        Make tokens of the last `repeat_last_n` less likely.
    repeat_last_n : int, default 64
        How far the penalties look back; 0 is off, -1 the trained context. Penalties and DRY see the answer
        only; llama-server's see the prompt, too.
    dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers
        "Don't repeat yourself": off, 1.75, 2, -1 (all the trained context), and newline, colon, double
        quote and asterisk.
    mirostat_mode, mirostat_tau, mirostat_eta : default 0 (off), 5.0, 0.1
        Mirostat 1 or 2 instead of the truncating samplers.
    logit_bias : mapping of int to float, optional
        Added to the logits of these tokens; ``-inf`` forbids one.
    seed : int, optional
        0 to 2**32 - 2. Without one, a random seed is drawn and kept here. The same seed gives the same
        answer, but for what rounding decides: sums come in another order while other answers are generated,
        and where a cache had a part of the prompt.
    grammar : str, optional
        A GBNF grammar that the whole answer must follow.
    grammar_root : str, default "root"
        The grammar's start rule.

    Raises
    ------
    InvalidInputError
        A number is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    grammar: str | None = None
    grammar_root: str = "root"

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", random.randrange(_MAX_SEED + 1))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            kind, what = (Integral, "an integer") if name in _INTEGERS else (Real, "a number")
            is_number = isinstance(value, kind)
            if not (is_number and low <= value <= high):  # also refuses NaN
                raise InvalidInputError(f"{name} must be {what} from {low} to {high}, not {value!r}")
        for token, bias in (self.logit_bias or {}).items():
            if not isinstance(token, Integral):
                raise InvalidInputError(f"logit_bias: a token id is an integer, not {token!r}")
            if not isinstance(bias, Real) or math.isnan(bias) or bias == math.inf:
                raise InvalidInputError(f"logit_bias[{token}] is {bias!r}; it must be finite or -inf")
        if not all(isinstance(breaker, str) for breaker in self.dry_sequence_breakers):
            raise InvalidInputError(f"dry_sequence_breakers must be str, not {self.dry_sequence_breakers!r}")
        for name in ("grammar", "grammar_root"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("grammar", None):
                raise InvalidInputError(f"{name} must be a str, not {value!r}")

    @property
    def has_penalties(self) -> bool:
        """Whether any of the repeat, frequency and presence penalties has an effect."""
        changes = (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)
        return changes and self.repeat_last_n != 0


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """Make them of keyword arguments; a name that is none is a TypeError that suggests one."""
    fields = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in options:
        if name not in fields:
            close = difflib.get_close_matches(name, [*fields, *_OTHERS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"there is no option {name!r}{hint}")
    return SamplingParams(**options)


_OTHERS = ("image", "system", "max_tokens", "stop", "timeout", "cancel", "logprobs", "constraint")
_INT32_MAX = 2**31 - 1
_MAX_LOOK_BACK = 2**24  # tokens; the library takes the memory for all of them at once
_INTEGERS = frozenset(
    {"top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat_mode", "seed"}
)
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1e6),
    "top_k": (0, _INT32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (1e-3, 1e3),
    "frequency_penalty": (-1e3, 1e3),
    "presence_penalty": (-1e3, 1e3),
    "repeat_last_n": (-1, _MAX_LOOK_BACK),
    "dry_multiplier": (0.0, 1e3),
    "dry_base": (1.0, 1e3),
    "dry_allowed_length": (0, _INT32_MAX),
    "dry_penalty_last_n": (-1, _MAX_LOOK_BACK),
    "mirostat_mode": (0, 2),
    "mirostat_tau": (0.0, 1e3),
    "mirostat_eta": (0.0, 1e3),
    "seed": (0, _MAX_SEED),
}
