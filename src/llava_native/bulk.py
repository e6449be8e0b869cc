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
        while self._images is not None and len(self._pending) < self._window:
            found = next(self._images, None)
            if found is None:
                self._images = None
                return
            self._begin(*found)

    def _begin(self, index: int, image: ImageLike) -> None:
        stream: TokenStream | None = None
        error: Exception | None = None
        try:
            stream = self._open_stream(image)
            if self._order is None:
                stream.on_end(partial(self._done.put, index))
            stream.start()
        except (
            ValueError,
            OSError,
            MemoryError,
            BusyError,
            NativeAbort,
        ) as exc:  # of this image; the next may be sound
            error = exc
            if self._order is None:
                self._done.put(index)
        self._pending[index] = _Pending(index, image, stream, error)
        if self._order is not None:
            self._order.append(index)

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
        pending, self._pending = self._pending, {}
        for one in pending.values():
            if one.stream is not None:
                one.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
