"""States of fake contexts, for every test of the engine's parts."""

from __future__ import annotations

import pytest
from support.fake_engine import fake_states


@pytest.fixture(autouse=True, scope="module")
def _states():
    with pytest.MonkeyPatch.context() as patch:
        fake_states(patch)
        yield
