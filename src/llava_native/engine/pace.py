"""Pace: how much of a prompt may be evaluated while answers wait."""

from __future__ import annotations

__all__ = ["TILE", "Pace"]

TILE = 16  # tokens: what llama.cpp's CPU kernels compute at once, however few of them there are
_SLICE_S = 0.2  # how long a slice of a prompt may hold up those who are being answered
_FIRST_SLICE = 64  # tokens, before anything was measured
_PER_PROMPT = 32  # tokens a slice may have for each caller who waits, however long they take
_MOST, _MOST_SHARING = 256, 64


class Pace:
    """Learns from each evaluation how many tokens take 0.2 s.

    Where even a few take longer, small slices make everybody late: on two cores each costs 0.3 s, however few
    its tokens are, and 23 to 31 ms a token. So a slice has 32 for each caller who waits for a first token,
    and 256 at most; answers, which get a token a slice, are held up the longer the more callers that spares
    time.

    Parameters
    ----------
    n_ubatch : int
        Tokens of a slice, at most.
    """

    def __init__(self, n_ubatch: int) -> None:
        self._n_ubatch = n_ubatch
        self._fitting = _FIRST_SLICE

    def slice(self, n_prompts: int, is_sharing: bool = False) -> int:
        """Return how many tokens a slice may have, while the callers of so many prompts wait.

        Beside an encode it is short: it has half of the threads, also when the encode is over.
        """
        most = _MOST_SHARING if is_sharing else _MOST
        return min(max(self._fitting, min(_PER_PROMPT * n_prompts, most)), self._n_ubatch)

    def learn(self, n: int, seconds: float) -> None:
        """Note how long an evaluation of `n` tokens took; answers alone tell nothing."""
        if n >= TILE and seconds > 0:
            self._fitting = int(n / seconds * _SLICE_S) // TILE * TILE
