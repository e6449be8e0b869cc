"""Contexts, states and sequences without a model, for every test of the engine's parts."""

from __future__ import annotations

import pytest
from support.fake_engine import Desk, FakeContext, fake_states

from llava_native.engine.sequences import Memory


@pytest.fixture(autouse=True, scope="module")
def _states():
    with pytest.MonkeyPatch.context() as patch:
        fake_states(patch)
        yield


@pytest.fixture
def context():
    return FakeContext(n_ctx=64, n_seq_max=4)


@pytest.fixture
def memory(context):
    return Memory(context)


@pytest.fixture
def desk():
    made = Desk()
    yield made
    made.close()
