"""The embedded model's data: seeded, true, and balanced."""

import random
from collections import Counter

import pytest

pytest.importorskip("numpy")
pytest.importorskip("PIL")
scenes = pytest.importorskip("training.data_scene")

from training import data_talk as talk  # noqa: E402
from training.data_pairs import ask_pair  # noqa: E402


def some_fonts():
    """Fonts, or a skip where Debian's packages are not installed."""
    try:
        return scenes.training_fonts()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_same_seed_same_scene_and_picture():
    fonts = some_fonts()
    one, two = scenes.sample_scene(5), scenes.sample_scene(5)
    assert one == two
    assert scenes.draw_scene(one, 200, fonts)[0].tobytes() == scenes.draw_scene(two, 200, fonts)[0].tobytes()
    assert scenes.sample_scene(6) != one


def test_ids_mark_every_thing_in_its_colour():
    fonts = some_fonts()
    for seed in range(30):
        scene = scenes.sample_scene(seed)
        picture, ids = scenes.draw_scene(scene, 240, fonts)
        assert picture.size == ids.size
        counts = Counter(ids.tobytes())
        for i, thing in enumerate(scene.things):
            assert counts[1 + i] > 40
            points = [n for n, v in enumerate(ids.tobytes()) if v == 1 + i]
            pixels = [picture.getpixel((n % ids.width, n // ids.width)) for n in points]
            near = sum(scenes.distance(p, scenes.COLOURS[thing.colour]) < 190 for p in pixels)
            assert near > 0.5 * len(pixels), (seed, thing)


def test_all_names_occur_and_scenes_fit():
    seen = Counter()
    for seed in range(400):
        scene = scenes.sample_scene(seed)
        assert len(scene.things) <= 5
        seen.update(n for t in scene.things for n in (t.shape, t.colour, t.size, t.style))
        assert all(0 < t.x < scene.width and 0 < t.y < scene.height for t in scene.things)
        assert scene.things or scene.text
    assert set(seen) == {*scenes.SHAPES, *scenes.COLOURS, *scenes.SIZES, *scenes.STYLES}


def test_answers_are_true():
    rng = random.Random(0)
    for seed in range(300):
        scene = scenes.sample_scene(seed)
        assert talk.describe(scene).lower().count(" ") >= len(scene.things)
        turn = talk.ask_count(rng, scene)
        number = talk.NUMBERS.index(turn.answer.rstrip(".").lower())
        assert number <= len(scene.things)
        turn = talk.ask_exists(rng, scene)
        if turn.thing:
            assert turn.answer == "Yes."
        for thing in scene.things:
            left, right = (talk.related(scene, thing, side) for side in ("left", "right"))
            if left is not None:
                assert len(left) + len(right) == len(scene.things) - 1
                assert all(t.x < thing.x for t in left)


def test_references_mean_one_thing():
    for seed in range(200):
        scene = scenes.sample_scene(seed)
        for thing in scene.things:
            for name in talk.references(scene, thing):
                words = [w for w in name.split()[1:] if w not in ("object", "shape", "thing")]
                fits = [t for t in scene.things if all(w in (t.size, t.colour, t.shape) for w in words)]
                assert fits == [thing]


def test_yes_and_no_are_balanced():
    rng = random.Random(3)
    answers = Counter(talk.ask(rng, scenes.sample_scene(s), talk.ask_exists).answer for s in range(1500))
    assert 0.42 < answers["Yes."] / 1500 < 0.58
    sample = scenes.sample_scene
    pairs = Counter(ask_pair(rng, sample(s), sample(s + 9999)).answer for s in range(2000))
    assert 0.8 < pairs["The first."] / pairs["The second."] < 1.25


def test_conversation_has_its_turns_and_kinds():
    rng = random.Random(4)
    talks = [talk.converse(rng, scenes.sample_scene(s), 4) for s in range(100)]
    assert all(len(t) == 4 for t in talks)
    assert {turn.kind for t in talks for turn in t} >= {
        "describe",
        "count",
        "colour",
        "position",
        "yes/no",
        "reading",
    }


def test_listed_things_are_those_that_the_answer_names():
    rng = random.Random(5)
    listed = 0
    for seed in range(200):
        scene = scenes.sample_scene(seed)
        for asker in (talk.ask_describe, talk.ask_relation, talk.ask_largest):
            turn = asker(rng, scene)
            if turn:
                shapes = [w.strip(",.") for w in turn.answer.split() if w.strip(",.") in scenes.SHAPES]
                assert shapes == [thing.shape for thing in turn.listed]
                assert all(thing.colour in turn.answer for thing in turn.listed)
                listed += len(turn.listed)
    assert listed > 600


def test_counting_agrees_with_the_questions_about_place_and_number():
    for seed in range(200):
        scene = scenes.sample_scene(seed)
        order = talk.left_to_right(scene.things)
        for thing in scene.things:
            left, above, every, shape, colour = talk.to_count(scene, thing)
            assert len(left) == order.index(thing)
            assert all(t.y < thing.y for t in above)
            assert thing not in above
            assert every == scene.things
            assert thing in shape
            assert {t.shape for t in shape} == {thing.shape}
            assert thing in colour
            assert {t.colour for t in colour} == {thing.colour}


def test_training_sees_more_of_the_difficult_scenes():
    plain = [scenes.sample_scene(seed) for seed in range(400)]
    hard = [scenes.sample_hard_scene(seed) for seed in range(400)]
    for kind in (0, 1):  # half of them are left as they are
        assert hard[kind::4] == plain[kind::4]
    assert sum(map(scenes.close_pairs, hard[2::4])) > 1.5 * sum(map(scenes.close_pairs, plain[2::4]))
    assert sum(len(s.text) for s in hard[3::4]) > 1.5 * sum(len(s.text) for s in plain[3::4])
    assert scenes.sample_hard_scene(7) == scenes.sample_hard_scene(7)
