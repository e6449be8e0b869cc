"""Closing while the engine works: the call that is going on ends, and everybody hears that it was closed."""

from __future__ import annotations

import pytest
from support.fake_engine import Desk, FakeImage

from llava_native.errors import CancelledError, ClosedError


@pytest.mark.parametrize("pieces", [[[5] * 40], [FakeImage("cat", 40), [1]]])
def test_a_call_for_one_request_ends_too(monkeypatch, pieces):
    desk = Desk(n_running=1, n_ctx=200)
    request = desk.ask(*pieces)

    def closed_meanwhile(*_args, cancel=None, **_options):
        desk.scheduler.stop()  # as another thread does
        assert cancel.cancelled
        raise CancelledError("cancelled")

    monkeypatch.setattr(desk.context, "eval_batch", closed_meanwhile)
    for _ in range(10):
        desk.scheduler.step()
        desk.encoding.run()
    desk.close()
    desk.take(request)
    assert [type(event.error) for event in desk.got[request]] == [ClosedError]


def test_what_was_stopped_before_any_step_was_closed_and_not_cancelled():
    desk = Desk(n_running=1)
    request = desk.ask([1, 2, 3])
    desk.scheduler.step()
    desk.scheduler.stop()
    assert request.stop.cancelled
    desk.scheduler.step()
    desk.close()
    desk.take(request)
    assert isinstance(desk.got[request][-1].error, ClosedError)
