"""Request: one answer on its way through the engine, and the tokens that wait for its caller."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from llava_native._cancel import CancelToken
from llava_native.engine.sequences import ImageSpan
from llava_native.errors import InvalidInputError, PromptTooLongError
from llava_native.remote import RemoteImage

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from llava_native._context import Context
    from llava_native._embedding import ImageEmbedding
    from llava_native._sampler import Sampler
    from llava_native.engine.lookup import Lookup
    from llava_native.engine.sequences import Content, Sequence
    from llava_native.images import Pixels

FinishReason: TypeAlias = Literal["eog", "stop", "length", "cancelled"]
Piece: TypeAlias = "list[int] | ImageEmbedding"  # what is evaluated of a segment at once

__all__ = ["RUN_AHEAD", "Choice", "Event", "FinishReason", "Image", "Piece", "Request"]

RUN_AHEAD = 64  # tokens that wait for their caller before the request pauses
_numbers = itertools.count()
_logger = logging.getLogger("llava_native")


class Choice(NamedTuple):
    """A token that was chosen, and, where it was asked for, how likely it and the likeliest ones were."""

    token: int
    logprob: float | None = None
    top_logprobs: SequenceOf[tuple[int, float]] = ()


class Event(NamedTuple):
    """Something for the caller: a token, the end, or both."""

    item: Any = None
    """What `write` made of a token; None where there is nothing to show."""
    reason: FinishReason | None = None
    """Why the answer is over."""
    n_tokens: int = 0
    """Tokens of the answer so far."""
    error: BaseException | None = None


class Image:
    """An image of a request: what it is, and what has become of it."""

    __slots__ = ("encode_s", "error", "from_cache", "key", "n_tokens", "piece", "pixels", "prepare_s",
                 "request", "rows", "wanted")  # fmt: skip

    def __init__(self, request: Request, piece: Any) -> None:
        self.request: Request | None = request  # None when that is over
        self.piece = piece
        self.key: str | None = None
        self.pixels: Pixels | None = None
        self.rows: ImageEmbedding | None = None
        self.n_tokens: int | None = None
        self.error: BaseException | None = None
        self.prepare_s = self.encode_s = 0.0
        self.wanted = False  # its rows are being made
        self.from_cache = False


class Request:
    """What a caller wants, how far it is, and where its tokens wait.

    Parameters
    ----------
    pieces : sequence of list of int, ImageEmbedding or PendingImage
        The prompt.
    sampler : Sampler
        Used and closed by the engine.
    write : callable
        ``write(choice, last) -> Event`` on the engine's thread; `last` where no token can follow.
    max_tokens : int, optional
    cancel : CancelToken, optional
        The caller's own; only read.
    timeout : float, optional
        Seconds from now.
    logprobs : int, optional
        Tell how likely each token was, and so many of the likeliest ones.
    run_ahead : int, optional
        Tokens that may wait for the caller; None for any number.
    keep_images : bool, default True
        Whether the images stay in the caches of prefixes and of rows in memory.

    Attributes
    ----------
    events : SimpleQueue of Event
        For the caller.
    stop : CancelToken
        Ends this request, and nothing else.
    """

    def __init__(
        self,
        pieces: SequenceOf[Any],
        sampler: Sampler,
        write: Callable[[Choice, bool], Event],
        *,
        max_tokens: int | None = None,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        logprobs: int | None = None,
        run_ahead: int | None = RUN_AHEAD,
        keep_images: bool = True,
    ) -> None:
        if cancel is not None and not isinstance(cancel, CancelToken):
            raise TypeError(f"cancel must be a CancelToken, not {type(cancel).__name__}")
        self.number = next(_numbers)
        self.sampler = sampler
        self.write = write
        self.max_tokens = max_tokens
        self.logprobs = logprobs
        self.run_ahead = run_ahead
        self.keep_images = keep_images
        self.stop = CancelToken(timeout)
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self._cancel = cancel
        self.has_deadline = timeout is not None or cancel is not None
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.wake: Callable[[], Any] | None = None  # of a caller that waits on an event loop
        self.on_end: Callable[[], Any] | None = None
        self._pieces = list(pieces)
        # the scheduler's
        self.images: list[Image] = []
        self.n_away = 0  # images that are being fetched
        self.begun = False  # its images are being prepared
        self.ended = False
        self.paused = False
        self.held = False  # until another one has evaluated what both begin with
        self.lookup: Lookup | None = None
        self.content: Content = []
        self.sequence: Sequence | None = None
        self.n_done = 0  # tokens of the content that the sequence holds
        self._at = self._offset = 0  # the next token: which segment, and where in it
        self.n_prompt = 0
        self.n_tokens = 0
        self.n_cached: int | None = None  # of the prompt, found in the prefix cache
        # seconds, and moments on the scheduler's clock
        self.submitted = self.since = 0.0
        self.fetch_s = self.queue_s = self.first_token_s = self.decode_s = 0.0
        self.prefill_text_s = self.prefill_image_s = 0.0

    @property
    def wanted_pieces(self) -> list[Any]:
        """The prompt, until it begins."""
        return self._pieces

    @property
    def remote_images(self) -> list[RemoteImage]:
        """The images that must be fetched before it begins."""
        images = [getattr(piece, "image", None) for piece in self._pieces]
        return [image for image in images if isinstance(image, RemoteImage) and not image.is_here]

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.ended or self.cancelled

    @property
    def cancelled(self) -> bool:
        """Whether somebody said stop, or the time is over."""
        return self.stop.cancelled or (self._cancel is not None and self._cancel.cancelled)

    def raise_if_cancelled(self) -> None:
        """Raise what the caller's token or the time limit says."""
        if self._cancel is not None:
            self._cancel.raise_if_cancelled()
        self.stop.raise_if_cancelled()

    def deliver(self, event: Event) -> None:
        """Hand something to the caller, from any thread."""
        self.events.put(event)
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()

    @property
    def is_ahead(self) -> bool:
        """Whether so many tokens wait for the caller that this request should pause."""
        return self.run_ahead is not None and self.events.qsize() >= self.run_ahead

    @property
    def has_room(self) -> bool:
        """Whether the caller has caught up enough to go on."""
        return self.run_ahead is None or self.events.qsize() <= self.run_ahead // 2

    def end(self) -> None:
        """Let go of everything that only the work needed."""
        self.ended = True
        self._pieces.clear()
        for image in self.images:
            image.request = image.piece = image.pixels = image.rows = image.error = None

    def tell_end(self) -> None:
        """Call `on_end`; what it raises is logged, since it is nobody's error here."""
        if self.on_end is not None:
            try:
                self.on_end()
            except Exception:
                _logger.exception("on_end failed")

    def choose(
        self, context: Context, rows: SequenceOf[int], guess: SequenceOf[int] = ()
    ) -> list[Choice | Exception]:
        """Choose the token after each row of the last evaluation, as far as the guess was right.

        The first row is that of a token of the answer, the others are those of the guess. An exception is
        the last.
        """
        chosen: list[Choice | Exception] = []
        for row, guessed in zip(rows, [*guess, None], strict=True):
            try:
                choice = self._choose(context, row)
            except Exception as exc:
                return [*chosen, exc]
            chosen.append(choice)
            if choice.token != guessed:
                break
        return chosen

    def _choose(self, context: Context, row: int) -> Choice:
        token = self.sampler.sample(context, row)
        if self.logprobs is None:
            return Choice(token)
        return Choice(token, *self.sampler.logprobs(context, token, self.logprobs, row))

    def event(self, chosen: Choice | Exception, n_ctx: int) -> Event:
        """Return what the caller gets of a token; an exception ends the answer."""
        if isinstance(chosen, Exception):
            return Event(error=chosen)
        full = self.n_tokens + 1 == self.max_tokens or self.n_content + 1 >= n_ctx
        try:
            return self.write(chosen, full)
        except Exception as exc:
            return Event(error=exc)

    # -- the content

    def begin(self) -> None:
        """Find the images among the pieces."""
        self.begun = True
        self._pieces = [
            list(piece) if isinstance(piece, list) else Image(self, piece) for piece in self._pieces
        ]
        self.images = [piece for piece in self._pieces if isinstance(piece, Image)]

    @property
    def is_ready(self) -> bool:
        """Whether its content is known and no rows are being made."""
        return bool(self.content) and not any(image.wanted for image in self.images)

    def settle(self, n_ctx: int) -> None:
        """Make the content, now that the size of every image is known.

        Raises
        ------
        InvalidInputError
            There is nothing in it.
        PromptTooLongError
            An image has more rows than was thought, and the prompt does not fit.
        """
        for piece in self._pieces:
            if isinstance(piece, Image):
                assert piece.key is not None
                assert piece.n_tokens is not None
                self.content.append(ImageSpan(piece.key, piece.n_tokens))
            elif self.content and isinstance(self.content[-1], list):
                self.content[-1].extend(piece)
            elif piece:
                self.content.append(piece)
        self.n_prompt = self.n_content
        if not self.n_prompt:
            raise InvalidInputError("the prompt is empty")
        if self.n_prompt >= n_ctx:
            raise PromptTooLongError(
                f"the prompt has {self.n_prompt} tokens with all rows of its images, and n_ctx={n_ctx} must "
                "also hold the answer; use fewer images, or make the context larger",
                n_tokens=self.n_prompt,
                n_ctx=n_ctx,
            )

    @property
    def n_content(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return sum(map(len, self.content))

    @property
    def n_reusable(self) -> int:
        """How many tokens of its sequence others may go on from."""
        n = min(self.n_done, self.n_content)  # else the answer ended before a guess did
        if not self.keep_images and self.images:
            first = next(i for i, s in enumerate(self.content) if isinstance(s, ImageSpan))
            n = min(n, sum(map(len, self.content[:first])))
        return n

    @property
    def in_prompt(self) -> bool:
        """Whether more than one token is left to evaluate."""
        return self.n_done + 1 < self.n_prompt + self.n_tokens

    def seek(self, n: int) -> None:
        """Go on after the first `n` tokens."""
        self.n_done = n
        self._at = 0
        while self._at < len(self.content) and n >= len(self.content[self._at]):
            n -= len(self.content[self._at])
            self._at += 1
        self._offset = n

    def advance(self, n: int) -> None:
        """Note that the next `n` tokens, all of one segment or yet to be added to it, were evaluated."""
        self.n_done += n
        self._offset += n
        if self._offset == len(self.content[self._at]) and self._at + 1 < len(self.content):
            self._at += 1
            self._offset = 0

    def next_pieces(self, limit: int) -> Iterator[tuple[Piece, bool]]:
        """Yield the ids and image rows that come next, `limit` at most, and whether all end with them."""
        at, offset = self._at, self._offset
        while limit > 0 and at < len(self.content):
            segment = self.content[at]
            stop = min(offset + limit, len(segment))
            whole: Piece = self._rows(at) if isinstance(segment, ImageSpan) else segment
            yield whole[offset:stop], stop == len(segment) and at + 1 == len(self.content)
            limit -= stop - offset
            at, offset = at + 1, 0

    def _rows(self, at: int) -> ImageEmbedding:
        n_before = sum(isinstance(segment, ImageSpan) for segment in self.content[:at])
        rows = self.images[n_before].rows
        assert rows is not None
        return rows

    def next_answer(self, room: int) -> tuple[Piece, int]:
        """Return what ends the content, with a guess of at most `room` more tokens, and how many all are."""
        [(last, _)] = self.next_pieces(1)
        if self.lookup is None or not isinstance(last, list):
            return last, 1
        if self.max_tokens is not None:
            room = min(room, self.max_tokens - self.n_tokens - 1)
        tokens = last + self.lookup.guess(room)
        return tokens, len(tokens)

    def note_prefill(self, piece: Piece, seconds: float) -> None:
        """Note how long the evaluation of a piece of the prompt took."""
        if isinstance(piece, list):
            self.prefill_text_s += seconds
        else:
            self.prefill_image_s += seconds

    def append(self, token: int) -> None:
        """Add a token of the answer."""
        self.n_tokens += 1
        if self.lookup is not None:
            self.lookup.extend([token])
        last = self.content[-1]
        if isinstance(last, list):
            last.append(token)
        else:
            self.content.append([token])
            self._at, self._offset = len(self.content) - 1, 0

    def missing(self, n: int) -> list[Image]:
        """Return the images that have no rows, and whose rows are not all among the first `n` tokens."""
        out, end, images = [], 0, iter(self.images)
        for segment in self.content:
            end += len(segment)
            if isinstance(segment, ImageSpan):
                image = next(images)
                if end > n and image.rows is None:
                    out.append(image)
        return out
