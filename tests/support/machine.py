"""Calls of the binding in any order from two threads, held against a plain account of what each object holds.

``python -m support.machine COUNT FOLDER`` in ``tests/`` plays so many programs of hypothesis's in this
process, the same ones each time; one that fails is made short and printed.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

from llava_native import Context, ImageEmbedding, ImageEncoder, Model, Sampler, SamplingParams
from llava_native._state import get_state, set_state
from llava_native.errors import BusyError, ClosedError, ContextFullError, InUseError, InvalidInputError

from . import damage
from .fuzz_cases import check_nothing_left

LIMIT_S = 10  # longest that one step may take
COLOURS = ("red", "green", "blue")
Row: TypeAlias = tuple[str, int]  # of a picture: its colour, which of its rows
History: TypeAlias = tuple[int | Row, ...]

WHICH = st.integers(0, 7)
SEQ = st.sampled_from((0, 0, 1, 1, 2, 3, -1))
TOKENS = st.lists(st.sampled_from((1, 5, 9, 42, 259, 299, 299, 300, -1)), max_size=6)
CUT = st.integers(-1, 12)


class Oracle:
    """What must come out: everything evaluated anew, one sequence in a context of its own."""

    def __init__(self, folder: Path) -> None:
        self.text = damage.good_text(folder / "good.gguf")
        self.mmproj = damage.good_mmproj(folder / "mmproj.gguf")
        self.model = Model(self.text)
        self.context = Context(self.model, n_ctx=64, n_threads=1)
        with ImageEncoder(self.mmproj, n_threads=1) as encoder:
            self.rows = {colour: encode(encoder, colour) for colour in COLOURS}
        self.known: dict[History, np.ndarray] = {}
        self.context.eval([1, 5])
        self.state = get_state(self.context), (1, 5)

    def logits(self, history: History) -> np.ndarray:
        """Return the logits after a history."""
        if history not in self.known:
            self.context.clear()
            for is_row, part in itertools.groupby(history, lambda one: isinstance(one, tuple)):
                given: Any = list(part)
                if is_row:
                    given = ImageEmbedding.from_buffer(
                        np.stack([np.asarray(self.rows[c])[i] for c, i in given])
                    )
                self.context.eval(given)
            self.known[history] = np.array(self.context.logits)
        return self.known[history]

    def close(self) -> None:
        """Free what it used."""
        self.context.close()
        self.model.close()


def encode(encoder: ImageEncoder, colour: str) -> ImageEmbedding:
    """Return the rows of a picture of one colour."""
    return encoder.encode(Image.new("RGB", (20, 10), colour))


@dataclasses.dataclass
class Held:
    """A context, its model, and what each of its sequences holds."""

    context: Context
    model: Model
    sequences: list[History]

    def full(self, seq: int, n: int) -> tuple[bool, bool]:
        """Tell whether `n` more tokens cannot fit, and whether they surely do (copies share cells)."""
        cannot = len(self.sequences[seq]) + n > self.context.n_ctx_seq
        return cannot, sum(map(len, self.sequences)) + n <= self.context.n_ctx

    def has(self, seq: int) -> bool:
        """Tell whether there is such a sequence."""
        return 0 <= seq < len(self.sequences)


class Machine(RuleBasedStateMachine):
    """Up to three models, four contexts and two encoders."""

    oracle: Oracle

    def __init__(self) -> None:
        super().__init__()
        self.pools = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        self.turns = itertools.cycle(self.pools)
        self.models: list[Model] = []
        self.held: list[Held] = []
        self.encoders: list[ImageEncoder] = []
        self.closed: list[Context] = []
        self.states: list[tuple[bytes, History]] = [self.oracle.state]

    # -- how calls are made

    def run(self, call: Callable[[], Any]) -> Any:
        """Make a call in one of two threads, in turns."""
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        return next(self.turns).submit(call).result()

    def attempt(self, call: Callable[[], Any], *must: type[Exception], may: tuple[Any, ...] = ()) -> bool:
        """Make a call that must fail so, or may; tell whether it went through."""
        try:
            self.run(call)
        except (*must, *may):
            return False
        assert not must, f"should have been refused with {must}"
        return True

    def pick(self, which: int) -> Held:
        """Choose a context."""
        return self.held[which % len(self.held)]

    def expect(self, held: Held, seq: int) -> None:
        """Compare the logits of the last evaluation with what they must be."""
        wanted = self.oracle.logits(held.sequences[seq])
        np.testing.assert_allclose(np.asarray(held.context.logits), wanted, atol=5e-3)

    def evaluate(self, held: Held, seq: int, given: Any, what: History) -> None:
        """Add tokens or rows to a sequence, or see them refused for the right reason."""
        call = partial(held.context.eval, given, seq=seq)
        is_sound = all(isinstance(one, tuple) or 0 <= one < 300 for one in what)
        if not held.has(seq) or not what or not is_sound:
            self.attempt(call, InvalidInputError)
            return
        cannot, fits = held.full(seq, len(what))
        must = (ContextFullError,) if cannot else ()
        if self.attempt(call, *must, may=() if fits else (ContextFullError,)):
            held.sequences[seq] += what
            self.expect(held, seq)

    # -- making and closing

    @initialize()
    def begin(self) -> None:
        self.load()
        self.make_context(0, 64, 3)
        self.make_encoder()

    @precondition(lambda self: len(self.models) < 3)
    @rule()
    def load(self) -> None:
        self.models.append(self.run(lambda: Model(self.oracle.text)))

    @precondition(lambda self: self.models and len(self.held) < 4)
    @rule(which=WHICH, n_ctx=st.sampled_from((8, 16, 64)), n_seq_max=st.integers(1, 3))
    def make_context(self, which: int, n_ctx: int, n_seq_max: int) -> None:
        model = self.models[which % len(self.models)]
        context = self.run(lambda: Context(model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_threads=1))
        self.held.append(Held(context, model, [()] * n_seq_max))

    @precondition(lambda self: len(self.encoders) < 2)
    @rule()
    def make_encoder(self) -> None:
        self.encoders.append(self.run(lambda: ImageEncoder(self.oracle.mmproj, n_threads=1)))

    @precondition(lambda self: self.models)
    @rule(which=WHICH)
    def close_model(self, which: int) -> None:
        model = self.models[which % len(self.models)]
        is_needed = any(held.model is model for held in self.held)
        if self.attempt(model.close, *((InUseError,) if is_needed else ())):
            self.models.remove(model)

    @precondition(lambda self: len(self.held) > 1)
    @rule(which=WHICH, looks=st.booleans())
    def close_context(self, which: int, looks: bool) -> None:
        held = self.pick(which)
        if looks and any(held.sequences):
            held.context.clear()
            held.context.eval([1])
            held.sequences = [(1,), *[()] * (len(held.sequences) - 1)]
            view = memoryview(held.context.logits)
            self.attempt(held.context.close, BufferError)
            view.release()
        self.run(held.context.close)
        self.held.remove(held)
        self.closed.append(held.context)

    @precondition(lambda self: len(self.encoders) > 1)
    @rule(which=WHICH)
    def close_encoder(self, which: int) -> None:
        encoder = self.encoders.pop(which % len(self.encoders))
        self.run(encoder.close)
        self.attempt(lambda: encode(encoder, "red"), ClosedError)

    @precondition(lambda self: self.closed)
    @rule(which=WHICH)
    def use_closed(self, which: int) -> None:
        context = self.closed[which % len(self.closed)]
        context.close()
        for call in (context.clear, lambda: context.eval([1]), lambda: context.copy_sequence(0, 1)):
            self.attempt(call, ClosedError)

    # -- using

    @precondition(lambda self: self.encoders)
    @rule(which=WHICH, colour=st.sampled_from(COLOURS))
    def encode(self, which: int, colour: str) -> None:
        encoder = self.encoders[which % len(self.encoders)]
        rows = self.run(lambda: encode(encoder, colour))
        np.testing.assert_array_equal(np.asarray(rows), np.asarray(self.oracle.rows[colour]))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=SEQ, tokens=TOKENS)
    def eval_tokens(self, which: int, seq: int, tokens: list[int]) -> None:
        self.evaluate(self.pick(which), seq, tokens, tuple(tokens))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=SEQ, colour=st.sampled_from(COLOURS))
    def eval_rows(self, which: int, seq: int, colour: str) -> None:
        rows = self.oracle.rows[colour]
        what = tuple((colour, i) for i in range(rows.n_tokens))
        self.evaluate(self.pick(which), seq, rows, what)

    @precondition(lambda self: self.held)
    @rule(
        which=WHICH,
        one=st.lists(st.integers(0, 299), max_size=2),
        two=st.lists(st.integers(0, 299), max_size=2),
    )
    def eval_batch(self, which: int, one: list[int], two: list[int]) -> None:
        held = self.pick(which)
        entries = [(seq, tokens, True) for seq, tokens in enumerate((one, two)) if tokens]
        call = partial(held.context.eval_batch, entries)
        if not entries or not all(held.has(seq) for seq, *_ in entries):
            self.attempt(call, InvalidInputError)
            return
        cannot = any(held.full(seq, len(tokens))[0] for seq, tokens, _ in entries)
        fits = held.full(0, len(one) + len(two))[1]
        if self.attempt(call, *([ContextFullError] * cannot), may=() if fits else (ContextFullError,)):
            for seq, tokens, _ in entries:
                held.sequences[seq] += tuple(tokens)
            self.expect(held, entries[-1][0])

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=SEQ, n=CUT)
    def truncate(self, which: int, seq: int, n: int) -> None:
        held = self.pick(which)
        is_right = held.has(seq) and 0 <= n <= len(held.sequences[seq])
        call = partial(held.context.truncate_sequence, seq, n)
        if self.attempt(call, *([InvalidInputError] * (not is_right))):
            held.sequences[seq] = held.sequences[seq][:n]

    @precondition(lambda self: self.held)
    @rule(which=WHICH, src=SEQ, dst=SEQ, n=st.one_of(st.none(), CUT))
    def copy(self, which: int, src: int, dst: int, n: int | None) -> None:
        held = self.pick(which)
        is_right = held.has(src) and held.has(dst) and src != dst
        is_right = is_right and (n is None or 0 <= n <= len(held.sequences[src]))
        call = partial(held.context.copy_sequence, src, dst, n)
        if self.attempt(call, *([InvalidInputError] * (not is_right))):
            held.sequences[dst] = held.sequences[src][:n]

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def clear(self, which: int) -> None:
        held = self.pick(which)
        self.run(held.context.clear)
        held.sequences = [()] * len(held.sequences)

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=SEQ)
    def save(self, which: int, seq: int) -> None:
        held = self.pick(which)
        if not held.has(seq) or not held.sequences[seq]:
            self.attempt(lambda: get_state(held.context, seq), InvalidInputError)
        else:
            state = self.run(lambda: get_state(held.context, seq))
            self.states.append((state, held.sequences[seq]))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=SEQ, saved=WHICH, more=st.integers(-1, 4))
    def restore(self, which: int, seq: int, saved: int, more: int) -> None:
        held, (state, what) = self.pick(which), self.states[saved % len(self.states)]
        n = len(what) + max(more, 0) // 4  # now and then a wrong number
        call = partial(set_state, held.context, state, n, seq)
        if not held.has(seq) or held.sequences[seq] or n != len(what):
            self.attempt(call, InvalidInputError)
            return
        cannot, fits = held.full(seq, n)
        must = (ContextFullError,) if cannot else ()
        if self.attempt(call, *must, may=() if fits else (InvalidInputError, ContextFullError)):
            held.sequences[seq] = what

    @precondition(lambda self: self.held)
    @rule(which=WHICH, seq=st.integers(0, 2))
    def sample(self, which: int, seq: int) -> None:
        held = self.pick(which)
        if held.has(seq) and held.full(seq, 1) == (False, True):
            self.run(lambda: held.context.eval([9], seq=seq))
            held.sequences[seq] += (9,)
            with Sampler(held.model, SamplingParams(temperature=0)) as sampler:
                token = self.run(lambda: sampler.sample(held.context))
            logits = np.asarray(held.context.logits)
            assert logits[token] == logits.max()

    @precondition(lambda self: self.held)
    @rule(which=WHICH, other=WHICH, seqs=st.permutations((0, 1, 2)), tokens=TOKENS.filter(bool))
    def race(self, which: int, other: int, seqs: list[int], tokens: list[int]) -> None:
        """Evaluate in two threads at once, in one context or in two."""
        tokens = [abs(token) % 300 for token in tokens]
        calls = [(self.pick(which), seqs[0]), (self.pick(other), seqs[1])]
        calls = [(held, seq) for held, seq in calls if held.has(seq)]
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        running = [
            pool.submit(held.context.eval, tokens, seq=seq)
            for pool, (held, seq) in zip(self.pools, calls, strict=False)
        ]
        is_shared = len({id(held) for held, _ in calls}) < len(calls)
        for done, (held, seq) in zip(running, calls, strict=True):
            error = done.exception()
            if error is None:
                held.sequences[seq] += tuple(tokens)
            else:
                assert isinstance(error, ContextFullError | (BusyError if is_shared else ContextFullError))

    # -- what is always so

    @invariant()
    def every_sequence_is_as_long_as_it_should_be(self) -> None:
        for held in self.held:
            lengths = [held.context.n_past(seq) for seq in range(len(held.sequences))]
            assert lengths == [len(what) for what in held.sequences]

    def teardown(self) -> None:
        for held in self.held:
            held.context.close()
        for thing in (*self.encoders, *self.models):
            thing.close()
        for pool in self.pools:
            pool.shutdown()
        faulthandler.cancel_dump_traceback_later()


def main() -> None:
    """Be the child process."""
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    Machine.oracle = Oracle(folder)
    settings = hypothesis.settings(
        max_examples=count, stateful_step_count=40, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Machine, settings=settings)
    Machine.oracle.close()
    del Machine.oracle
    check_nothing_left()


if __name__ == "__main__":
    main()
