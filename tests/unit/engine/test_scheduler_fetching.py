"""Scheduler: requests whose images are elsewhere, and who waits for them: nobody else."""

from __future__ import annotations

from support.fake_engine import FakeImage, expect

from llava_native.errors import DecodeError


def test_requests_whose_images_are_elsewhere_hold_up_nobody(desk):
    far = [desk.ask(FakeImage(name, is_away=True), [8]) for name in "abcdefgh"]  # more than are looked ahead
    near = desk.ask(FakeImage("cat"), [8])
    for _ in range(40):
        if not desk.scheduler.step():
            desk.encoding.run()
    expect(desk, near, FakeImage("cat"), [8])
    assert desk.scheduler.waiting == far
    assert not any(request.begun for request in far)
    desk.encoding.away["c"]()
    desk.encoding.away["a"]()
    desk.scheduler.step()
    assert [request.begun for request in far] == [True, False, True] + [False] * 5
    for name in "bdefgh":
        desk.encoding.away[name]()
    order = []
    for request in far:
        request.on_end = lambda r=request: order.append(r)
    desk.finish()
    assert order == [far[0], far[2], far[1], *far[3:]]  # as they came, and their images
    for request, name in zip(far, "abcdefgh", strict=True):
        expect(desk, request, FakeImage(name), [8])


def test_a_request_waits_for_all_of_its_images(desk):
    request = desk.ask(FakeImage("a", is_away=True), [8], FakeImage("b", is_away=True), FakeImage("c"))
    desk.encoding.away["b"]()
    desk.scheduler.step()
    assert not request.begun
    desk.encoding.away["a"]()
    desk.finish()
    expect(desk, request, FakeImage("a"), [8], FakeImage("b"), FakeImage("c"))


def test_an_image_that_cannot_be_fetched_ends_its_request_only(desk):
    failed = desk.ask(FakeImage("a", is_away=True), FakeImage("b", is_away=True), [8])
    dropped = desk.ask(FakeImage("c", is_away=True), [8])
    other = desk.ask(FakeImage("d", is_away=True), [8])
    error = DecodeError("404")
    desk.encoding.away["a"](error)
    assert failed.events.get().error is error
    assert failed.sampler.closed
    dropped.stop.cancel()
    desk.scheduler.step()
    assert desk.answer(dropped) == ([], "cancelled")
    for name in "bcd":  # whose requests are over, two of them
        desk.encoding.away[name]()
    desk.finish()
    expect(desk, other, FakeImage("d"), [8])
    assert failed.events.empty()
    stats = desk.scheduler.stats()
    assert (stats.failed, stats.cancelled, stats.finished) == (1, 1, 1)
