"""TokenStream: the tokens of one answer, as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias

from llava_native.errors import BusyError, CancelledError, TimeoutExpiredError
from llava_native.prompt import PendingImage, check_length
from llava_native.text import StopSplitter, Utf8Decoder

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken
    from llava_native._context import Context
    from llava_native._embedding import ImageEmbedding
    from llava_native._sampler import Sampler
    from llava_native.prompt import Prompt

__all__ = ["FinishReason", "Result", "Timings", "Token", "TokenStream", "Usage"]

FinishReason: TypeAlias = Literal["eog", "stop", "length", "cancelled"]


class Token(NamedTuple):
    """One generated token.

    Attributes
    ----------
    id : int
    text : str
        The text that this token completes. Empty while a character or a possible stop string is
        unfinished.
    logprob : float or None
        Natural logarithm of its probability, before any sampler; None unless asked for.
    top_logprobs : list of (int, float)
        The likeliest tokens instead of it, itself perhaps among them.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()


class Usage(NamedTuple):
    """Tokens of one answer; `image_tokens` are part of `prompt_tokens`."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(NamedTuple):
    """Seconds that the stages of one answer took."""

    prepare_s: float
    """Decoding images and bringing them to the encoder's size."""
    encode_s: float
    """The vision tower and projector."""
    prefill_s: float
    """Evaluating the prompt, image rows included."""
    first_token_s: float
    """From the first request for a token until there was one."""
    decode_s: float
    """Generating, after the prompt."""
    tokens_per_second: float
    """Generated tokens a second of `decode_s`."""


class Result(NamedTuple):
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class TokenStream:
    """The tokens of one answer: an iterator, and a context manager. Made by ``Llava.stream``.

    Work begins with the first ``next()``. Dropping, closing or finishing the stream frees the context
    for the next one.

    Attributes
    ----------
    text : str
        The answer so far.
    finish_reason : {"eog", "stop", "length", "cancelled"} or None
        Why the answer ended: the model ended it, a stop string came, `max_tokens` or the context was
        full, or it was cancelled. None while it goes on.

    Notes
    -----
    Threads: one iterates; any may ``cancel()``.
    """

    def __init__(
        self,
        context: Context,
        prompt: Prompt,
        sampler: Sampler,
        *,
        max_tokens: int | None,
        stops: Sequence[str],
        cancel: CancelToken,
        release: Callable[[], None],
        logprobs: int | None = None,
    ) -> None:
        self._release = release
        self._context = context
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._logprobs = logprobs
        self._cancel = cancel
        self._decoder = Utf8Decoder()
        self._splitter = StopSplitter(stops)
        self._sampler: Sampler | None = sampler
        self._inside = threading.Lock()
        self._started = 0.0
        self._pending: int | None = None  # sampled, but not evaluated yet
        self._prepare_s = self._encode_s = self._prefill_s = self._first_token_s = self._decode_s = 0.0
        self._prompt_tokens = prompt.n_tokens
        self._image_tokens = 0
        self._n_tokens = 0
        self._shown: list[str] = []
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        self._enter()
        try:
            return self._next()
        finally:
            self._inside.release()

    def _enter(self) -> None:
        if not self._inside.acquire(blocking=False):
            raise BusyError("another thread is inside this stream; only cancel() may be called meanwhile")

    def _next(self) -> Token:
        if self._sampler is None:
            raise StopIteration
        try:
            token = self._step(self._sampler)
        except TimeoutExpiredError:
            self._end("cancelled")
            raise
        except CancelledError:
            self._end("cancelled")
            raise StopIteration from None
        except BaseException:
            self._free()
            raise
        if token is None:
            raise StopIteration
        self._shown.append(token.text)
        return token

    def _step(self, sampler: Sampler) -> Token | None:
        """Evaluate what is due, choose a token, and return it; None when the answer is over."""
        if not self._started:
            self._prefill()
        began = time.perf_counter()
        if self._pending is not None:
            self._context.eval((self._pending,), cancel=self._cancel)
        else:
            self._cancel.raise_if_cancelled()
        token = sampler.sample(self._context)
        now = time.perf_counter()
        self._decode_s += now - began
        if self._n_tokens == 0:
            self._first_token_s = now - self._started
        model = self._context.model
        chosen = Token(token, "")
        if self._logprobs is not None:
            chosen = Token(token, "", *sampler.logprobs(self._context, token, self._logprobs))
        if model.is_eog(token):
            return self._last(chosen, "", "eog")
        self._n_tokens += 1
        self._pending = token
        text = self._splitter.feed(self._decoder.feed(model.token_bytes(token)))
        if self._splitter.stopped:
            self._end("stop")
            return chosen._replace(text=text)
        if self._n_tokens == self._max_tokens or self._context.n_past() == self._context.n_ctx_seq:
            return self._last(chosen, text, "length") or chosen
        return chosen._replace(text=text)

    def _prefill(self) -> None:
        self._started = time.perf_counter()
        self._context.clear()
        rows = [self._encode(p) if isinstance(p, PendingImage) else p for p in self._prompt.pieces]
        self._prompt_tokens = sum(len(piece) for piece in rows)
        self._image_tokens = sum(len(piece) for piece in rows if not isinstance(piece, list))
        check_length(self._prompt_tokens, self._context.n_ctx_seq)
        began = time.perf_counter()
        for piece in rows:
            self._context.eval(piece, cancel=self._cancel)
        self._prefill_s = time.perf_counter() - began

    def _encode(self, pending: PendingImage) -> ImageEmbedding:
        began = time.perf_counter()
        pixels = pending.encoder.prepare(pending.image)
        prepared = time.perf_counter()
        rows = pending.encoder.encode_pixels(pixels, cancel=self._cancel)
        self._prepare_s += prepared - began
        self._encode_s += time.perf_counter() - prepared
        return rows

    def _last(self, token: Token, text: str, reason: FinishReason) -> Token | None:
        """End the answer; return a token for text that was held back, if there is any."""
        text += self._splitter.feed(self._decoder.finish())
        if self._splitter.stopped:
            reason = "stop"
        text += self._splitter.finish()
        self._end(reason)
        return token._replace(text=text) if text else None

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._free()

    def cancel(self) -> None:
        """Stop from any thread; the iteration ends, and ``finish_reason`` is "cancelled"."""
        self._cancel.cancel()

    def close(self) -> None:
        """Stop and free the context for the next stream. May be called again.

        Raises
        ------
        BusyError
            Another thread is inside ``next()``; ``cancel()`` makes it leave.
        """
        self._enter()
        try:
            self._free()
        finally:
            self._inside.release()

    def _free(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            if self.finish_reason is None:
                self.finish_reason = "cancelled"
            try:
                sampler.close()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._shown)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt_tokens, self._image_tokens, self._n_tokens)

    @property
    def timings(self) -> Timings:
        """Seconds so far."""
        rate = self._n_tokens / self._decode_s if self._decode_s else 0.0
        return Timings(
            self._prepare_s, self._encode_s, self._prefill_s, self._first_token_s, self._decode_s, rate
        )

    def result(self) -> Result:
        """Return the whole answer, generating what is missing of it."""
        for _ in self:
            pass
        return Result(self.text, self.finish_reason or "cancelled", self.usage, self.timings)
