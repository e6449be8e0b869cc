"""Pace: how much of a prompt may be evaluated while answers wait."""

from __future__ import annotations

__all__ = ["TILE", "Pace"]

TILE = 16  # tokens: what llama.cpp's CPU kernels compute at once, however few of them there are
_SLICE_S = 0.2  # how long a slice of a prompt may hold up those who are being answered
_FIRST_SLICE = 64  # tokens, before anything was measured


class Pace:
    """Learns from each evaluation how many tokens take 0.2 s.

    Where even a few take longer, small slices would make everybody late: on two cores a row of 8 billion
    weights' model costs twice as much in a slice of 16 as in one of 500. So a slice has one tile more than
    there are prompts, at least: the more callers wait for their first token, the more their time counts
    against that of those who are being answered.

    Parameters
    ----------
    n_ubatch : int
        Tokens of a slice, at most.
    """

    def __init__(self, n_ubatch: int) -> None:
        self._n_ubatch = n_ubatch
        self._fitting = _FIRST_SLICE

    def slice(self, n_prompts: int) -> int:
        """Return how many tokens a slice may have, while so many prompts are being evaluated."""
        return min(max(self._fitting, TILE * (1 + n_prompts)), self._n_ubatch)

    def learn(self, n: int, seconds: float) -> None:
        """Note how long an evaluation of `n` tokens took; answers alone tell nothing."""
        if n >= TILE and seconds > 0:
            self._fitting = int(n / seconds * _SLICE_S) // TILE * TILE
