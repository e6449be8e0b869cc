"""IsolatedEngine: what ``Engine`` is to a ``Llava``, with the work in a child process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from llava_native.engine import Event, contents
from llava_native.engine.stats import Stats
from llava_native.errors import BusyError, ClosedError, ForkError, NativeAbort
from llava_native.exiting import close_at_exit, closed_error
from llava_native.fetching import Fetching
from llava_native.isolation.child import REASONS, TOKEN
from llava_native.isolation.faults import from_data
from llava_native.isolation.process import Worker, numbers
from llava_native.isolation.shared import pack, pack_bytes, read_bytes
from llava_native.isolation.wire import Frame, Kind, WireError, close_all
from llava_native.prompt import Text
from llava_native.stream import Token

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken
    from llava_native.engine import Request
    from llava_native.engine.sequences import Content, State
    from llava_native.prompt import Piece
    from llava_native.stream import TokenStream

__all__ = ["IsolatedEngine"]

_POLL_S: Final = 0.05  # how often limits of time are looked at, while nothing else happens
_GRACE_S: Final = 0.05  # that the child gives a time limit more: it is the parent's to say that it is over


class IsolatedEngine:
    """Answers requests in a child process, and starts another one when it has died.

    Parameters
    ----------
    options : dict
        What ``Parts`` takes, as JSON.
    n_running, max_waiting : int
        As ``Engine`` takes them.
    progress, cancel
        Of the first load.
    """

    model: Any = None  # tokens are turned into text in the child; and what is dropped must hold no circle

    def __init__(
        self,
        options: dict[str, Any],
        *,
        n_running: int,
        max_waiting: int,
        progress: Callable[[float], Any] | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.n_running = n_running
        self.streams: dict[int, weakref.ref[TokenStream]] = {}
        self._options = options
        self._max_waiting = max_waiting
        self._starting = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._desk = _Desk()
        self._fetching = Fetching()
        self._worker = Worker(options, self._desk.take, progress, cancel)
        self.facts = self._worker.facts
        self.adapters = str(self.facts["adapters"])
        close_at_exit(self)

    @property
    def pid(self) -> int:
        """The child's process id; another one after it has died."""
        return self._worker.pid

    def check(self) -> None:
        """Raise unless requests can be made here."""
        if self._closed:
            raise closed_error()
        if self._pid != os.getpid():
            raise ForkError("this Llava was made before os.fork(); make it in the child, or use spawn")

    def worker(self) -> Worker:
        """Return the child that lives; where none does, start one, which loads the model again."""
        self.check()
        if self._worker.dead:
            with self._starting:
                self.check()
                if self._worker.dead:
                    self._worker = Worker(self._options, self._desk.take)
        return self._worker

    def call(self, name: str, **data: Any) -> Any:
        """Have the child answer a question."""
        return self.worker().call(name, data).data

    def submit(self, request: Request) -> None:
        """Hand a request over.

        Raises
        ------
        BusyError
            Too many requests wait already.
        ClosedError, ForkError
        LlavaError
            The child had died, and its successor could not be started.
        """
        self.check()
        if self._desk.n_silent >= self._max_waiting + self.n_running:
            raise BusyError(f"{self._max_waiting} requests wait already; see max_waiting")
        self.worker()
        number = next(numbers)
        request.submitted = time.perf_counter()
        self._desk.add(number, request)
        away = request.remote_images
        request.n_away = len(away)
        if not away:
            self._send(number)
            return
        fetched = weakref.WeakMethod(self._fetched)  # a fetch must not keep a child alive
        for image in away:
            self._fetching.fetch(image, request, partial(_tell, fetched, number))
        with contextlib.suppress(RuntimeError):  # the system has no thread for it: it ends when all are here
            self._desk.watch()
        if self._closed:  # whoever closed it meanwhile may not have seen the request
            self._desk.fail(number, closed_error())

    def _fetched(self, number: int, error: BaseException | None) -> None:
        """Go on with a request of which an image was fetched, or could not be."""
        if error is not None:
            self._desk.fail(number, error)
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        """Send a request to the child, unless images are missing, or another thread does, or it is over."""
        if not self._desk.is_to_send(number):
            return
        try:
            worker = self.worker()
        except Exception as exc:
            self._desk.fail(number, exc)
            return
        request = self._desk.take_to_send(number, worker)
        if request is None:
            return
        request.fetch_s = time.perf_counter() - request.submitted if request.n_away else 0.0
        try:
            data, ids, file = _wire_form(request)
            worker.send(Kind.SUBMIT, number, data, ids, file)
        except Exception as exc:  # an image that cannot be read is this request's own error, as in a Llava
            self._desk.fail(number, exc)
            return
        if request.cancelled:  # perhaps before the child knew it
            worker.send(Kind.DROP, number)
        if worker.dead:
            self._desk.fail(number, worker.end)

    def export(self, make_pieces: Callable[[], Iterable[Piece]]) -> tuple[Content, State] | None:
        """Return what the child's prefix cache holds of the beginning of a prompt, and its state."""
        worker = self._worker  # not another one, which would have evaluated nothing
        if worker.dead:
            return None
        try:
            pieces, ids, images = _wire_pieces(make_pieces())
            descriptions, file = pack(images)
            asked = {"pieces": pieces, "images": descriptions}
            answer = worker.call("export", asked, file, blob=ids)
        except NativeAbort:
            return None  # what it had evaluated is gone with it
        try:
            if answer.data is None:
                return None
            if len(answer.fds) != 1:
                raise WireError("a state came without its memory")
            content, size = contents.from_data(answer.data["content"]), contents.natural(answer.data["size"])
            return content, read_bytes(answer.fds[0], size)
        finally:
            close_all(answer.fds)

    def adopt(self, content: Content, state: State) -> bool:
        """Give the child's prefix cache a state that was exported; return whether there is room for it.

        Raises
        ------
        InvalidInputError
            It is no state of this content.
        """
        data = {"content": contents.to_data(content)}
        return bool(self.worker().call("adopt", data, pack_bytes(state)).data)

    def serve_loop(self) -> None:
        """Do nothing: what computes has another GIL."""

    def drop(self, request: Request) -> None:
        """End a request, whatever its stage. May be called from a destructor."""
        request.stop.cancel()
        self.wake()

    def wake(self) -> None:
        """Tell the child what has become of its requests here. May be called from a destructor."""
        self._desk.look()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def stats(self) -> Stats:
        """Return the counters of the present child."""
        found = self.call("stats")
        stats = Stats(**{field.name: int(found[field.name]) for field in dataclasses.fields(Stats)})
        return dataclasses.replace(stats, waiting=stats.waiting + self._desk.n_unsent)

    def close(self) -> None:
        """End all requests, and the child. May be called again."""
        if self._closed or self._pid != os.getpid():
            return
        with self._starting:
            self._closed = True
        self._desk.fail_unsent(closed_error)
        self._worker.close()


class _Desk:
    """The requests that the child has or will have, and what it says about them."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._workers: dict[int, Worker] = {}  # who has them
        self._unsent: set[int] = set()  # their images are being fetched
        self._silent: set[int] = set()  # nothing was heard of them yet
        self._dropped: set[int] = set()
        self._watching = threading.Lock()
        self._is_watched = False

    @property
    def n_silent(self) -> int:
        """Requests that may be waiting to run."""
        return len(self._silent)

    @property
    def n_unsent(self) -> int:
        """Requests whose images are being fetched."""
        return len(self._unsent)

    def add(self, number: int, request: Request) -> None:
        """Expect news of a request, which is yet to be sent."""
        self._silent.add(number)
        self._unsent.add(number)
        self._requests[number] = request

    def is_to_send(self, number: int) -> bool:
        """Tell whether a request waits to be sent, with all of its images."""
        request = self._requests.get(number)
        return request is not None and number in self._unsent and not request.remote_images

    def take_to_send(self, number: int, worker: Worker) -> Request | None:
        """Return a request to the one thread that shall send it to a child; None where that is none."""
        request = self._requests.get(number)
        if request is None:
            return None
        try:
            self._unsent.remove(number)
        except KeyError:  # another thread was first
            return None
        self._workers[number] = worker
        return request

    def watch(self) -> None:
        """See to it that requests end in time while their images are being fetched."""
        with self._watching:
            if not self._is_watched:
                threading.Thread(target=self._watch, name="llava_native watch", daemon=True).start()
                self._is_watched = True

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL_S)
            self.look()
            with self._watching:
                if not self._unsent:
                    self._is_watched = False
                    return

    def look(self) -> None:
        """Tell the child who was cancelled, and whose caller has caught up."""
        for number, request in list(self._requests.items()):
            worker = self._workers.get(number)
            if request.cancelled and number in self._unsent:
                self._finish(number, request, Event(reason="cancelled"))
            elif worker is None:
                continue
            elif request.cancelled:
                self._drop(number, worker)
            elif request.paused and request.has_room:
                request.paused = False
                worker.send(Kind.GO_ON, number)

    def _drop(self, number: int, worker: Worker) -> None:
        if number not in self._dropped:
            self._dropped.add(number)
            worker.send(Kind.DROP, number)

    def take(self, told: Frame | BaseException) -> None:
        """Hear what the child says, or that a child is gone. On its own thread."""
        if isinstance(told, BaseException):
            for number, worker_of in list(self._workers.items()):
                if worker_of.dead:
                    self.fail(number, told)
            return
        request, worker = self._requests.get(told.number), self._workers.get(told.number)
        if request is None or worker is None:
            return
        event = _event(told, request)
        self._silent.discard(told.number)
        if event.error is not None or event.reason is not None:
            self._finish(told.number, request, event)
            return
        request.deliver(event)
        if request.has_deadline and request.cancelled:
            self._drop(told.number, worker)
        if request.is_ahead and not request.paused:
            worker.send(Kind.HOLD, told.number)
            request.paused = True  # after that, or a GO_ON could come first; the caller looks at it
            if request.has_room:
                self.look()

    def fail(self, number: int, error: BaseException | None) -> None:
        """End a request whose child is gone, or that never came so far."""
        request = self._requests.get(number)
        if request is not None:
            self._finish(number, request, Event(error=error))

    def fail_unsent(self, make_error: Callable[[], BaseException]) -> None:
        """End the requests that no child has."""
        for number in list(self._unsent):
            self.fail(number, make_error())

    def _finish(self, number: int, request: Request, event: Event) -> None:
        if self._requests.pop(number, None) is None:
            return  # another thread was first
        self._workers.pop(number, None)
        self._unsent.discard(number)
        self._silent.discard(number)
        self._dropped.discard(number)
        request.sampler.close()  # which the child has, if it has the request
        request.ended = True
        request.deliver(event)
        request.tell_end()


def _tell(method: weakref.WeakMethod[Any], number: int, _: Request, error: BaseException | None) -> None:
    """Call a method of an engine, unless that is gone."""
    found = method()
    if found is not None:
        found(number, error)


def _wire_pieces(wanted: Iterable[Piece | Text]) -> tuple[list[Any], bytes, list[Any]]:
    """Return pieces as data, their ids, and their images."""
    pieces: list[Any] = []  # how many ids; 0 for an image; or a text, and whether it is ours
    ids, images = array("i"), []
    for piece in wanted:
        if isinstance(piece, Text):
            pieces.append([piece.text, piece.special])
        elif not isinstance(piece, list):
            images.append(getattr(piece, "image", piece))
            pieces.append(0)
        elif piece:
            ids.extend(piece)
            pieces.append(len(piece))
    return pieces, ids.tobytes(), images


def _wire_form(request: Request) -> tuple[dict[str, Any], bytes, Any]:
    """Return a request as data, ids and shared file."""
    pieces, ids, images = _wire_pieces(request.wanted_pieces)
    descriptions, file = pack(images)
    data = {
        "pieces": pieces,
        "images": descriptions,
        "stops": request.write.stops,  # type: ignore[attr-defined]
        "options": {
            "max_tokens": request.max_tokens,
            "logprobs": request.logprobs,
            "keep_images": request.keep_images,
            "timeout": None if request.deadline is None else _left(request.deadline),
        },
        **request.sampler.data(),  # type: ignore[attr-defined]
    }
    return data, ids, file


def _left(deadline: float) -> float:
    return max(0.0, min(deadline - time.monotonic(), 3e9)) + _GRACE_S


def _event(told: Frame, request: Request) -> Event:
    """Return what a frame means, and note how far the request is."""
    data = told.data or {}
    if "facts" in data:
        _note(request, data["facts"])
    if told.kind == Kind.ERROR:
        error = from_data(data)
        return Event(error=closed_error() if isinstance(error, ClosedError) else error)
    token_id, n_tokens, reason, shown = TOKEN.unpack_from(told.blob)
    item = None
    if shown:
        text = told.blob[TOKEN.size :].decode("utf-8", "surrogatepass")
        item = Token(token_id, text)
        if "logprob" in data:
            top = [(int(i), float(value)) for i, value in data["top"]]
            item = Token(token_id, text, float(data["logprob"]), top)
    return Event(item, REASONS[reason], n_tokens)


def _note(request: Request, facts: dict[str, Any]) -> None:
    for name in ("queue_s", "prefill_text_s", "prefill_image_s", "first_token_s", "decode_s"):
        setattr(request, name, float(facts[name]))
    if request.first_token_s:
        request.first_token_s += request.fetch_s  # which was here
    request.n_prompt = int(facts["n_prompt"])
    request.n_cached = None if facts["n_cached"] is None else int(facts["n_cached"])
    names = ("n_tokens", "prepare_s", "encode_s", "from_cache")
    request.images = [SimpleNamespace(**dict(zip(names, image, strict=True))) for image in facts["images"]]  # type: ignore[misc]
