"""The end of the interpreter: everything is closed, and threads that wait end in silence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from llava_native import exiting
from llava_native.errors import ClosedError


class Door:
    is_open = True

    def close(self):
        self.is_open = False


@pytest.fixture
def ending(monkeypatch):
    """Let the interpreter seem to end."""
    monkeypatch.setattr(exiting, "_exiting", False)
    monkeypatch.setattr(exiting, "_open", type(exiting._open)())
    return exiting._close_all


def test_what_still_lives_is_closed(ending):
    here, gone = Door(), Door()
    exiting.close_at_exit(here)
    exiting.close_at_exit(gone)
    del gone
    ending()
    assert not here.is_open


def test_who_waits_then_is_ended_in_silence(ending):
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(exiting.closed_error).result()
        ending()
        after = pool.submit(exiting.closed_error).result()
    assert isinstance(before, ClosedError)
    assert isinstance(after, SystemExit)
    assert isinstance(exiting.closed_error(), ClosedError)  # the main thread asked too late
