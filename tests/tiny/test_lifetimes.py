"""Opening, closing, leaking, forking and never opening: an exception each time, and never a crash."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from support.child import outcome
from support.threads import Background, no_switching

from llava_native import CancelToken, Context, ImageEncoder, Llava, Model, Sampler, SamplingParams
from llava_native._native import live_counts
from llava_native.errors import BusyError, CancelledError, ClosedError, GrammarError, InUseError

from llava_native.errors import InvalidInputError, ModelFormatError  # isort: skip

MAKERS = {
    "Model": lambda pair, _: Model(pair.text.path),
    "Context": lambda _, model: Context(model, n_ctx=64, n_threads=1),
    "Sampler": lambda _, model: Sampler(model),
    "ImageEncoder": lambda pair, _: ImageEncoder(pair.mmproj.path, n_threads=1),
}


@pytest.fixture(params=MAKERS)
def make(request, pair, model):
    """A function that makes an object of one of the four classes."""
    return lambda: MAKERS[request.param](pair, model)


# -- closing ------------------------------------------------------------------------------------------


def test_closing_twice(make):
    thing = make()
    assert not thing.closed
    thing.close()
    thing.close()
    assert thing.closed
    with pytest.raises(ClosedError), thing:
        pass
    assert repr(thing)


def test_with_closes(make):
    with make() as thing:
        assert not thing.closed
    assert thing.closed


def test_a_second_init_is_refused_while_open(make, pair, model):
    arguments = {"Model": (pair.text.path,), "ImageEncoder": (pair.mmproj.path,)}
    with make() as thing:
        with pytest.raises(InUseError):
            thing.__init__(*arguments.get(type(thing).__name__, (model,)))
        assert not thing.closed


def test_a_second_init_after_close_starts_afresh(model):
    ctx = Context(model, n_ctx=64, n_threads=1)
    ctx.eval([1, 2, 3])
    ctx.close()
    ctx.__init__(model, n_ctx=64, n_threads=1)
    with ctx:
        assert ctx.n_past() == 0
        with pytest.raises(InvalidInputError, match="no logits"):
            _ = ctx.logits
        assert ctx.eval([1, 2, 3]) == 3


def test_a_model_stays_while_contexts_and_samplers_need_it(pair):
    model = Model(pair.text.path)
    ctx, sampler = Context(model, n_ctx=64), Sampler(model)
    with pytest.raises(InUseError, match="2 contexts, samplers"):
        model.close()
    ctx.close()
    with pytest.raises(InUseError, match="1 contexts, samplers"):
        model.close()
    assert not model.closed
    sampler.close()
    model.close()
    assert ctx.model is model


def test_children_keep_an_abandoned_model_alive(pair):
    ctx = Context(Model(pair.text.path), n_ctx=64, n_threads=1)
    gc.collect()
    assert ctx.eval([1, 2]) == 2
    model = ctx.model
    ctx.close()
    model.close()


def test_every_method_of_a_closed_object_raises(model, ctx, encoder, picture, pair):
    sampler, closed_model = Sampler(model), Model(pair.text.path)
    ctx.eval([1])
    for thing in (ctx, sampler, encoder, closed_model):
        thing.close()
    for call in (
        lambda: ctx.eval([1]),
        lambda: ctx.logits,
        lambda: ctx.truncate_sequence(0, 0),
        lambda: ctx.copy_sequence(0, 1),
        ctx.clear,
        ctx.__enter__,
        lambda: sampler.sample(ctx),
        lambda: sampler.accept(1),
        sampler.reset,
        sampler.__enter__,
        lambda: encoder.encode(picture),
        encoder.__enter__,
        lambda: closed_model.tokenize("x"),
        *(lambda name=name: getattr(closed_model, name)(1) for name in ("token_bytes", "is_eog")),
        lambda: closed_model.detokenize([1]),
        lambda: closed_model.special_tokens,
        closed_model.__enter__,
        lambda: Context(closed_model),
        lambda: Sampler(closed_model),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
    with Sampler(model) as fresh, pytest.raises(ClosedError):
        fresh.sample(ctx)
    assert closed_model.n_vocab == model.n_vocab  # facts stay
    assert encoder.n_embd == 64


# -- leaks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Model", "Context", "ImageEncoder"])
def test_what_is_not_closed_is_named_and_freed(pair, model, kind):
    before = live_counts()
    thing = MAKERS[kind](pair, model)
    with pytest.warns(ResourceWarning, match=f"unclosed {kind}"):
        del thing
    assert live_counts() == before


def test_a_failed_init_leaves_nothing(tmp_path, pair, model):
    (tmp_path / "x.gguf").write_bytes(pair.text.path.read_bytes()[:5000])
    before = live_counts()
    for call, error in (
        (lambda: Model(tmp_path / "x.gguf"), ModelFormatError),
        (lambda: Model(tmp_path / "missing.gguf"), FileNotFoundError),
        (lambda: Model(pair.mmproj.path), ModelFormatError),
        (lambda: Model(pair.text.path, kv_overrides={"k" * 200: 1}), ValueError),
        (lambda: ImageEncoder(tmp_path / "x.gguf"), ModelFormatError),
        (lambda: ImageEncoder(pair.text.path), ModelFormatError),
        (lambda: ImageEncoder(pair.mmproj.path, n_threads=0), InvalidInputError),
        (lambda: ImageEncoder(pair.mmproj.path, device="no such device"), InvalidInputError),
        (lambda: Context(model, n_ctx=1), InvalidInputError),
        (lambda: Context(None), TypeError),
        (lambda: Sampler(model, SamplingParams(grammar="root ::=(")), GrammarError),
        (lambda: Sampler(model, SamplingParams(logit_bias={-1: 1.0})), InvalidInputError),
        (lambda: Sampler(model, {"temperature": 1}), AttributeError),
    ):
        with pytest.raises(error):
            call()
        gc.collect()
        assert live_counts() == before
    # and the model counts no child that never came to life, or its fixture could not close it


def test_exit_with_open_objects_is_silent(pair):
    code = """
        import sys
        import numpy as np
        from llava_native import Context, ImageEncoder, Model, Sampler
        model, encoder = Model(sys.argv[1]), ImageEncoder(sys.argv[2], n_threads=1)
        ctx, sampler = Context(model, n_ctx=64, n_threads=1), Sampler(model)
        emb = encoder.encode(np.zeros((5, 5, 3), np.uint8))
        ctx.eval(emb)
        logits, rows, capsule = np.asarray(ctx.logits), memoryview(emb), emb.__dlpack__(max_version=(1, 0))
    """
    assert outcome(code, pair.text.path, pair.mmproj.path, strict=False) == (0, "", "")


# -- threads ------------------------------------------------------------------------------------------


def test_a_second_thread_in_a_context_is_refused(model, slow_ctx, long_tokens):
    token = CancelToken()

    def evaluate():
        slow_ctx.clear()
        slow_ctx.eval(long_tokens, cancel=token)

    with no_switching(), Sampler(model) as sampler:
        background = Background(evaluate)
        for call in (
            lambda: slow_ctx.eval([1]),
            lambda: slow_ctx.eval([1], seq=1),
            lambda: slow_ctx.logits,
            lambda: slow_ctx.truncate_sequence(0, 0),
            lambda: slow_ctx.copy_sequence(0, 1),
            lambda: sampler.sample(slow_ctx),
            slow_ctx.clear,
            slow_ctx.close,
        ):
            with pytest.raises(BusyError, match="another thread"):
                call()
        token.cancel()
        background.stop()
    assert isinstance(background.error, CancelledError)
    assert slow_ctx.n_past() == 0
    assert slow_ctx.eval([1]) == 1


def test_a_second_thread_in_an_encoder_is_refused(slow_encoder, picture):
    token = CancelToken()
    image = np.zeros((448, 448, 3), np.uint8)
    slow_encoder.encode(image)  # imports on first use give up the GIL as well
    rows = []  # kept: freeing them gives up the GIL too, outside the encoder

    def encode():
        rows.append(slow_encoder.encode(image, cancel=token))

    with no_switching():
        background = Background(encode)
        for call in (lambda: slow_encoder.encode(picture), slow_encoder.close):
            with pytest.raises(BusyError, match="another thread"):
                call()
        token.cancel()
        background.stop()
    assert isinstance(background.error, CancelledError)
    assert slow_encoder.encode(picture).n_tokens == 1024


def test_a_model_is_not_freed_under_a_tokenising_thread(pair):
    model = Model(pair.text.path, vocab_only=True)
    text = "The quick brown fox jumps over the lazy dog. " * 20_000
    with no_switching():
        background = Background(lambda: model.tokenize(text))
        with pytest.raises(BusyError, match="tokenising"):
            model.close()
        background.stop()
    assert background.error is None
    model.close()


def test_tokens_that_meddle_with_their_context(model):
    ctx = Context(model, n_ctx=64, n_threads=1)

    def closing():
        yield 1
        ctx.close()
        yield 2

    def evaluating():
        yield 1
        ctx.eval([5, 6, 7])
        yield 2

    assert ctx.eval(evaluating()) == 5
    with pytest.raises(ClosedError):
        ctx.eval(closing())


# -- fork ---------------------------------------------------------------------------------------------


def test_after_fork_everything_is_refused_and_nothing_is_freed(pair):
    code = """
        import os, sys
        import numpy as np
        from llava_native import Context, ImageEncoder, Model, Sampler, devices
        from llava_native.errors import ForkError
        from llava_native.machine import gpus
        model, encoder = Model(sys.argv[1]), ImageEncoder(sys.argv[2], n_threads=1)
        ctx, sampler = Context(model, n_ctx=64, n_threads=1), Sampler(model)
        image = np.zeros((5, 5, 3), np.uint8)
        emb = encoder.encode(image)
        ctx.eval(emb)
        has_gpu = bool(gpus(devices()))
        pid = os.fork()
        if not pid:
            for call in (
                lambda: model.tokenize("x"), lambda: model.detokenize([1]), lambda: model.token_bytes(1),
                model.close, lambda: Context(model), lambda: Sampler(model), lambda: ctx.eval([1]),
                lambda: ctx.logits, ctx.clear, ctx.close, lambda: sampler.sample(ctx), sampler.reset,
                sampler.close, lambda: encoder.encode(image), encoder.close,
            ):
                try:
                    call()
                except ForkError:
                    continue
                print("no ForkError")
            assert np.isfinite(np.asarray(emb)).all()
            if has_gpu:
                os._exit(7)  # CUDA's own end is a signal in a forked child, see docs/gpu.md
            sys.exit(7)  # the interpreter's whole end, with open objects
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        ctx.eval([1])
        for thing in (ctx, sampler, model, encoder):
            thing.close()
    """
    assert outcome(code, pair.text.path, pair.mmproj.path, strict=False) == (0, "7", "")


def test_a_forked_child_loads_for_itself(pair):
    code = """
        import os, sys
        from llava_native import Context, Model
        pid = os.fork()
        if not pid:
            with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1) as ctx:
                sys.exit(ctx.eval([1, 2, 3]))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert outcome(code, pair.text.path, strict=False) == (0, "3", "")


# -- never opened -------------------------------------------------------------------------------------


def test_objects_that_were_never_opened_do_not_crash(pair):
    """Every method and property of every class, on what ``__new__`` alone gives, with many arguments."""
    code = """
        import itertools, sys
        import numpy as np
        from llava_native import CancelToken, Context, ImageEmbedding, ImageEncoder, Model, Sampler
        from llava_native._buffer import FloatBuffer, Logits
        from llava_native.errors import ClosedError

        classes = (CancelToken, Context, FloatBuffer, ImageEmbedding, ImageEncoder, Logits, Model, Sampler)
        never = [cls.__new__(cls) for cls in classes]
        never += [type(cls.__name__ + "Sub", (cls,), {}).__new__(cls) for cls in classes]
        pool = [0, 1, -1, "x", b"x", [1], None, *never]
        skip = {"__class__", "__new__", "__init_subclass__", "__subclasshook__", "__getattribute__"}
        skip |= {"__reduce_ex__", "from_buffer", "load", "save"}  # open(1) is stdout
        calls = 0
        for thing in never:
            for name in sorted(set(dir(thing)) - skip):
                try:
                    value = getattr(thing, name)
                except Exception:
                    continue
                if not callable(value):
                    continue
                for n in range(3):
                    for args in itertools.product(pool, repeat=n):
                        calls += 1
                        try:
                            value(*args)
                        except Exception:
                            pass
        assert calls > 10_000, calls
        model, ctx = Model.__new__(Model), Context.__new__(Context)
        rows = ImageEmbedding.__new__(ImageEmbedding)
        calls = [lambda: model.tokenize("x"), lambda: ctx.eval([1]), lambda: memoryview(rows)]
        for call in (*calls, lambda: Context(model)):
            try:
                call()
            except ClosedError:
                print("closed")
    """
    assert outcome(code, pair.text.path) == (0, "closed\n" * 3 + "closed", "")


def test_objects_in_reference_cycles(pair):
    """The collector must not take from a context what freeing it needs."""
    code = """
        import gc, sys
        from llava_native import Context, Model, Sampler
        from llava_native._native import live_counts

        class Loop(Context):
            pass

        class Chooser(Sampler):
            pass

        with Model(sys.argv[1]) as model:
            for cls, options in ((Loop, {"n_ctx": 64, "n_threads": 1}), (Chooser, {})):
                thing = cls(model, **options)
                thing.me = thing
                del thing
                gc.collect()
            print(live_counts()["context"], live_counts()["sampler"])
        print(live_counts()["model"])  # it counted no child, or it could not have been closed
    """
    assert outcome(code, pair.text.path, strict=False) == (0, "0 0\n0", "")


def test_subclasses(pair):
    class Named(Model):
        def __init__(self, path, name):
            super().__init__(path)
            self.name = name

    class Forgetful(Context):
        def __init__(self, model):
            pass

    with Named(pair.text.path, "x") as model:
        assert model.name == "x"
        assert model.tokenize("Hello")
        with pytest.raises(ClosedError):
            Forgetful(model).eval([1])


def test_a_dropped_llava_frees_its_context_at_once(pair):
    gc.collect()
    gc.disable()
    try:
        with Model(pair.text.path) as model, pytest.warns(ResourceWarning, match="unclosed Context"):
            Llava(model, n_ctx=64)
    finally:
        gc.enable()
