"""Tiny models for every test that wants one, and a check that no test leaves a native object behind."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import TinyLlava, write_pair

FAILED = pytest.StashKey[bool]()


def pytest_configure():
    # a shell that starts us in the background has SIGINT ignored, and the children that tests interrupt
    # would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    mark = item.get_closest_marker("cpu")
    if mark and _has_gpu():
        pytest.skip(f"{mark.args[0]} (a GPU computes here)")


def _has_gpu() -> bool:
    from llava_native import devices  # only here: most unit tests load nothing native
    from llava_native.machine import gpus

    return bool(gpus(devices()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def no_native_object_is_left(request) -> Iterator[None]:
    """Fail the test that leaves a native object alive.

    Compared with the state before the test, because a failed test's traceback keeps its objects. That
    state is zero otherwise, so no fixture with a wider scope than a function may hold a native object
    without its owner saying so here.
    """
    before = _live_counts()
    yield
    if request.node.stash.get(FAILED, False):
        return
    request.node.funcargs.clear()  # the other fixtures are done; pytest would keep their values longer
    gc.collect()
    left = {kind: n - before.get(kind, 0) for kind, n in _live_counts().items() if n > before.get(kind, 0)}
    assert not left, f"left alive: {left}: {_native_objects()}"


def _live_counts() -> dict[str, int]:
    native = sys.modules.get("llava_native._native")  # most unit tests never load it
    return native.live_counts() if native else {}


def _native_objects() -> list[str]:
    return [repr(o) for o in gc.get_objects() if str(type(o).__module__).startswith("llava_native._")]


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory) -> Callable[..., TinyLlava]:
    """A writer of tiny pairs, each written once a session: ``tiny_pair("llama-bpe", "full", "f32")``."""
    written: dict[tuple, TinyLlava] = {}

    def pair(vocab="phi-3", layout="legacy", dtype="f32") -> TinyLlava:
        key = (vocab, layout, dtype)
        if key not in written:
            folder = tmp_path_factory.mktemp("-".join(key))
            written[key] = write_pair(folder, vocab=vocab, layout=layout, dtype=dtype)
        return written[key]

    return pair


@pytest.fixture(scope="session")
def pair(tiny_pair) -> TinyLlava:
    """A Phi-3 style pair of the legacy layout, in float32."""
    return tiny_pair()


@pytest.fixture
def model(pair):
    """The text model of `pair`, open during the test."""
    from llava_native import Model

    with Model(pair.text.path) as opened:
        yield opened


@pytest.fixture
def ctx(model):
    """A context of 256 tokens and four sequences on `model`."""
    from llava_native import Context

    # one thread: these graphs are so small that a second one only waits for the first
    with Context(model, n_ctx=256, n_batch=64, n_seq_max=4, n_threads=1) as opened:
        yield opened


@pytest.fixture
def encoder(pair):
    """The image encoder of `pair`, open during the test."""
    from llava_native import ImageEncoder

    with ImageEncoder(pair.mmproj.path, n_threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A picture of 70 x 50 random pixels."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (50, 70, 3), dtype=np.uint8))
