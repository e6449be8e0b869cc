"""A context, samplers and an encoder without a model: the next token follows from all before it.

So an answer is known beforehand (`answer_to`), and a token that was lost, doubled or taken from another
request shows in everything after it. The context counts its cells as the library does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from llava_native.engine import sequences
from llava_native.engine.request import Choice, Event, Request
from llava_native.engine.scheduler import Scheduler
from llava_native.engine.sequences import Content, ImageSpan
from llava_native.errors import CancelledError, ContextFullError, DecodeError, InvalidInputError

END = 0  # the token that ends an answer


def next_token(content: Iterable[Any]) -> int:
    """Return the token that follows: 0 (the end) once in 32."""
    return zlib.crc32(repr(list(content)).encode()) % 32


def flatten(pieces: Iterable[Any]) -> list[Any]:
    """Return the tokens of a prompt, one entry each."""
    out: list[Any] = []
    for piece in pieces:
        out += piece if isinstance(piece, list) else piece.tokens
    return out


def answer_to(pieces: Iterable[Any], max_tokens: int, n_ctx: int = 10**9) -> tuple[list[int], str]:
    """Return the answer that a request must get, and why it ends."""
    content, out = flatten(pieces), []
    while True:
        token = next_token(content)
        if token == END:
            return out, "eog"
        out.append(token)
        if len(out) == max_tokens or len(content) + 1 >= n_ctx:
            return out, "length"
        content.append(token)


# prompts whose answers are longer than what the tests look at
LONG = [[n] for n in range(200, 400) if len(answer_to([[n]], 40)[0]) >= 30]


class FakeImage:
    """An image of a prompt: `name` is its content, `n` its rows. May fail to be prepared or encoded.

    One that `is_away` must be fetched first.
    """

    def __init__(self, name: str, n: int = 6, fails: str = "", is_away: bool = False) -> None:
        self.name, self.n, self.fails, self.is_away = name, n, fails, is_away
        self.encoder = None

    def __len__(self) -> int:
        return self.n

    @property
    def tokens(self) -> list[Any]:
        """What its rows are in a sequence."""
        return [f"{self.name}[{i}]" for i in range(self.n)]


class Rows(NamedTuple):
    """The rows of an encoded image, or some of them."""

    image: FakeImage
    start: int
    stop: int
    nbytes: int = 100

    @property
    def n_tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def tokens(self) -> list[Any]:
        """What they are in a sequence."""
        return self.image.tokens[self.start : self.stop]

    def __len__(self) -> int:
        return self.n_tokens

    def __getitem__(self, rows: Any) -> Rows:
        start, stop, _ = rows.indices(self.n_tokens)
        return Rows(self.image, self.start + start, self.start + stop)


class FakeEncoding:
    """Prepares and encodes when it is told to: `run` does the oldest job."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.away: dict[str, Callable[[BaseException | None], None]] = {}
        self.encoded: list[str] = []
        self.n_threads: list[int | None] = []  # of each encode
        self.closed = False

    def fetch(self, request: Any, done: Callable[[Any], None]) -> None:
        """Wait for the images that are away, until a test calls what `away` holds under their names."""
        for piece in request.wanted_pieces:
            if getattr(piece, "is_away", False):
                request.n_away += 1
                self.away[piece.name] = lambda error=None: done((request, error))

    def prepare(self, image: Any, done: Callable[[Any], None]) -> None:
        """Name an image by its content."""

        def call() -> None:
            piece = image.piece
            if piece is not None:  # else its request is over
                image.key, image.pixels = piece.name, piece
                if piece.fails == "prepare":
                    image.error = ValueError(f"{piece.name} cannot be read")
            done(image)

        self.jobs.append(call)

    def encode(self, job: Any, done: Callable[[Any], None]) -> None:
        """Make rows."""

        self.n_threads.append(job.n_threads)

        def call() -> None:
            if job.stop.cancelled:
                job.error = CancelledError("cancelled")
            elif job.pixels.fails == "encode":
                job.error = DecodeError(f"{job.key} cannot be encoded")
            else:
                self.encoded.append(job.key)
                job.rows = Rows(job.pixels, 0, job.pixels.n)
            done(job)

        self.jobs.append(call)

    def run(self) -> bool:
        """Do the oldest job; return whether there was one."""
        if not self.jobs:
            return False
        self.jobs.pop(0)()
        return True

    def close(self) -> None:
        """Nothing is left to end."""
        self.closed = True


class FakeContext:
    """Sequences as lists of tokens, and the cells that they share."""

    def __init__(self, n_ctx=64, n_batch=32, n_ubatch=16, n_seq_max=6, can_mix=True) -> None:
        self.can_mix = can_mix
        self.n_ctx = self.n_ctx_seq = n_ctx
        self.n_batch, self.n_ubatch, self.n_seq_max = n_batch, n_ubatch, n_seq_max
        self.sequences: list[list[Any]] = [[] for _ in range(n_seq_max)]
        self._cells: list[list[int]] = [[] for _ in range(n_seq_max)]
        self._rows: dict[int, list[Any]] = {}  # of the last batch: what stands before a row's token
        self.calls: list[list[Any]] = []  # (sequence, n) or (sequence, image, start, stop) of each batch
        self.n_threads = 4
        self.broken: set[Any] = set()  # tokens that make an evaluation fail

    @property
    def used(self) -> int:
        """Cells in use."""
        return len(self._in_use)

    @property
    def span(self) -> int:
        """Cells up to the last one in use."""
        return max(self._in_use, default=-1) + 1

    @property
    def _in_use(self) -> set[int]:
        return {cell for cells in self._cells for cell in cells}

    def _add(self, seq: int, tokens: list[Any]) -> None:
        assert len(self.sequences[seq]) + len(tokens) <= self.n_ctx_seq
        in_use = self._in_use
        free = (cell for cell in range(self.n_ctx) if cell not in in_use)
        self.sequences[seq] += tokens
        self._cells[seq] += [next(free) for _ in tokens]

    def _check(self, n: int, tokens: Iterable[Any]) -> None:
        self._rows = {}
        if self.used + n > self.n_ctx:
            raise ContextFullError("full")
        if self.broken & set(tokens):
            raise DecodeError("broken")

    @property
    def images(self) -> list[tuple[int, str, int, int]]:
        """The slices of images that were evaluated."""
        return [entry for call in self.calls for entry in call if len(entry) == 4]

    def eval_batch(self, entries: Any, *, cancel: Any = None) -> list[int]:
        """Evaluate tokens and image rows of several sequences, all or nothing."""
        lists = [what if isinstance(what, list) else what.tokens for _, what, _ in entries]
        tokens = [token for some in lists for token in some]
        assert 0 < len(tokens) <= self.n_batch
        assert self.can_mix or len({isinstance(what, list) for _, what, _ in entries}) == 1
        if cancel is not None:
            cancel.raise_if_cancelled()
        self._check(len(tokens), tokens)
        self.calls.append(
            [
                (seq, len(what)) if isinstance(what, list) else (seq, what.image.name, what.start, what.stop)
                for seq, what, _ in entries
            ]
        )
        out, row = [], -1
        for (seq, _, n_wanted), some in zip(entries, lists, strict=True):
            assert 0 <= n_wanted <= len(some) > 0
            for left in range(len(some), 0, -1):
                self._add(seq, [some[-left]])
                row += 1
                if left <= n_wanted:
                    self._rows[row] = list(self.sequences[seq])
                    out.append(row)
        return out

    def content_of_row(self, row: int) -> list[Any]:
        """Return what stands before the token that a row chooses."""
        return self._rows[row]

    def set_n_threads(self, n: int) -> None:
        """Remember it."""
        self.n_threads = n

    def truncate_sequence(self, seq: int, n: int) -> None:
        """Cut a sequence; the logits are gone."""
        assert n <= len(self.sequences[seq])
        del self.sequences[seq][n:], self._cells[seq][n:]
        self._rows = {}

    def copy_sequence(self, src: int, dst: int, n: int) -> None:
        """Share cells."""
        assert src != dst
        assert n <= len(self.sequences[src])
        self.sequences[dst], self._cells[dst] = self.sequences[src][:n], self._cells[src][:n]


def fill(context: FakeContext, memory: sequences.Memory, sequence: sequences.Sequence, n: int) -> None:
    """Evaluate `n` tokens in a sequence."""
    context.eval_batch([(sequence.id, list(range(n)), False)])
    memory.grow(sequence, n)


def fake_states(monkeypatch: Any) -> None:
    """Let `Memory` copy the states of fake contexts."""

    def get_state(context: FakeContext, seq: int) -> bytes:
        assert context.sequences[seq]
        return json.dumps(context.sequences[seq]).encode()

    def set_state(context: FakeContext, state: bytes, n: int, seq: int) -> None:
        tokens = json.loads(state)
        assert len(tokens) == n
        assert not context.sequences[seq]
        if context.used + n > context.n_ctx:
            raise InvalidInputError("no room")
        context._add(seq, tokens)

    monkeypatch.setattr(sequences, "get_state", get_state)
    monkeypatch.setattr(sequences, "set_state", set_state)


class FakeSampler:
    """Chooses what `next_token` says."""

    def __init__(self) -> None:
        self.closed = False
        self.error: Exception | None = None

    def sample(self, context: FakeContext, row: int) -> int:
        """Return the token after a row."""
        assert not self.closed
        if self.error is not None:
            raise self.error
        return next_token(context.content_of_row(row))

    def close(self) -> None:
        """May be called again."""
        self.closed = True


class Writer:
    """Counts, and ends an answer at token 0 or where there is no room."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, chosen: Choice, last: bool) -> Event:
        """Return what the caller sees."""
        token = chosen.token
        if token == END:
            return Event(None, "eog", self.n)
        self.n += 1
        return Event(token, "length" if last else None, self.n)


class Oracle:
    """Takes the place of `Lookup`: guesses what will be chosen, and every third token wrong."""

    def __init__(self, content: Content, limit: int) -> None:
        self._content: list[Any] = []
        self._limit = limit
        self.learnt: list[tuple[int, int]] = []
        for segment in content:
            if isinstance(segment, ImageSpan):
                self.extend(f"{segment.key}[{i}]" for i in range(segment.n_tokens))
            else:
                self.extend(segment)

    def extend(self, tokens: Iterable[Any]) -> None:
        """Note what comes next."""
        self._content += tokens

    def guess(self, room: int) -> list[int]:
        """Return what comes next, with errors."""
        content, out = list(self._content), []
        while len(out) < min(room, self._limit):
            token = next_token(content)
            if token == END:
                break
            out.append(token if len(content) % 3 else token % 31 + 1)
            content.append(token)
        return out

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Remember it."""
        self.learnt.append((n_guessed, n_right))


class Desk:
    """A scheduler on fakes, and what its callers got."""

    def __init__(self, n_running=3, prefix_cells=24, embedding_bytes=1000, n_guessed=0, **shape: int) -> None:
        self.context = FakeContext(**shape)
        self.encoding = FakeEncoding()
        self.scheduler = Scheduler(
            self.context,  # type: ignore[arg-type]
            self.encoding,  # type: ignore[arg-type]
            n_running=n_running,
            prefix_cells=prefix_cells,
            embedding_bytes=embedding_bytes,
            lookup=partial(Oracle, limit=n_guessed) if n_guessed else None,  # type: ignore[arg-type]
            clock=lambda: 0.0,
        )
        self.n_guessed = n_guessed
        self.got: dict[Request, list[Event]] = {}

    def ask(self, *pieces: Any, max_tokens: int | None = 8, **options: Any) -> Request:
        """Submit a request."""
        request = Request(pieces, FakeSampler(), Writer(), max_tokens=max_tokens, **options)  # type: ignore[arg-type]
        self.got[request] = []
        self.scheduler.submit(request)
        return request

    def take(self, request: Request) -> None:
        """Take everything that waits for a caller."""
        while not request.events.empty():
            self.got[request].append(request.events.get())

    def answer(self, request: Request) -> tuple[list[Any], str | None]:
        """Return the tokens that a caller got, and the reason of the end."""
        self.take(request)
        events = self.got[request]
        return [e.item for e in events if e.item is not None], events[-1].reason if events else None

    def finish(self, limit: int = 2000) -> None:
        """Go on until nobody is left."""
        for _ in range(limit):
            for request in self.got:
                self.take(request)
            if self.scheduler.idle:
                return
            if not self.scheduler.step():
                self.encoding.run()
        raise AssertionError(
            f"not done after {limit} steps: {self.scheduler.running, self.scheduler.waiting}"
        )

    def check(self) -> None:
        """Compare the scheduler's books with the context's."""
        assert self.scheduler.stats().cells == self.context.used
        assert self.context.span <= self.scheduler._memory.span + self.n_guessed * self.context.n_seq_max
        for request in self.scheduler.running:
            assert request.sequence is not None
            held = self.context.sequences[request.sequence.id]
            assert len(held) == request.n_done == request.sequence.n_tokens

    def close(self) -> None:
        """End everything; no cell and no sequence may be left."""
        self.scheduler.close()
        assert self.context.used == 0
        assert not any(self.context.sequences)
        assert all(request.sampler.closed for request in self.got)


def expect(desk: Desk, request: Request, *pieces: Any, max_tokens: int = 8) -> None:
    """Compare what a caller got with the whole answer to its prompt."""
    assert desk.answer(request) == answer_to(pieces, max_tokens, desk.context.n_ctx_seq)
