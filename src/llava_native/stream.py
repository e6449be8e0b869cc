"""TokenStream: the tokens of one answer, as they come."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from queue import Empty
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from llava_native.engine import Choice, Event, FinishReason, Request
from llava_native.errors import BusyError, CancelledError, InvalidInputError, TimeoutExpiredError, detached
from llava_native.text import StopSplitter, Utf8Decoder

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken
    from llava_native._model import Model
    from llava_native._sampler import Sampler
    from llava_native.engine import Engine
    from llava_native.prompt import Prompt

__all__ = ["FinishReason", "Result", "Timings", "Token", "TokenStream", "Usage"]

_POLL_S = 0.05  # how often a caller that waits looks at its time limit or its CancelToken


class Token(NamedTuple):
    """One generated token.

    Attributes
    ----------
    id : int
    text : str
        The text that this token completes. Empty while a character or a possible stop string is
        unfinished, and where a stop string came.
    logprob : float or None
        Natural logarithm of its probability, before any sampler; None unless asked for, and of the token
        that ends the answer, which is seen only where text was held back until then.
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
    """The vision tower and projector, or waiting until another request's were done."""
    prefill_s: float
    """Evaluating the prompt, image rows included."""
    first_token_s: float
    """From the first request for a token until there was one."""
    decode_s: float
    """Generating, after the prompt."""
    tokens_per_second: float
    """Generated tokens a second of `decode_s`."""
    queue_s: float
    """Waiting for others, when all images were there."""
    prefill_text_s: float
    """Of `prefill_s`, the text."""
    prefill_image_s: float
    """Of `prefill_s`, the image rows; what was evaluated together counts by its numbers."""
    cached_tokens: int
    """Tokens of the prompt that the prefix cache had."""
    cached_images: int
    """Images whose rows were in the embedding cache, or being made for another request."""
    fetch_s: float
    """Fetching images of http URLs, before all else."""


class Result(NamedTuple):
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings


def check_limits(max_tokens: int | None, stop: str | Sequence[str], logprobs: int | None = None) -> list[str]:
    """Return the stop strings as a list.

    Raises
    ------
    InvalidInputError
        They are none, or `max_tokens` or `logprobs` is no number of tokens.
    """
    if logprobs is not None and (
        isinstance(logprobs, bool) or not (isinstance(logprobs, Integral) and 0 <= logprobs <= 100)
    ):
        raise InvalidInputError(f"logprobs must be an integer from 0 to 100, or None, not {logprobs!r}")
    if max_tokens is not None and not (isinstance(max_tokens, Integral) and max_tokens >= 1):
        raise InvalidInputError(f"max_tokens must be an integer of at least 1, or None, not {max_tokens!r}")
    stops = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    if not all(isinstance(text, str) for text in stops):
        raise InvalidInputError(f"stop must be a str or several, not {stop!r}")
    return stops


class Writer:
    """Turns the tokens of an answer into text, and tells when it is over. Called by the engine's thread."""

    def __init__(self, model: Model, stops: Sequence[str]) -> None:
        self.stops = list(stops)
        self._model = model
        self._decoder = Utf8Decoder()
        self._splitter = StopSplitter(stops)
        self._n_tokens = 0

    def __call__(self, chosen: Choice, last: bool) -> Event:
        """Return what the caller sees of a token; `last` where there is no room for another one."""
        if self._model.is_eog(chosen.token):
            return self._end(Choice(chosen.token), "", "eog")
        self._n_tokens += 1
        text = self._splitter.feed(self._decoder.feed(self._model.token_bytes(chosen.token)))
        if self._splitter.stopped:
            return Event(_token(chosen, text), "stop", self._n_tokens)
        if not last:
            return Event(_token(chosen, text), None, self._n_tokens)
        end = self._end(chosen, text, "length")
        return end if end.item is not None else end._replace(item=_token(chosen, text))

    def _end(self, chosen: Choice, text: str, reason: FinishReason) -> Event:
        """End the answer; show text that was held back, if there is any."""
        text += self._splitter.feed(self._decoder.finish())
        if self._splitter.stopped:
            reason = "stop"
        text += self._splitter.finish()
        return Event(_token(chosen, text) if text else None, reason, self._n_tokens)


def _token(chosen: Choice, text: str) -> Token:
    return Token(chosen.token, text, chosen.logprob, chosen.top_logprobs)


class TokenStream:
    """The tokens of one answer: an iterator, also an asynchronous one. Made by ``Llava.stream``.

    Work begins with the first ``next()``, or with ``start()``. From then on the engine goes on by itself, up
    to 64 tokens ahead of its caller. Dropping, closing or finishing the stream frees its sequence at once.

    Attributes
    ----------
    text : str
        The answer so far.
    finish_reason : {"eog", "stop", "length", "cancelled"} or None
        Why the answer ended: the model ended it, a stop string came, `max_tokens` or the context was
        full, or it was cancelled. None while it goes on. An answer that failed is "cancelled", too, and
        who asks for more of it, or its result, gets the error again.

    Notes
    -----
    Threads: one iterates, or one task; any may ``cancel()`` or ``close()``.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        sampler: Sampler,
        *,
        max_tokens: int | None,
        stops: Sequence[str],
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        self._engine = engine
        self._sampler = sampler
        self._n_prompt = prompt.n_tokens
        writer = Writer(engine.model, stops)
        try:
            self._request = Request(
                prompt.pieces,
                sampler,
                writer,
                max_tokens=max_tokens,
                cancel=cancel,
                timeout=timeout,
                **options,
            )
        except BaseException:
            sampler.close()
            raise
        self._submitted = False
        self._inside = threading.Lock()
        self._n_tokens = 0
        self._shown: list[str] = []
        self._error: Exception | None = None
        self.finish_reason: FinishReason | None = None
        self._open = True
        engine.streams[id(self)] = weakref.ref(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        self._check_alone()
        with self._inside:
            try:
                while self._open:
                    if (token := self._take(self._wait())) is not None:
                        return token
            except BaseException as exc:
                self._failed(exc)
        self._raise_again()
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        self._check_alone()
        with self._inside:
            try:
                while self._open:
                    if (token := self._take(await self._wait_async())) is not None:
                        return token
            except BaseException as exc:
                self._failed(exc)
        self._raise_again()
        raise StopAsyncIteration

    def start(self) -> None:
        """Begin the work now, and not with the first token that is asked for.

        Raises
        ------
        BusyError
            Too many requests wait already.
        """
        if self._open and not self._submitted:
            self._engine.submit(self._request)
            self._submitted = True

    def on_end(self, call: Callable[[], Any]) -> None:
        """Have `call` called, on any thread, when the answer is whole or has failed."""
        self._request.on_end = call

    def _check_alone(self) -> None:
        """Raise if somebody is inside; whoever is not enters by ``with``, which Ctrl-C cannot tear apart."""
        if self._inside.locked():
            raise BusyError(
                "another thread or task is inside this stream; only cancel() and close() may be called"
            )

    def _check_limit(self) -> None:
        """Raise what the caller's token or the time limit says; but what came before that comes first."""
        try:
            self._request.raise_if_cancelled()
        except TimeoutExpiredError:
            if self._request.events.empty():
                raise

    def _wait(self) -> Event:
        """Return what the engine says next. Without a time limit, nothing but an event ends the wait."""
        request = self._request
        self._check_limit()
        self.start()
        if request.events.empty():
            self._engine.check()
        if not request.has_deadline:
            return request.events.get()
        while True:
            try:
                return request.events.get(timeout=_POLL_S)
            except Empty:
                request.raise_if_cancelled()

    async def _wait_async(self) -> Event:
        request = self._request
        self._check_limit()
        self._engine.serve_loop()
        self.start()
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(Empty):
                return request.events.get_nowait()
            self._engine.check()
            future = loop.create_future()
            request.wake = partial(_wake, loop, future)
            if request.events.empty():  # else it came before `wake` was there
                await asyncio.wait((future,), timeout=_POLL_S if request.has_deadline else None)
            self._check_limit()

    def _take(self, event: Event) -> Token | None:
        if event.error is not None:
            try:
                raise event.error
            finally:
                del event  # else error, traceback and this frame would keep each other
        if event.reason == "cancelled":
            self._request.raise_if_cancelled()
            raise CancelledError("cancelled")
        self._n_tokens = event.n_tokens
        token: Token | None = event.item
        if token is not None:
            self._shown.append(token.text)
        if event.reason is not None:
            self.finish_reason = event.reason
            self._free()
        elif self._request.paused and self._request.has_room:
            self._engine.wake()
        return token

    def _failed(self, error: BaseException) -> None:
        """Free everything, and raise, unless it is the end that ``cancel()`` asked for."""
        self._free()
        if not isinstance(error, CancelledError) or isinstance(error, TimeoutExpiredError):
            if isinstance(error, Exception):  # not Ctrl-C
                self._error = detached(error)
            try:
                raise error
            finally:
                del error  # as in `_take`

    def _raise_again(self) -> None:
        """Raise what the answer failed with, if it did."""
        if self._error is not None:
            raise detached(self._error)

    def cancel(self) -> None:
        """Stop from any thread; the iteration ends, and ``finish_reason`` is "cancelled"."""
        self._request.stop.cancel()
        self._request.deliver(Event(reason="cancelled"))
        self._engine.wake()

    def close(self) -> None:
        """Stop, and free the sequence. May be called again, and from any thread."""
        if not self._inside.acquire(blocking=False):
            self.cancel()  # who is inside leaves, and frees
            return
        try:
            self._free()
        finally:
            self._inside.release()

    def _free(self) -> None:
        if not self._open:
            return
        self._open = False
        self._engine.streams.pop(id(self), None)
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
        if self._submitted:
            self._engine.drop(self._request)
        else:
            self._sampler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self._free()

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._shown)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        request = self._request
        image_tokens = sum(image.n_tokens or 0 for image in request.images)
        return Usage(request.n_prompt or self._n_prompt, image_tokens, self._n_tokens)

    @property
    def timings(self) -> Timings:
        """Seconds so far."""
        r = self._request
        return Timings(
            prepare_s=sum(image.prepare_s for image in r.images),
            encode_s=sum(image.encode_s for image in r.images),
            prefill_s=r.prefill_text_s + r.prefill_image_s,
            first_token_s=r.first_token_s,
            decode_s=r.decode_s,
            tokens_per_second=self._n_tokens / r.decode_s if r.decode_s else 0.0,
            queue_s=r.queue_s,
            prefill_text_s=r.prefill_text_s,
            prefill_image_s=r.prefill_image_s,
            cached_tokens=r.n_cached or 0,
            cached_images=sum(image.from_cache for image in r.images),
            fetch_s=r.fetch_s,
        )

    def result(self) -> Result:
        """Return the whole answer, generating what is missing of it."""
        for _ in self:
            pass
        return self._result()

    async def aresult(self) -> Result:
        """Return the whole answer, without blocking the event loop."""
        async for _ in self:
            pass
        return self._result()

    def _result(self) -> Result:
        return Result(self.text, self.finish_reason or "cancelled", self.usage, self.timings)


def _wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Resolve a future from another thread."""
    with contextlib.suppress(RuntimeError):  # the loop was closed, and nobody waits any more
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
