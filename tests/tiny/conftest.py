"""Models on which a single native call takes long enough to be watched, or stopped."""

from __future__ import annotations

import pytest
from support.tiny_models import TinyModel, write_mmproj

LONG = 6000  # tokens


@pytest.fixture
def slow_ctx(model):
    """A context whose `eval` of `LONG` tokens takes a second and more: one graph a token, one call."""
    from llava_native import Context

    with Context(model, n_ctx=LONG + 64, n_batch=LONG, n_ubatch=1, n_seq_max=2, n_threads=1) as opened:
        yield opened


@pytest.fixture
def long_tokens(model):
    """What takes `slow_ctx` long."""
    return [model.bos] * LONG


@pytest.fixture(scope="session")
def slow_mmproj(tmp_path_factory) -> TinyModel:
    """An encoder of 1,024 patches and 24 blocks."""
    path = tmp_path_factory.mktemp("slow") / "mmproj.gguf"
    return write_mmproj(path, layout="full", image_size=448, n_layer=24, n_embd=64, n_head=4)


@pytest.fixture
def slow_encoder(slow_mmproj):
    """An encoder whose `encode` takes half a second and more."""
    from llava_native import ImageEncoder

    with ImageEncoder(slow_mmproj.path, n_threads=1) as opened:
        yield opened
