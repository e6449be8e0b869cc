"""Questions about two pictures at once."""

from __future__ import annotations

import random

from .data_phrases import ASK_READ
from .data_scene import COLOURS, SHAPES, Scene
from .data_talk import Turn, article, as_typed, describe, plural

NAMES = ("image", "picture", "photo")
ASK_MORE = (
    "Which {i} has more {x}?",
    "Which {i} shows more {x}?",
    "Are there more {x} in the first or the second {i}?",
    "Where are there more {x}, in the first or the second {i}?",
    "Which of the two {i}s has more {x}?",
)
ASK_WHICH = (
    "Which {i} has {x}?",
    "Which {i} shows {x}?",
    "Which {i} contains {x}?",
    "In which {i} is there {x}?",
    "Which of the two {i}s has {x}?",
    "Which one has {x}?",
)
ASK_ONE = (
    "Describe the {o} {i}.",
    "What is in the {o} {i}?",
    "What does the {o} {i} show?",
    "What do you see in the {o} {i}?",
)
ASK_BOTH = ("Do both {i}s have {x}?", "Is there {x} in both {i}s?", "Do both {i}s show {x}?")
ORDINALS = ("first", "second")


def _more(rng: random.Random, a: Scene, b: Scene) -> Turn:
    """Ask which picture has more things, of a colour, of a shape, or of any kind."""
    draw = rng.random()
    if draw < 0.5:
        what, x, y = rng.choice(("objects", "shapes", "things")), len(a.things), len(b.things)
    elif draw < 0.75:
        shape = rng.choice([t.shape for t in a.things + b.things] or SHAPES)
        what, x, y = plural(shape), *(sum(t.shape == shape for t in s.things) for s in (a, b))
    else:
        colour = rng.choice([t.colour for t in a.things + b.things] or list(COLOURS))
        what, x, y = f"{colour} objects", *(sum(t.colour == colour for t in s.things) for s in (a, b))
    answer = "The first." if x > y else "The second." if y > x else "They have the same number."
    return Turn(rng.choice(ASK_MORE).format(i=rng.choice(NAMES), x=what), answer, "two images")


def _has(rng: random.Random, a: Scene, b: Scene) -> Turn:
    """Ask which picture has a thing, or whether both do."""
    things = a.things + b.things
    shape = rng.choice([t.shape for t in things] if things and rng.random() < 0.8 else SHAPES)
    colour = rng.choice([t.colour for t in things] if things and rng.random() < 0.8 else list(COLOURS))
    draw = rng.random()
    if draw < 0.4:
        what, found = article(shape), [any(t.shape == shape for t in s.things) for s in (a, b)]
    elif draw < 0.7:
        what, found = article(f"{colour} object"), [any(t.colour == colour for t in s.things) for s in (a, b)]
    elif draw < 0.85 and things:
        thing = rng.choice(things)
        pair = (thing.colour, thing.shape)
        what, found = (
            article(" ".join(pair)),
            [any((t.colour, t.shape) == pair for t in s.things) for s in (a, b)],
        )
    else:
        what, found = "text", [bool(a.text), bool(b.text)]
    if rng.random() < 0.25:
        text = rng.choice(ASK_BOTH).format(i=rng.choice(NAMES), x=what)
        return Turn(text, "Yes." if all(found) else "No.", "two images")
    answer = {
        (True, False): "The first.",
        (False, True): "The second.",
        (True, True): "Both.",
        (False, False): "Neither.",
    }
    return Turn(rng.choice(ASK_WHICH).format(i=rng.choice(NAMES), x=what), answer[tuple(found)], "two images")


def _one(rng: random.Random, a: Scene, b: Scene) -> Turn:
    """Ask what one of the two pictures shows or says."""
    which = rng.randrange(2)
    scene = (a, b)[which]
    if scene.text and rng.random() < 0.3:
        text = f"{rng.choice(ASK_READ[:4]).rstrip('?.')} in the {ORDINALS[which]} {rng.choice(NAMES)}?"
        if "in the image" not in text:
            return Turn(text, f"It says {scene.text}.", "two images")
    return Turn(
        rng.choice(ASK_ONE).format(o=ORDINALS[which], i=rng.choice(NAMES)), describe(scene), "two images"
    )


def ask_pair(rng: random.Random, a: Scene, b: Scene) -> Turn:
    """Ask one question that needs both pictures, or one of them named by its order.

    Parameters
    ----------
    rng : random.Random
    a, b : Scene
        The first and the second picture.

    Returns
    -------
    Turn
    """
    turn = rng.choices((_more, _has, _one), (0.4, 0.4, 0.2))[0](rng, a, b)
    turn.question = as_typed(rng, turn.question)
    return turn
