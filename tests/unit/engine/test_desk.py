"""ImageDesk: when an image is encoded."""

from __future__ import annotations

from support.fake_engine import Desk, FakeImage


def test_an_image_is_not_put_off_for_ever_by_others_prompts():
    desk = Desk(n_running=2, n_ctx=200, n_batch=32, n_ubatch=16)
    picture = desk.ask([7], FakeImage("cat"), max_tokens=2)
    texts = []
    for n in range(200):
        while len(desk.scheduler.running) + len(desk.scheduler.waiting) < 4:
            texts.append(desk.ask(list(range(300 + n, 380 + n)), max_tokens=2))
        desk.scheduler.step()
        desk.encoding.run()
        for request in (picture, *texts):
            desk.take(request)
        if picture.ended:
            break
    assert picture.ended
    desk.close()
