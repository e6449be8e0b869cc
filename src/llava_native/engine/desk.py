"""ImageDesk: which images are being made, for whom, and which are there already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakMethod

from llava_native.engine.encoding import EncodeJob
from llava_native.errors import detached

if TYPE_CHECKING:
    from llava_native.engine.embedding_cache import EmbeddingCache
    from llava_native.engine.encoding import Encoding
    from llava_native.engine.request import Image, Request
    from llava_native.engine.stats import Stats

__all__ = ["ImageDesk"]

_PATIENCE = 16  # steps that an image is put off, at most


class ImageDesk:
    """Gets images, and rows for them: from the cache, from another request's encode, or by a new one.

    Parameters
    ----------
    encoding : Encoding
        Its threads do the work.
    cache : EmbeddingCache
    stats : Stats
    done : WeakMethod
        ``done(request, error)`` is told of each image that was fetched or prepared, or whose rows came. Weak,
        for it is of the desk's owner.

    Notes
    -----
    Belongs to the scheduler's thread.
    """

    def __init__(
        self,
        encoding: Encoding,
        cache: EmbeddingCache,
        stats: Stats,
        done: WeakMethod[Callable[[Request, BaseException | None], None]],
    ) -> None:
        self._encoding = encoding
        self._cache = cache
        self._stats = stats
        self._owner_done = done
        self._jobs: dict[str, EncodeJob] = {}
        self._ready: deque[EncodeJob] = deque()  # those that were not begun
        self._active: EncodeJob | None = None
        self._put_off = 0  # steps that the next one has waited for others' prompts

    @property
    def is_encoding(self) -> bool:
        """Whether an image is being encoded."""
        return self._active is not None

    @property
    def has_ready(self) -> bool:
        """Whether an image waits to be encoded."""
        return bool(self._ready)

    def begin(self, is_busy: bool, n_threads: int | None) -> None:
        """Let the next image be encoded, unless one is already; where prompts keep all cores busy, later.

        On so many threads; None: on all of the encoder's.
        """
        if self._active is not None or not self._ready:
            return
        self._put_off += 1
        if is_busy and self._put_off <= _PATIENCE:
            return
        self._put_off = 0
        self._active = self._ready.popleft()
        self._active.n_threads = n_threads
        self._encoding.encode(self._active, self._encoded)

    def fetch(self, request: Request) -> None:
        """Have the images of a request fetched that are elsewhere; meanwhile it is not begun."""
        self._encoding.fetch(request, self._fetched)

    def _fetched(self, outcome: tuple[Request, BaseException | None]) -> None:
        request, error = outcome
        request.n_away -= 1
        self._tell(request, error)

    def prepare(self, images: list[Image]) -> None:
        """Have images prepared and named."""
        for image in images:
            image.wanted = True
        for image in images:
            self._encoding.prepare(image, self._prepared)

    def _prepared(self, image: Image) -> None:
        image.wanted = False
        if image.key is not None and image.n_tokens is None:
            image.n_tokens = self._cache.n_tokens(image.key)
        self._done(image)

    def _done(self, image: Image) -> None:
        if image.request is None:
            return  # it is over
        if image.error is None and image.n_tokens is None:
            self.want(image)  # an encoder with tiles tells how many rows when it has made them
        self._tell(image.request, image.error)

    def _tell(self, request: Request, error: BaseException | None) -> None:
        done = self._owner_done()
        if done is not None:
            done(request, error)

    def want(self, image: Image) -> None:
        """Have the rows of a prepared image made, unless they are here."""
        assert image.key is not None
        rows = self._cache.get(image.key)
        if rows is not None:
            image.rows, image.n_tokens, image.from_cache = rows, rows.n_tokens, True
            self._stats.images_from_memory += 1
            return
        job = self._jobs.get(image.key)
        if job is None:
            assert image.pixels is not None
            job = self._jobs[image.key] = EncodeJob(image.key, image.piece.encoder, image.pixels)
            self._ready.append(job)
        else:
            image.from_cache = True
            self._stats.images_joined += 1
        image.wanted = True
        job.waiters.append(image)

    def _encoded(self, job: EncodeJob) -> None:
        self._active = None
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]
        if job.rows is not None:
            if any(image.request is not None and image.request.keep_images for image in job.waiters):
                self._cache.put(job.key, job.rows)
            if job.from_disk:
                self._stats.images_from_disk += 1
            else:
                self._stats.images_encoded += 1
        for n, image in enumerate(job.waiters):
            image.wanted = False
            image.error = detached(job.error) if n and isinstance(job.error, Exception) else job.error
            image.encode_s = job.seconds
            image.from_cache = image.from_cache or job.from_disk
            if job.rows is not None:
                image.rows, image.n_tokens, image.pixels = job.rows, job.rows.n_tokens, None
            self._done(image)

    def leave(self, request: Request) -> None:
        """Stop what is being made for this request only."""
        for image in request.images:
            job = self._jobs.get(image.key) if image.key is not None else None
            if job is not None and image in job.waiters:
                job.waiters.remove(image)
                if not job.waiters:
                    job.stop.cancel()
                    if job in self._ready:
                        self._ready.remove(job)
                    del self._jobs[job.key]  # whoever wants it from now on begins anew

    def close(self) -> None:
        """Stop everything, and end the threads."""
        for job in self._jobs.values():
            job.stop.cancel()
        self._jobs.clear()
        self._ready.clear()
        self._encoding.close()
        self._cache.clear()
