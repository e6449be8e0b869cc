"""Scheduler: who is evaluated next. All of it runs on one thread, one step after the other."""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakMethod

from llava_native._cancel import CancelToken
from llava_native.engine.desk import ImageDesk
from llava_native.engine.embedding_cache import EmbeddingCache
from llava_native.engine.pace import TILE, Pace
from llava_native.engine.prefix_cache import PrefixCache
from llava_native.engine.request import Choice, Event, Piece, Request
from llava_native.engine.sequences import ImageSpan, Memory, common_prefix
from llava_native.engine.stats import Stats
from llava_native.errors import CancelledError, ContextFullError
from llava_native.exiting import closed_error

if TYPE_CHECKING:
    from llava_native._context import Context
    from llava_native.engine.encoding import Encoding
    from llava_native.engine.lookup import Lookup
    from llava_native.engine.sequences import Content, Sequence, State

__all__ = ["Scheduler"]

_MIN_SHARED = 16  # tokens worth waiting for, where another request is evaluating them
_RESERVE = 32  # cells that a request must find for its answer before it begins beside others
_LOOK_AHEAD = 2  # requests, beyond those that could run, whose images are prepared
_number = attrgetter("number")


class _Entry(NamedTuple):
    """What is evaluated of a request at once, and after how many of its tokens, the last, one is chosen."""

    request: Request
    what: Piece
    n_wanted: int


class Scheduler:
    """Continuous batching over the sequences of one context.

    Parameters
    ----------
    context : Context
        Nobody else may use it.
    encoding : Encoding
        Makes the rows of images.
    n_running : int
        Requests that run at once.
    prefix_cells, offload : int, bool
        As ``PrefixCache`` takes them.
    embedding_bytes : int
        Bytes that the embedding cache may hold.
    lookup : callable, optional
        Makes the ``Lookup`` of a content, where next tokens are to be guessed.
    clock : callable, optional
        Returns seconds.

    Notes
    -----
    A step is: drop what was cancelled; let images be prepared; begin what can begin; let an image be encoded,
    beside answers but not beside a long prompt; one batch (a token for each answer, and slices of prompts,
    images and all). Prompts go first come, first served; answers get a token each step.
    """

    def __init__(
        self,
        context: Context,
        encoding: Encoding,
        *,
        n_running: int,
        prefix_cells: int,
        offload: bool = True,
        embedding_bytes: int,
        lookup: Callable[[Content], Lookup] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._context = context
        self._clock = clock
        self._n_running = n_running
        self._lookup = lookup
        self._memory = Memory(context)
        self.prefixes = PrefixCache(self._memory, prefix_cells, offload)
        self._embeddings = EmbeddingCache(embedding_bytes)
        self._stats = Stats()
        self._desk = ImageDesk(encoding, self._embeddings, self._stats, WeakMethod(self._image_done))
        self._pace = Pace(context.n_ubatch)
        self._can_mix = context.can_mix
        self._n_threads = context.n_threads
        self._n_batch, self._n_ubatch, self._n_ctx = context.n_batch, context.n_ubatch, context.n_ctx_seq
        self._is_sharing = False  # threads, with an encode
        self._halt = CancelToken()  # ends a call for several requests, when all is over
        self.running: list[Request] = []  # in the order in which they began
        self.waiting: list[Request] = []  # in the order in which they came
        self.queued: set[Request] = set()  # those that never ran; callers add to it

    # -- called by others, on this thread

    def submit(self, request: Request) -> None:
        """Take a request."""
        self._stats.requests += 1
        bisect.insort(self.waiting, request, key=_number)
        self._desk.fetch(request)

    def adopt(self, content: Content, state: State) -> bool:
        """Give the prefix cache a state; return whether there is room for it."""
        for segment in content[:-1]:  # the last one may be the beginning of an image
            if isinstance(segment, ImageSpan):
                self._embeddings.note(segment.key, segment.n_tokens)
        return self.prefixes.adopt(content, state)

    @property
    def idle(self) -> bool:
        """Whether there is no request at all."""
        return not self.running and not self.waiting

    def step(self) -> bool:
        """Do one round; return whether another one should follow at once."""
        self._reap()
        if self.waiting:
            self._look_ahead()
            self._admit()
        if self._desk.has_ready:
            n_threads = max(1, self._n_threads // 2) if self.running else None
            self._desk.begin(self._is_prefilling, n_threads)
        if self._desk.is_encoding != self._is_sharing:
            self._share_threads()
        worked = self._step_batch()
        if self.idle:
            self.prefixes.tidy()
        return worked

    def stats(self) -> Stats:
        """Return the counters. May be called from any thread."""
        return dataclasses.replace(
            self._stats,
            running=len(self.running),
            waiting=len(self.waiting),
            embedding_bytes=self._embeddings.nbytes,
            cells=self._memory.used,
            n_cells=self._memory.n_cells,
            **self.prefixes.stats(),
        )

    def stop(self) -> None:
        """End the call that is going on, since all is over. May be called from any thread."""
        self._halt.cancel()
        for request in list(self.running):
            request.stop.cancel()

    def fail(self, error: BaseException) -> None:
        """End all requests with an error."""
        for request in [*self.running, *self.waiting]:
            self._end(request, Event(error=error))

    def close(self) -> None:
        """End everything."""
        self.fail(closed_error())
        self._desk.close()
        self.prefixes.clear()

    # -- before a request runs

    def _reap(self) -> None:
        """End what was cancelled; let go on what its caller has caught up with."""
        for request in self.running + self.waiting:
            if request.cancelled and not self._halt.cancelled:  # then ``close`` ends it
                self._end(request, Event(reason="cancelled"))
            elif request.paused and request.has_room:
                request.paused = False
                request.since = self._clock()

    def _look_ahead(self) -> None:
        """Begin with the first of those that wait: images are prepared while others run."""
        could_run = [request for request in self.waiting if not (request.paused or request.n_away)]
        for request in could_run[: self._n_running + _LOOK_AHEAD]:
            if not request.begun:
                request.begin()
                self._desk.prepare(request.images)
                self._settle(request)

    def _image_done(self, request: Request, error: BaseException | None) -> None:
        """Go on with a request of which an image was fetched, prepared or encoded, or could not be."""
        if request.ended:
            return
        if error is not None:
            self._end(request, Event(error=error))
        elif request.begun:
            self._settle(request)
        elif not request.n_away:
            request.fetch_s = self._clock() - request.submitted

    def _settle(self, request: Request) -> None:
        """Make a request ready, or have those rows made that nobody has evaluated."""
        if request.ended or any(image.wanted for image in request.images):
            return
        if not request.content:
            try:
                request.settle(self._n_ctx)
            except Exception as exc:
                self._end(request, Event(error=exc))
                return
        if request.images:
            _, n, planned = self._find(request.content)
            for image in request.missing(max(n, planned, self.prefixes.offloaded(request.content, n))):
                self._desk.want(image)
        request.since = self._clock()

    def _find(self, content: Content) -> tuple[Sequence | None, int, int]:
        """Return who shares the longest prefix, how long it is now, and how long it soon will be."""
        source, n = self.prefixes.match(content)
        planned = n
        if self.prefixes.limit:
            for request in self.running:
                shared = common_prefix(request.content, content)
                if min(shared, request.n_done) > n:
                    source, n = request.sequence, min(shared, request.n_done)
                planned = max(planned, shared)
        return source, n, planned

    def _admit(self) -> None:
        """Let those begin that can, the first to come first."""
        for request in [r for r in self.waiting if r.begun and r.is_ready and not r.paused]:
            if len(self.running) >= self._n_running and not self._park_paused():
                return
            if not self._start(request):
                return

    def _start(self, request: Request) -> bool:
        """Let a request begin if it can; return whether those behind it may be looked at."""
        if not self.prefixes.make_sequence():
            return False
        source, here, planned = self._find(request.content)
        last = request.n_content - 1  # it is evaluated again, for its logits
        n = min(max(here, self.prefixes.offloaded(request.content, here)), last)
        if min(planned, last) - n >= (1 if request.held else _MIN_SHARED):
            request.held = True
            return True  # somebody is evaluating its beginning right now
        request.held = False
        for image in request.missing(n):
            self._desk.want(image)
        if not request.is_ready:
            return True
        need = request.n_content - min(here, last) + _RESERVE
        evictable = self.prefixes.cells - (here if source in self.prefixes else 0)
        if self.running and need > self._memory.free + evictable:
            return False  # and nothing is evicted in vain
        if n > here:
            if not self.prefixes.restore(request.content) or not self.prefixes.make_sequence():
                return True  # with what there is, from the next step on
            source, here, _ = self._find(request.content)
            n = min(here, last)
        need = request.n_content - n + _RESERVE
        sequence = self._memory.open(source, n)
        if source is not None:
            self.prefixes.touch(source)
        self.prefixes.set_aside(request.content)
        if not self.prefixes.make_room(need) and self.running:
            self._memory.close(sequence)
            return False
        request.sequence = sequence
        request.seek(n)
        self.waiting.remove(request)
        self.running.append(request)
        self._note_start(request, n)
        return True

    def _note_start(self, request: Request, n: int) -> None:
        now = self._clock()
        self.queued.discard(request)
        request.queue_s += now - request.since
        request.since = now
        if request.n_cached is None:
            request.lookup = self._lookup and self._lookup(request.content)
            request.n_cached = n
            self._stats.prompt_tokens += request.n_prompt
            self._stats.cached_tokens += n

    def _park_paused(self) -> bool:
        """Take the sequence from a request whose caller does not keep up; return whether there was one."""
        paused = next((r for r in self.running if r.paused), None)
        if paused is not None:
            self._park(paused)
        return paused is not None

    def _park(self, request: Request) -> None:
        """Let a running request wait again; it begins again later, from what is still cached then."""
        self._stats.preempted += 1
        self.running.remove(request)
        self._retire(request)
        request.since = self._clock()
        bisect.insort(self.waiting, request, key=_number)

    # -- while requests run

    @property
    def _slice(self) -> int:
        """Tokens of prompts that may be evaluated at once, beside answers."""
        n_prompts = sum(not r.n_away for r in self.waiting) + sum(r.in_prompt for r in self.running)
        return self._pace.slice(n_prompts, self._is_sharing)

    @property
    def _is_prefilling(self) -> bool:
        """Whether a prompt will keep all cores busy for a while; an encode beside it would not be faster."""
        left = sum(r.n_content - r.n_done for r in self.running if r.in_prompt)
        return left > 2 * self._slice

    def _share_threads(self) -> None:
        """Leave half of the threads to an image that is being encoded: two full teams stall each other."""
        self._is_sharing = self._desk.is_encoding
        self._context.set_n_threads((self._n_threads + 1) // 2 if self._is_sharing else self._n_threads)

    def _entries(self) -> list[_Entry]:
        """Return the next batch: the tokens of answers, then slices of prompts."""
        entries: list[_Entry] = []
        prompts = []
        spare = min(self._memory.free, self._n_ubatch) - len(self.running)  # for guesses
        for request in self.running:
            if request.in_prompt:
                prompts.append(request)
            elif not request.paused:
                what, n = request.next_answer(min(spare, self._n_ctx - 2 - request.n_done))
                spare -= len(what) - 1
                entries.append(_Entry(request, what, n))
        n = _n_tokens(entries)
        left = max(self._slice - n, TILE - n % TILE) if entries or self._is_sharing else self._n_ubatch
        left = min(left, self._n_batch - n)
        n_pieces = None if self._can_mix else 1
        for request in prompts:
            for what, last in islice(request.next_pieces(left), n_pieces):
                left -= len(what)
                entries.append(_Entry(request, what, int(last)))
        return entries if self._can_mix else self._of_one_kind(entries)

    def _of_one_kind(self, entries: list[_Entry]) -> list[_Entry]:
        """Return the tokens or the image rows, in turns: this model takes them apart."""
        tokens = [entry for entry in entries if isinstance(entry.what, list)]
        rows = [entry for entry in entries if not isinstance(entry.what, list)]
        return (rows if self._stats.steps % 2 else tokens) or entries

    def _step_batch(self) -> bool:
        entries = self._entries()
        if not entries:
            return False
        while not self.prefixes.make_room(_n_tokens(entries)) and len(self.running) > 1:
            self._park(self.running[-1])
            entries = self._entries()
        if entries:
            self._eval(entries)
        return True

    def _eval(self, entries: list[_Entry]) -> None:
        """Evaluate a batch; where it fails, each of its requests alone, so that only the culprit ends."""
        began = self._clock()
        sizes = _sizes(entries)
        owner = _owner(sizes)
        batch = [(_sequence(request).id, what, n) for request, what, n in entries]
        try:
            rows = self._context.eval_batch(batch, cancel=owner.stop if owner else self._halt)
        except Exception as exc:
            self._eval_failed(entries, owner, exc)
            return
        now = self._clock()
        self._stats.steps += 1
        self._pace.learn(_n_tokens(entries), now - began)
        wanted = iter(rows)
        chosen = []
        for request, what, n in entries:
            if request.n_done < request.n_prompt:
                request.note_prefill(what, (now - began) * len(what) / sizes[request])
                request.since = now
            guess = what[len(what) - n + 1 :] if n > 1 and isinstance(what, list) else []
            choices = request.choose(self._context, list(islice(wanted, n)), guess) if n else []
            n_wrong = n - len(choices)
            self._keep(request, len(what) - n_wrong)
            if guess and request.lookup is not None:
                request.lookup.learn(len(guess), len(choices) - 1)
                self._stats.guessed_tokens += len(guess)
                self._stats.right_tokens += len(choices) - 1
            chosen.append((request, choices, n_wrong))
        for request, choices, n_wrong in chosen:  # after all were chosen: this takes the logits away
            if n_wrong:
                self._context.truncate_sequence(_sequence(request).id, request.n_done)
            self._emit(request, choices)

    def _keep(self, request: Request, n: int) -> None:
        """Note that the next `n` tokens were evaluated, and stay."""
        self._memory.grow(_sequence(request), n)
        request.advance(n)

    def _eval_failed(self, entries: list[_Entry], owner: Request | None, error: BaseException) -> None:
        """End whose fault it was; nothing was evaluated, so the next step tries again for the others."""
        if isinstance(error, ContextFullError) and self.prefixes.evict():
            return
        requests = _sizes(entries)
        stopped = isinstance(error, CancelledError)
        if len(requests) > 1 and not (stopped and owner):
            for request in requests:
                self._eval([entry for entry in entries if entry.request is request])
            return
        if self._halt.cancelled:
            error = closed_error()
        event = Event(reason="cancelled") if isinstance(error, CancelledError) else Event(error=error)
        self._end(owner or entries[0].request, event)

    def _emit(self, request: Request, chosen: list[Choice | Exception]) -> None:
        """Hand tokens to their caller, until the answer ends."""
        for choice in chosen:
            if not request.ended:
                self._emit_one(request, choice)

    def _emit_one(self, request: Request, chosen: Choice | Exception) -> None:
        event = request.event(chosen, self._n_ctx)
        now = self._clock()
        if request.n_tokens == 0:
            request.first_token_s = now - request.submitted
        request.decode_s += now - request.since
        request.since = now
        if isinstance(chosen, Exception) or event.error is not None or event.reason is not None:
            self._end(request, event)
            return
        request.append(chosen.token)
        self._stats.completion_tokens += 1
        request.deliver(event)
        if request.is_ahead:
            request.paused = True  # the caller looks at this after it has taken a token
            request.paused = not request.has_room

    # -- the end of a request

    def _end(self, request: Request, event: Event) -> None:
        """Free all that a request has, then tell its caller."""
        self.queued.discard(request)
        if request in self.running:
            self.running.remove(request)
            self._retire(request)
        else:
            self.waiting.remove(request)
        self._desk.leave(request)
        request.sampler.close()
        if event.error is not None:
            self._stats.failed += 1
        elif event.reason == "cancelled":
            self._stats.cancelled += 1
        else:
            self._stats.finished += 1
            self._stats.completion_tokens += event.n_tokens - request.n_tokens
        request.end()
        request.deliver(event)
        request.tell_end()

    def _retire(self, request: Request) -> None:
        """Leave the sequence of a request to the prefix cache."""
        sequence, request.sequence = _sequence(request), None
        n = request.n_reusable
        if not n or not self.prefixes.limit:
            self._memory.close(sequence)
            return
        if n < request.n_done:
            self._memory.truncate(sequence, n)
        self.prefixes.keep(sequence, request.content)


def _sizes(entries: list[_Entry]) -> dict[Request, int]:
    """Return how many tokens each request has in a batch."""
    sizes: dict[Request, int] = {}
    for request, what, _ in entries:
        sizes[request] = sizes.get(request, 0) + len(what)
    return sizes


def _n_tokens(entries: list[_Entry]) -> int:
    return sum([len(what) for _, what, _ in entries])


def _owner(sizes: dict[Request, int]) -> Request | None:
    """Return the request that has most of a batch, whose end may end the call."""
    first = max(sizes, key=sizes.__getitem__)
    return first if 2 * sizes[first] > sum(sizes.values()) else None


def _sequence(request: Request) -> Sequence:
    assert request.sequence is not None
    return request.sequence
