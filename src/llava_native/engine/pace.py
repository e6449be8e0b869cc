"""Pace: how much of a prompt may be evaluated while answers wait."""

from __future__ import annotations

__all__ = ["TILE", "Pace"]

TILE = 16  # tokens: what llama.cpp's CPU kernels compute at once, however few of them there are
_SLICE_S = 0.2  # how long a slice of a prompt may hold up those who are being answered
_FIRST_SLICE = 64  # tokens, before anything was measured


class Pace:
    """Learns from each evaluation how many tokens take 0.2 s.

    Where even a few take longer, small slices make everybody late: on two cores a row costs 1.8 times as much
    in a slice of 16 as in one of 577, 1.3 times in 32, 1.25 in 64. So a slice has 32 at least, and up to 64
    while several wait for their first token. In larger ones the answers, which get a token a slice, would be
    over later than that saves.

    Parameters
    ----------
    n_ubatch : int
        Tokens of a slice, at most.
    """

    def __init__(self, n_ubatch: int) -> None:
        self._n_ubatch = n_ubatch
        self._fitting = _FIRST_SLICE

    def slice(self, n_prompts: int) -> int:
        """Return how many tokens a slice may have, while the callers of so many prompts wait."""
        return min(max(self._fitting, TILE * min(1 + n_prompts, 4)), self._n_ubatch)

    def learn(self, n: int, seconds: float) -> None:
        """Note how long an evaluation of `n` tokens took; answers alone tell nothing."""
        if n >= TILE and seconds > 0:
            self._fitting = int(n / seconds * _SLICE_S) // TILE * TILE
