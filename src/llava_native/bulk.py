"""Many answers at once: several questions on one image, one question on many images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from llava_native.errors import BusyError, InvalidInputError, NativeAbort

if TYPE_CHECKING:
    from llava_native.images import ImageLike
    from llava_native.stream import Result, TokenStream

__all__ = ["ImageMap", "MapItem", "answers"]


def answers(open_stream: Callable[[str], TokenStream], questions: Iterable[str]) -> list[Result]:
    """Answer all questions at once; return the answers in order.

    The first error ends them all.

    Raises
    ------
    InvalidInputError
        `questions` is one str.
    """
    if isinstance(questions, str):
        raise InvalidInputError(f"questions are several: [{questions[:40]!r}], or describe() for one")
    with contextlib.ExitStack() as stack:
        streams: list[TokenStream] = []
        for question in questions:
            stream = stack.enter_context(open_stream(question))
            _start(stream, streams)
            streams.append(stream)
        return [stream.result() for stream in streams]


def _start(stream: TokenStream, earlier: Iterable[TokenStream]) -> None:
    """Begin with a stream; where too many wait, finish earlier ones first."""
    for other in earlier:
        try:
            stream.start()
        except BusyError:
            other.result()
        else:
            return
    stream.start()


@dataclasses.dataclass(frozen=True)
class MapItem:
    """What ``Llava.map`` yields for an image.

    Attributes
    ----------
    index : int
        Which image, counted from 0.
    image : image-like
    result : Result or None
        The answer.
    error : Exception or None
        Why there is none.
    """

    index: int
    image: ImageLike
    result: Result | None
    error: Exception | None

    @property
    def text(self) -> str:
        """The answer's text; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result.text


@dataclasses.dataclass(frozen=True)
class _Pending:
    index: int
    image: ImageLike
    stream: TokenStream | None
    error: Exception | None


class ImageMap:
    """The answers about many images: an iterator of ``MapItem``. Made by ``Llava.map``.

    Images are taken from their iterable a few ahead of the answers, so memory stays the same however many
    there are. Closing or dropping it ends what is going on.
    """

    def __init__(
        self,
        open_stream: Callable[[ImageLike], TokenStream],
        images: Iterable[ImageLike],
        *,
        window: int,
        ordered: bool,
    ) -> None:
        if window < 1:
            raise InvalidInputError(f"window must be at least 1, not {window!r}")
        self._open_stream = open_stream
        self._images: Iterator[tuple[int, ImageLike]] | None = enumerate(images)
        self._window = window
        self._pending: dict[int, _Pending] = {}
        self._refused: _Pending | None = None  # by a full queue: begun with again when an answer is there
        self._order: deque[int] | None = deque() if ordered else None
        self._done: SimpleQueue[int] = SimpleQueue()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MapItem:
        try:
            self._fill()
            if not self._pending:
                raise StopIteration
            index = self._order.popleft() if self._order is not None else self._done.get()
            return self._finish(self._pending.pop(index))
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        """Begin with as many images as may be on their way."""
        while len(self._pending) < self._window:
            one, self._refused = self._refused or self._open(), None
            if one is None:
                return
            try:
                if one.stream is not None:
                    one.stream.start()
            except BusyError:
                self._refused = one
                if self._pending:  # else others fill the queue, and nothing of ours will make room
                    return
                raise
            except NativeAbort as exc:
                one = _Pending(one.index, one.image, None, exc)
            self._add(one)

    def _open(self) -> _Pending | None:
        """Open a stream about the next image; None after the last."""
        found = None if self._images is None else next(self._images, None)
        if found is None:
            self._images = None
            return None
        index, image = found
        try:
            stream = self._open_stream(image)
        except (ValueError, OSError, MemoryError, NativeAbort) as exc:  # of this image; the next may be sound
            return _Pending(index, image, None, exc)
        if self._order is None:
            stream.on_end(partial(self._done.put, index))
        return _Pending(index, image, stream, None)

    def _add(self, one: _Pending) -> None:
        self._pending[one.index] = one
        if self._order is not None:
            self._order.append(one.index)
        elif one.stream is None:
            self._done.put(one.index)

    def _finish(self, pending: _Pending) -> MapItem:
        result, error = None, pending.error
        if pending.stream is not None:
            with pending.stream as stream:
                try:
                    result = stream.result() if error is None else None
                except Exception as exc:  # this answer's own
                    error = exc
        return MapItem(pending.index, pending.image, result, error)

    def close(self) -> None:
        """End what is going on. May be called again."""
        self._images = None
        pending, self._pending = [*self._pending.values(), self._refused], {}
        self._refused = None
        for one in pending:
            if one is not None and one.stream is not None:
                one.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
