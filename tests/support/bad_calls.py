"""Calls that should never be made: numbers out of range, the wrong order, the wrong thread."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from llava_native import (
    CancelToken,
    Context,
    ImageEmbedding,
    ImageEncoder,
    Llava,
    Model,
    Sampler,
)
from llava_native.errors import (
    BusyError,
    CancelledError,
    ClosedError,
    ContextFullError,
    InUseError,
    InvalidInputError,
    ModelFormatError,
    TimeoutExpiredError,
)

from .gauntlet import Case, Scene

CASES: list[Case] = []
Error = type[BaseException] | None
ROWS = np.zeros((3, 64), np.float32)
PIXELS = np.zeros((28, 28, 3), np.uint8)


def _case(name: str, run: Callable[[Scene], Any], raises: Error, says: str = "") -> None:
    CASES.append(Case(name, run, raises, says))


# -- contexts


def _context(raises: Error, says: str = "", **options: Any) -> None:
    def run(scene: Scene) -> None:
        scene.context(**options).eval([5, 6, 7])

    _case(f"context: {options}", run, raises, says)


for _name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads"):
    for _value in (-1, -(2**40), 2**31, 10**12):
        # a batch is never larger than the context
        _context(None if _name == "n_batch" and _value > 0 else InvalidInputError, _name, **{_name: _value})
    _context(InvalidInputError if _name == "n_threads" else OverflowError, **{_name: 10**30})
    _context(TypeError, **{_name: "4"})
    _context(InvalidInputError if _name != "n_ctx" else None, **{_name: 0})  # n_ctx=0: as trained
_context(InvalidInputError, "n_ctx", n_ctx=7)
_context(InvalidInputError, "n_seq_max", n_ctx=512, n_seq_max=257)
_context(InvalidInputError, "n_seq_max", n_batch=8, n_seq_max=9)
_context(None, n_ctx=512, n_seq_max=256)
_context(InvalidInputError, "GiB", n_ctx=2**31 - 1)
_context(InvalidInputError, "n_threads", n_threads=513)
_context(InvalidInputError, "type_k", type_k="q3")
_context(InvalidInputError, "16 wide", type_k="q8_0")
_context(InvalidInputError, "16 wide", type_v="q8_0")
_context(InvalidInputError, "flash_attn", flash_attn="yes")
_context(TypeError, n_cxt=64)
_case("context: of a vocabulary", lambda s: Context(s.load(vocab_only=True)), InvalidInputError, "vocab_only")
_case("context: of None", lambda _: Context(None), TypeError)
_case("context: of a path", lambda s: Context(s.text_path), TypeError)
_case("context: of a model never loaded", lambda _: Context(Model.__new__(Model)), ClosedError)


# -- tokens, sequences


def _eval(name: str, tokens: Any, raises: Error, says: str = "", **options: Any) -> None:
    _case(f"eval: {name}", lambda s: s.ctx.eval(tokens, **options), raises, says)


for _token in (-1, 300, 2**31, 2**40, -(2**40)):
    _eval(f"token {_token}", [1, _token], InvalidInputError, str(_token))
    _case(
        f"accept: token {_token}", lambda s, t=_token: s.sampler().accept(t), InvalidInputError, str(_token)
    )
    _case(
        f"bytes of token {_token}", lambda s, t=_token: s.model.token_bytes(t), InvalidInputError, str(_token)
    )
    _case(
        f"detokenize: {_token}", lambda s, t=_token: s.model.detokenize([t]), InvalidInputError, str(_token)
    )
    _case(f"is_eog: {_token}", lambda s, t=_token: s.model.is_eog(t), InvalidInputError, str(_token))
    _case(
        f"bias of {_token}",
        lambda s, t=_token: s.sampler(logit_bias={t: 1.0}),
        InvalidInputError,
        str(_token),
    )
for _seq in (-1, 2, 255, 256, 2**31, 2**40, -(2**40)):
    _eval(f"sequence {_seq}", [1], InvalidInputError, str(_seq), seq=_seq)
    _case(f"n_past of {_seq}", lambda s, q=_seq: s.ctx.n_past(q), InvalidInputError, str(_seq))
    _case(f"truncate {_seq}", lambda s, q=_seq: s.ctx.truncate_sequence(q, 0), InvalidInputError, str(_seq))
    _case(f"copy from {_seq}", lambda s, q=_seq: s.ctx.copy_sequence(q, 0), InvalidInputError, str(_seq))
    _case(f"copy to {_seq}", lambda s, q=_seq: s.ctx.copy_sequence(0, q), InvalidInputError, str(_seq))
_eval("token 2**70", [2**70], InvalidInputError)
_eval("a float", [1.5], TypeError)
_eval("a string", "Hello", TypeError)
_eval("None", None, TypeError)
_eval("a number", 7, TypeError)
_eval("nothing", [], InvalidInputError, "nothing")
_eval("one too many", [1] * 257, ContextFullError, "257")
_eval("without end", itertools.repeat(1), ContextFullError)
_eval(
    "rows one too many", ImageEmbedding.from_buffer(np.zeros((257, 64), np.float32)), ContextFullError, "257"
)
_eval("rows never made", ImageEmbedding.__new__(ImageEmbedding), ClosedError)
_eval("an expired token", [1], TimeoutExpiredError, cancel=CancelToken(0))
_eval("cancel is no CancelToken", [1], TypeError, cancel=True)


def _with(name: str, run: Callable[[Context], Any], raises: Error, says: str = "") -> None:
    """A case on a context whose sequence 0 holds three tokens."""

    def filled(scene: Scene) -> None:
        scene.ctx.eval([1, 2, 3])
        run(scene.ctx)
        scene.ctx.eval([4])  # still usable

    _case(f"sequences: {name}", filled, raises, says)


for _n in (-1, 4, 2**31, 2**40):
    _with(f"truncate to {_n}", lambda c, n=_n: c.truncate_sequence(0, n), InvalidInputError, str(_n))
    _with(f"copy {_n}", lambda c, n=_n: c.copy_sequence(0, 1, n), InvalidInputError, str(_n))
_with("copy onto itself", lambda c: c.copy_sequence(0, 0), InvalidInputError, "itself")
_with("copy an empty one", lambda c: c.copy_sequence(1, 0), None)
_with("copy a part, and again", lambda c: (c.copy_sequence(0, 1, 2), c.copy_sequence(1, 0)), None)
_with("copy n as float", lambda c: c.copy_sequence(0, 1, 1.5), TypeError)
_with("logits after clear", lambda c: (c.clear(), c.logits), InvalidInputError, "no logits")
_with(
    "logits after truncate", lambda c: (c.truncate_sequence(0, 1), c.logits), InvalidInputError, "no logits"
)
_with("write into logits", lambda c: memoryview(c.logits).__setitem__(0, 1.0), TypeError)
_with("close under a view", lambda c: (memoryview(c.logits), c.close()), BufferError, "views")
_with("full, then cleared", lambda c: (c.eval([1] * (c.n_ctx - 3)), c.clear()), None)
_with("full of two sequences", lambda c: [c.eval([1] * 100, seq=i % 2) for i in range(4)], ContextFullError)


def _reentrant(change: Callable[[Context], Any]) -> Callable[[Scene], Any]:
    def run(scene: Scene) -> None:
        def tokens() -> Any:
            yield 1
            change(scene.ctx)
            yield 2

        scene.ctx.eval(tokens())

    return run


_case("eval: tokens that close the context", _reentrant(lambda c: c.close()), ClosedError)
_case("eval: tokens that evaluate", _reentrant(lambda c: c.eval([7] * 250)), None)
_case("eval: tokens that raise", _reentrant(lambda _: 1 // 0), ZeroDivisionError)
_case("logits: before anything", lambda s: s.ctx.logits, InvalidInputError, "no logits")
_case("sample: before anything", lambda s: s.sampler().sample(s.ctx), InvalidInputError, "no logits")


def _foreign_sampler(scene: Scene) -> None:
    scene.ctx.eval([1])
    scene.keep(Sampler(scene.load())).sample(scene.ctx)


_case("sample: of another model", _foreign_sampler, InvalidInputError, "different models")


# -- loading


def _override(raises: Error, overrides: Any, says: str = "") -> None:
    _case(f"overrides: {str(overrides)[:60]}", lambda s: s.load(kv_overrides=overrides), raises, says)


_override(InvalidInputError, {"k" * 128: 1}, "127")
_override(InvalidInputError, {"tokenizer.ggml.pre": "x" * 128}, "127")
_override(ModelFormatError, {"llama.block_count": 0})
_override(ModelFormatError, {"llama.block_count": 10**6})
_override(ModelFormatError, {"llama.block_count": -1})
_override(ModelFormatError, {"llama.block_count": 2**63 - 1})
_override(ModelFormatError, {"llama.rope.scaling.type": "bogus"})
_override(ModelFormatError, {"llama.attention.head_count": 0})
_override(ModelFormatError, {"llama.embedding_length": 63})
_override(InvalidInputError, {"llama.block_count": 2**64})
_override(InvalidInputError, {"": 1})
_override(InvalidInputError, {"a\0b": 1})
_override(InvalidInputError, {"general.name": "a\0b"})
_override(InvalidInputError, {"general.name": None})
_override(InvalidInputError, {"general.name": "\ud800"})
_override(InvalidInputError, {1: 2})
_override(InvalidInputError, {"tokenizer.ggml.tokens": "x"})
_override(InvalidInputError, {"llama.block_count": "two"})
_override(InvalidInputError, {"llama.block_count": 2.0})
_override(InvalidInputError, {"llama.rope.freq_base": 10000}, "f32")
_override(TypeError, 5)
_case("load: n_gpu_layers 2**40", lambda s: s.load(n_gpu_layers=2**40), InvalidInputError, "n_gpu_layers")
_case("load: n_gpu_layers -7", lambda s: s.load(n_gpu_layers=-7), None)
_case("load: main_gpu 99", lambda s: s.load(main_gpu=99), None)
_case("load: main_gpu -99", lambda s: s.load(main_gpu=-99), None)
_case("load: twice", lambda s: s.model.__init__(s.text_path), InUseError)
_case("load: encoder twice", lambda s: s.encoder.__init__(s.mmproj_path), InUseError)
_case("load: context twice", lambda s: s.ctx.__init__(s.model), InUseError)
_case("load: sampler twice", lambda s: s.sampler().__init__(s.model), InUseError)
_case("load: progress is no function", lambda s: s.load(progress=5), TypeError)
_case("load: progress raises", lambda s: s.load(progress=lambda _: 1 // 0), ZeroDivisionError)
_case("load: progress says no", lambda s: s.load(progress=lambda _: False), CancelledError)
_case("load: expired", lambda s: s.load(cancel=CancelToken(0)), TimeoutExpiredError)
_case(
    "encoder: progress raises",
    lambda s: ImageEncoder(s.mmproj_path, progress=lambda _: 1 // 0),
    ZeroDivisionError,
)
_case(
    "encoder: no such device",
    lambda s: ImageEncoder(s.mmproj_path, device="CUDA99"),
    InvalidInputError,
    "CUDA99",
)
_case("encoder: device with NUL", lambda s: ImageEncoder(s.mmproj_path, device="C\0"), InvalidInputError)
_case("encoder: dtype", lambda s: ImageEncoder(s.mmproj_path, dtype="q4"), InvalidInputError, "dtype")
for _n in (0, -1, 513, 10**12):
    _case(
        f"encoder: n_threads {_n}",
        lambda s, n=_n: ImageEncoder(s.mmproj_path, n_threads=n),
        InvalidInputError,
    )
for _n in (math.nan, -1, "x"):
    _kind = TypeError if _n == "x" else InvalidInputError
    _case(f"cancel: timeout {_n}", lambda _, n=_n: CancelToken(n), _kind)
_case("cancel: timeout without end", lambda s: s.ctx.eval([1], cancel=CancelToken(math.inf)), None)


# -- closed, never made, in the wrong hands


def _closed(name: str, make: Callable[[Scene], Any], use: Callable[[Any], Any]) -> None:
    def run(scene: Scene) -> None:
        thing = make(scene)
        thing.close()
        thing.close()
        use(thing)

    _case(f"closed: {name}", run, ClosedError, "closed")


_closed("model, tokenize", lambda s: s.load(), lambda m: m.tokenize("x"))
_closed("model, detokenize", lambda s: s.load(), lambda m: m.detokenize([1]))
_closed("model, token_bytes", lambda s: s.load(), lambda m: m.token_bytes(1))
_closed("model, is_eog", lambda s: s.load(), lambda m: m.is_eog(1))
_closed("model, special_tokens", lambda s: s.load(), lambda m: m.special_tokens)
_closed("model, Context", lambda s: s.load(), Context)
_closed("model, Sampler", lambda s: s.load(), Sampler)
_closed("model, Llava", lambda s: s.load(), Llava)
_closed("model, with", lambda s: s.load(), lambda m: m.__enter__())
_closed("context, eval", lambda s: s.ctx, lambda c: c.eval([1]))
_closed("context, rows", lambda s: s.ctx, lambda c: c.eval(ImageEmbedding.from_buffer(ROWS)))
_closed("context, logits", lambda s: s.ctx, lambda c: c.logits)
_closed("context, clear", lambda s: s.ctx, lambda c: c.clear())
_closed("context, copy", lambda s: s.ctx, lambda c: c.copy_sequence(0, 1))
_closed("context, truncate", lambda s: s.ctx, lambda c: c.truncate_sequence(0, 0))
_closed("encoder, encode", lambda s: s.encoder, lambda e: e.encode(PIXELS))
_closed("sampler, sample", lambda s: (s.ctx, s.sampler())[1], lambda p: p.accept(1))
_closed("sampler, reset", lambda s: s.sampler(), lambda p: p.reset())
_closed("Llava, generate", lambda s: s.llava, lambda v: v.generate("x"))
_closed("Llava, with", lambda s: s.llava, lambda v: v.__enter__())
_case("closed: sampler on a closed context", lambda s: (
    s.ctx.eval([1]), s.ctx.close(), s.sampler().sample(s.ctx)),
      ClosedError)  # fmt: skip
_case("in use: model under a context", lambda s: (s.ctx, s.model.close()), InUseError, "1 contexts")
_case("in use: model under a sampler", lambda s: (s.sampler(), s.model.close()), InUseError)
_case("in use: Llava under a stream", lambda s: (x := s.llava.stream("x"), s.llava.close(), x), BusyError)
_case(
    "in use: context under logits",
    lambda s: (s.ctx.eval([1]), x := s.ctx.logits, s.ctx.close(), x),
    BufferError,
)
for _kind in (Model, Context, ImageEncoder, ImageEmbedding, Sampler):

    def _poke(scene: Scene, kind: Any = _kind) -> None:
        thing = kind.__new__(kind)
        for name in dir(thing):
            if name in ("__init__", "__new__", "__class__", "__subclasshook__", "__init_subclass__"):
                continue
            for arguments in ((), (0,), (0, 0), ([1],), (scene.ctx,), ("x",)):
                try:
                    found = getattr(thing, name)
                    if callable(found):
                        found(*arguments)
                except Exception:
                    pass

    _case(f"never made: {_kind.__name__}", _poke, None)


def _two_threads(
    long: Callable[[Scene, CancelToken], Any], other: Callable[[Scene], Any]
) -> Callable[[Scene], None]:
    """Do `long` in a thread and `other` as soon as it is refused; stop `long` then."""

    def run(scene: Scene) -> None:
        token, errors = CancelToken(30), []

        def work() -> None:
            while not token.cancelled:
                with contextlib.suppress(CancelledError):
                    long(scene, token)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            while not errors and not token.expired:
                try:
                    other(scene)
                except BusyError as exc:
                    errors.append(exc)
                time.sleep(0)
        finally:
            token.cancel()
            thread.join()
        if errors:
            raise errors[0]

    return run


def _fill(scene: Scene, token: CancelToken) -> None:
    scene.ctx.eval([5] * 250, cancel=token)
    scene.ctx.clear()


def _warm(do: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
    def run(scene: Scene) -> None:
        _ = scene.ctx, scene.encoder
        do(scene)

    return run


_case("two threads: eval and clear", _warm(_two_threads(_fill, lambda s: s.ctx.clear())), BusyError)
_case(
    "two threads: eval and close",
    _warm(_two_threads(_fill, lambda s: s.ctx.truncate_sequence(0, 0))),
    BusyError,
)
_case("two threads: encode and encode", _warm(_two_threads(
    lambda s, t: s.encoder.encode(PIXELS, cancel=t),
    lambda s: s.encoder.encode(PIXELS))), BusyError)  # fmt: skip


def _close_under_accept(scene: Scene) -> None:
    """Close samplers while a thread is inside them."""
    for _ in range(200):
        sampler = scene.sampler(grammar="root ::= [a-z]*", repeat_penalty=1.1)

        def accept(sampler: Sampler = sampler) -> None:
            with contextlib.suppress(BusyError, ClosedError):
                for _ in range(20):
                    sampler.accept(100)  # the byte "a"
                    sampler.reset()

        thread = threading.Thread(target=accept)
        thread.start()
        while thread.is_alive():
            with contextlib.suppress(BusyError):
                sampler.close()
        thread.join()


_case("two threads: accept and close", _close_under_accept, None)
