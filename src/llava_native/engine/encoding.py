"""Images on their way to rows, on threads of their own: one prepares pixels, one encodes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from llava_native._cancel import CancelToken
from llava_native._embedding import ImageEmbedding
from llava_native.engine.embedding_cache import pixels_key, rows_key
from llava_native.errors import BusyError
from llava_native.fetching import Fetching
from llava_native.images import MAX_BYTES, is_encoded
from llava_native.sources import open_source
from llava_native.threads import yield_to_others

if TYPE_CHECKING:
    from llava_native._encoder import ImageEncoder
    from llava_native.engine.embedding_cache import DiskCache
    from llava_native.engine.request import Image, Request
    from llava_native.images import Pixels

__all__ = ["EncodeJob", "Encoding", "Worker"]

_RETRY_S = 0.01  # somebody else is using the encoder


class Worker:
    """A thread that runs one call after another; it starts with the first one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> None:
        """Run `call`, which must not raise, after those before it. From one thread only."""
        if self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._calls,), name=self._name, daemon=True)
            self._thread.start()
        self._calls.put(call)

    def yield_to_others(self) -> None:
        """Have the thread take no core from others, now or when it starts."""
        self._calls.put(yield_to_others)

    def close(self) -> None:
        """Wait for what was submitted, and end the thread."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None


def _run(calls: SimpleQueue[Callable[[], Any] | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # it may hold an image, and the next one may be long in coming


class EncodeJob:
    """An image that is being encoded, for one request or several.

    Attributes
    ----------
    waiters : list
        Whoever wants the rows; the scheduler's.
    n_threads : int or None
        CPU threads of the encode, at most.
    stop : CancelToken
        Ends the encode.
    rows : ImageEmbedding or None
    error : BaseException or None
        What it came to.
    from_disk : bool
    seconds : float
    """

    def __init__(self, key: str, encoder: ImageEncoder, pixels: Pixels) -> None:
        self.key = key
        self.encoder = encoder
        self.pixels: Pixels | None = pixels
        self.waiters: list[Any] = []
        self.n_threads: int | None = None
        self.stop = CancelToken()
        self.rows: ImageEmbedding | None = None
        self.error: BaseException | None = None
        self.from_disk = False
        self.seconds = 0.0


class Encoding:
    """The two threads, and those that fetch. What they do they post, as a call, to the scheduler's thread.

    Parameters
    ----------
    post : callable
        ``post(function, argument)`` runs a function on the scheduler's thread.
    disk : DiskCache, optional
    """

    def __init__(self, post: Callable[[Callable[[Any], None], Any], None], disk: DiskCache | None) -> None:
        self._post = post
        self._disk = disk
        self._preparing = Worker("llava_native prepare")
        self._encoding = Worker("llava_native encode")
        self._fetching = Fetching()
        self._serves_loop = False

    def fetch(self, request: Request, done: Callable[[tuple[Request, BaseException | None]], None]) -> None:
        """Get the images of a request that are not here; `done((request, error))` for each of them."""
        for image in request.remote_images:
            request.n_away += 1
            self._fetching.fetch(image, request, lambda *outcome: self._post(done, outcome))

    def prepare(self, image: Image, done: Callable[[Image], None]) -> None:
        """Decode an image, bring it to the encoder's size, and name it by its content."""

        def call() -> None:
            began = time.perf_counter()
            try:
                _prepare(image, self._serves_loop)
            except BaseException as exc:
                image.error = exc
            image.prepare_s = time.perf_counter() - began
            self._post(done, image)

        self._preparing.submit(call)

    def encode(self, job: EncodeJob, done: Callable[[EncodeJob], None]) -> None:
        """Make the rows of prepared pixels, or read them from the disk."""

        def call() -> None:
            began = time.perf_counter()
            try:
                self._encode(job)
            except BaseException as exc:
                job.error = exc
            job.pixels = None
            job.seconds = time.perf_counter() - began
            self._post(done, job)

        self._encoding.submit(call)

    def _encode(self, job: EncodeJob) -> None:
        job.stop.raise_if_cancelled()
        pixels = job.pixels
        assert pixels is not None
        if self._disk is not None:
            job.rows = self._disk.load(job.key, job.encoder)
            job.from_disk = job.rows is not None
        all_threads = job.encoder.n_threads
        n_threads = all_threads if job.n_threads is None else min(job.n_threads, all_threads)
        while job.rows is None:
            try:
                job.rows = job.encoder.encode_pixels(pixels, n_threads=n_threads, cancel=job.stop)
            except BusyError:  # it is the caller's too, who may be encoding with it
                time.sleep(_RETRY_S)
                job.stop.raise_if_cancelled()
        if self._disk is not None and not job.from_disk:
            self._disk.save(job.key, job.rows)

    def serve_loop(self) -> None:
        """Take no core from others from now on, and do not decode where that keeps the GIL."""
        self._serves_loop = True
        self._preparing.yield_to_others()
        self._encoding.yield_to_others()

    def close(self) -> None:
        """End both threads; whatever still waits is done first, or was cancelled. A fetch ends by itself."""
        self._preparing.close()
        self._encoding.close()


def _prepare(image: Image, serves_loop: bool = False) -> None:
    piece = image.piece
    if isinstance(piece, ImageEmbedding):
        if piece._is_writable():  # the caller's own, who may change them before they are evaluated
            rows = memoryview(bytes(piece)).cast("f", piece.shape)
            piece = ImageEmbedding.from_buffer(rows, fingerprint=piece.fingerprint)
        image.key, image.rows, image.n_tokens = rows_key(piece), piece, piece.n_tokens
    elif piece is not None:  # else its request is over
        if serves_loop and is_encoded(piece.image):
            pixels = _prepared_beside_loop(image)
        else:
            pixels = piece.encoder.prepare(piece.image)
        if not pixels.data.readonly:  # the caller's own, who may change it before it is encoded
            pixels = pixels._replace(data=memoryview(bytes(pixels.data)))
        image.pixels = pixels
        image.key = pixels_key(pixels, piece.encoder)


def _prepared_beside_loop(image: Image) -> Pixels:
    """Return an image's pixels, from a process of their own where decoding it here would keep the GIL."""
    from llava_native.isolation.decoding import needs_process, prepare_apart

    encoder = image.piece.encoder
    source = open_source(image.piece.image, MAX_BYTES)
    with source.file:
        pixels = None
        if needs_process(source):
            pixels = prepare_apart(source, encoder.prepared_size, lambda: image.request is not None)
        return encoder.prepare(source) if pixels is None else pixels
