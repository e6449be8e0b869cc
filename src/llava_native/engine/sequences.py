"""What the sequences of a context hold: contents that can be compared, and the cells that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from llava_native._state import get_state, set_state
from llava_native.errors import NativeAbort

if TYPE_CHECKING:
    from llava_native._context import Context

__all__ = ["Content", "ImageSpan", "Memory", "Run", "Sequence", "State", "common_prefix", "head", "length"]


class ImageSpan(NamedTuple):
    """The rows of an image: what they were made of, by hash, and how many there are."""

    key: str
    n_tokens: int

    def __len__(self) -> int:
        return self.n_tokens


Segment: TypeAlias = "list[int] | ImageSpan"
Content: TypeAlias = "list[Segment]"  # no two lists of token ids in a row
State: TypeAlias = "bytes | bytearray | memoryview"  # keys and values of a content


def length(content: Content) -> int:
    """Return how many tokens a content has."""
    return sum(map(len, content))


def head(content: Content, n: int) -> Content:
    """Return the first `n` tokens of a content."""
    out: Content = []
    for segment in content:
        if n <= 0:
            break
        if len(segment) <= n:
            out.append(segment if isinstance(segment, ImageSpan) else segment[:])
        else:
            out.append(ImageSpan(segment.key, n) if isinstance(segment, ImageSpan) else segment[:n])
        n -= len(segment)
    return out


def common_prefix(a: Content, b: Content) -> int:
    """Return how many tokens two contents have in common from their start."""
    total = 0
    for one, other in zip(a, b, strict=False):
        n = _common(one, other)
        total += n
        if not n == len(one) == len(other):
            break
    return total


def _common(one: Segment, other: Segment) -> int:
    n = min(len(one), len(other))
    if isinstance(one, ImageSpan) or isinstance(other, ImageSpan):
        same = isinstance(one, ImageSpan) and isinstance(other, ImageSpan) and one.key == other.key
        return n if same else 0
    if one[:n] == other[:n]:
        return n
    return next(i for i in range(n) if one[i] != other[i])


class Run:
    """Cells in a row; each sequence that shares them uses the first so many."""

    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n


class Sequence:
    """One sequence of the context.

    Attributes
    ----------
    id : int
    content : list
        What it holds, as of when it was last kept; a running request knows better.
    runs : list of [Run, int]
        Its cells: the first so many of each run.
    """

    __slots__ = ("content", "id", "runs")

    def __init__(self, number: int) -> None:
        self.id = number
        self.content: Content = []
        self.runs: list[tuple[Run, int]] = []

    @property
    def n_tokens(self) -> int:
        """Cells that it uses."""
        return sum(n for _, n in self.runs)


def cells(sequences: Iterable[Sequence]) -> int:
    """Return how many cells these sequences use together; shared ones count once."""
    used: dict[Run, int] = {}
    for sequence in sequences:
        for run, n in sequence.runs:
            if n > used.get(run, 0):
                used[run] = n
    return sum(used.values())


class Memory:
    """The sequences of a context and the cells that they use. Belongs to one thread.

    Parameters
    ----------
    context : Context
        Of several sequences; nobody else may change them.

    Attributes
    ----------
    live : dict of int to Sequence
    used : int
        Cells in use.
    span : int
        Cells up to the last one in use, at most, but for guesses that were wrong. The library fills the
        first free cells, and every token looks at all up to the last one in use.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._free = list(range(context.n_seq_max - 1, -1, -1))
        self.live: dict[int, Sequence] = {}
        self.used = self.span = 0
        self.n_cells = context.n_ctx

    @property
    def free(self) -> int:
        """Cells that are not in use."""
        return self.n_cells - self.used

    @property
    def n_sequences(self) -> int:
        """How often ``open`` can be called."""
        return len(self._free)

    @property
    def has_sequence(self) -> bool:
        """Whether ``open`` can be called."""
        return self.n_sequences > 0

    def open(self, source: Sequence | None = None, n: int = 0) -> Sequence:
        """Return a sequence that shares the first `n` cells of `source`."""
        sequence = Sequence(self._free[-1])
        if source is not None and n:
            self._context.copy_sequence(source.id, sequence.id, n)
            for run, used in source.runs:
                if n <= 0:
                    break
                sequence.runs.append((run, min(used, n)))
                n -= used
        self._free.pop()
        self.live[sequence.id] = sequence
        return sequence

    def state(self, sequence: Sequence, n: int) -> bytes:
        """Copy the first `n` tokens of a sequence."""
        if n == sequence.n_tokens:
            return get_state(self._context, sequence.id)
        beginning = self.open(sequence, n)
        try:
            return get_state(self._context, beginning.id)
        finally:
            self.close(beginning)

    def restore(self, state: State, n: int) -> Sequence:
        """Return a new sequence that holds a state of `n` tokens."""
        sequence = self.open()
        try:
            set_state(self._context, state, n, sequence.id)
        except BaseException:
            self.close(sequence)
            raise
        self.grow(sequence, n)
        return sequence

    def grow(self, sequence: Sequence, n: int) -> None:
        """Note `n` more cells at the end of a sequence; they were evaluated."""
        self.used += n
        self.span = max(self.span, self.used)
        if sequence.runs:
            run, used = sequence.runs[-1]
            if used == run.n:  # else another sequence went on from here
                run.n += n
                sequence.runs[-1] = (run, used + n)
                return
        sequence.runs.append((Run(n), n))

    def truncate(self, sequence: Sequence, n: int) -> None:
        """Keep the first `n` tokens of a sequence."""
        self._cut(sequence, n)
        runs = []
        for run, used in sequence.runs:
            if n <= 0:
                break
            runs.append((run, min(used, n)))
            n -= used
        sequence.runs = runs
        self._count()

    def close(self, sequence: Sequence) -> None:
        """Free a sequence; cells that another one shares stay."""
        self._cut(sequence, 0)
        del self.live[sequence.id]
        self._free.append(sequence.id)
        self._count()

    def _count(self) -> None:
        self.used = cells(self.live.values())
        if not self.used:
            self.span = 0

    def _cut(self, sequence: Sequence, n: int) -> None:
        with contextlib.suppress(NativeAbort):  # that context takes nothing any more, but requests must end
            self._context.truncate_sequence(sequence.id, n)
