"""Pace: how much of a prompt may be evaluated while answers wait."""

from __future__ import annotations

__all__ = ["Pace"]

_SLICE_S = 0.2  # how long a slice of a prompt may hold up those who are being answered
_MIN_SLICE = 16  # tokens
_FIRST_SLICE = 64  # tokens, before anything was measured


class Pace:
    """Learns from each evaluation how many tokens take 0.2 s.

    Parameters
    ----------
    n_ubatch : int
        Tokens of a slice, at most.

    Attributes
    ----------
    slice : int
        Tokens that a slice may have.
    """

    def __init__(self, n_ubatch: int) -> None:
        self._n_ubatch = n_ubatch
        self.slice = min(_FIRST_SLICE, n_ubatch)

    def learn(self, n: int, seconds: float) -> None:
        """Note how long an evaluation of `n` tokens took; answers alone tell nothing."""
        if n >= _MIN_SLICE and seconds > 0:
            fitting = int(n / seconds * _SLICE_S) // _MIN_SLICE * _MIN_SLICE
            self.slice = max(min(fitting, self._n_ubatch), min(_MIN_SLICE, self._n_ubatch))
