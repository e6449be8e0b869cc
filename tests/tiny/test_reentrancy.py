"""Python code that runs in the middle of a call, and what it may do there: close, interrupt, ask for more."""

import ctypes
import gc
import logging
from collections import Counter, OrderedDict
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from support.tiny_models import write_recurrent_model

from llava_native import Context, ImageEmbedding, ImageEncoder, Model, Sampler, SamplingParams
from llava_native._native import live_counts
from llava_native._state import get_state, set_state
from llava_native.errors import ClosedError, InUseError, InvalidInputError


class Handler(logging.Filter):
    """Calls a function with the first of the library's own lines that is passed on while it is there."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def filter(self, record):
        if self.call is not None and record.levelno == logging.DEBUG:
            call, self.call = self.call, None
            call()
        return True

    def __enter__(self):
        self.logger = logging.getLogger("llava_native")
        self.level = self.logger.level
        self.logger.setLevel(logging.DEBUG)
        self.logger.addFilter(self)
        return self

    def __exit__(self, *_):
        self.logger.removeFilter(self)
        self.logger.setLevel(self.level)


def interrupt():
    raise KeyboardInterrupt


def mappings(path):
    return Path("/proc/self/maps").read_text().count(str(path))


# -- interrupted when it had just been made -----------------------------------------------------------


def test_an_interrupted_load_leaves_nothing(pair):
    before = live_counts()
    for load in (lambda: Model(pair.text.path), lambda: ImageEncoder(pair.mmproj.path, n_threads=1)):
        with Handler(interrupt) as handler, pytest.raises(KeyboardInterrupt):
            load()
        assert handler.call is None  # it was called
        gc.collect()
    assert live_counts() == before
    assert mappings(pair.text.path) == 0


def test_an_interrupted_context_leaves_its_model_free(pair):
    with Model(pair.text.path) as model:
        with Handler(interrupt), pytest.raises(KeyboardInterrupt):
            Context(model, n_ctx=256, n_threads=1)
        assert live_counts()["context"] == 0
        model.close()  # nothing of it is in use


# -- closed by others --------------------------------------------------------------------------------


def test_a_sampler_that_is_being_made_keeps_its_model_open(pair):
    refused = []

    class Params(SamplingParams):
        @property
        def has_penalties(self):
            with pytest.raises(InUseError):
                model.close()
            refused.append(True)
            return False

    with Model(pair.text.path) as model:
        Sampler(model, Params(dry_multiplier=0.8)).close()
    assert refused


@pytest.mark.parametrize("name", ["sample", "logprobs"])
def test_a_row_is_asked_for_its_number_once_and_first(pair, name):
    class Row:
        asked = 0

        def __index__(self):
            Row.asked += 1
            context.close()
            return 0

    with Model(pair.text.path) as model, Sampler(model) as sampler:
        context = Context(model, n_ctx=256, n_threads=1)
        context.eval([1, 2, 3])
        arguments = (context, Row()) if name == "sample" else (context, 1, 0, Row())
        with pytest.raises(ClosedError):
            getattr(sampler, name)(*arguments)
        assert Row.asked == 1


# -- views -------------------------------------------------------------------------------------------


def test_logits_that_are_looked_at_do_not_move(pair):
    with Model(pair.text.path) as model, Context(model, n_ctx=256, n_outputs=64, n_threads=1) as context:
        context.eval([1, 2, 3])
        seen = np.asarray(context.logits)
        copy = seen.copy()
        with pytest.raises(BufferError, match="logits"):
            context.eval_batch([(0, list(range(4, 40)), 36)])
        np.testing.assert_array_equal(seen, copy)
        assert context.n_past() == 3
        context.eval([4])  # in the room that there is
        del seen
        assert len(context.eval_batch([(0, list(range(4, 40)), 36)])) == 36


class Buffer(ctypes.Structure):
    """Py_buffer of CPython's object.h."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)), ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]  # fmt: skip


@pytest.mark.parametrize(("shape", "granted"), [((2, 3), False), ((1, 3), True), ((3, 1), True)])
def test_rows_are_not_given_away_as_columns(shape, granted):
    fortran = 0x40 | 0x10 | 0x08  # PyBUF_F_CONTIGUOUS
    buffer = Buffer()
    rows = ImageEmbedding.from_buffer(np.zeros(shape, np.float32))
    get = ctypes.pythonapi.PyObject_GetBuffer
    if granted:
        get(ctypes.py_object(rows), ctypes.byref(buffer), fortran)
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    else:
        with pytest.raises(BufferError, match="as in C"):
            get(ctypes.py_object(rows), ctypes.byref(buffer), fortran)


# -- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter, MappingProxyType])
def test_logit_bias_is_any_mapping(pair, kind):
    with Model(pair.text.path) as model, Context(model, n_ctx=256, n_threads=1) as context:
        context.eval([1, 2, 3])
        with Sampler(model, SamplingParams(temperature=0, logit_bias=kind({7: 1e6}))) as sampler:
            assert sampler.sample(context) == 7


def test_a_product_that_wraps_around_is_no_size(pair):
    class Pixels:
        width, height, data = 2154230017, 2854344542, bytes(26)

    with (
        ImageEncoder(pair.mmproj.path, n_threads=1) as encoder,
        pytest.raises(InvalidInputError, match="26 bytes"),
    ):
        encoder.encode_pixels(Pixels)


@pytest.mark.parametrize("n", [-(2**31) - 1, 2**31, 10**11])
def test_a_number_of_layers_out_of_range_is_refused(pair, n):
    with pytest.raises(InvalidInputError, match="n_gpu_layers"):
        Model(pair.text.path, n_gpu_layers=n)


def test_the_state_of_a_recurrent_model_is_not_moved(tmp_path):
    path = write_recurrent_model(tmp_path / "mamba.gguf")
    with Model(path) as model, Context(model, n_ctx=256, n_threads=1) as context:
        context.eval([1, 2, 3])
        with pytest.raises(InvalidInputError, match="recurrent"):
            get_state(context)
        context.clear()
        with pytest.raises(InvalidInputError, match="recurrent"):
            set_state(context, bytes(1000), 3)
