"""What people ask about a scene, and the canonical true answers.

Answers have one form each, so that an exact match is meaningful; questions vary as people type them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from . import data_phrases as say
from .data_scene import COLOURS, SHAPES, Scene, Thing

NUMBERS = ("none", "one", "two", "three", "four", "five", "six")
PLURALS = {"cross": "crosses"}
CLEAR = 0.045  # centres closer than this, along an axis, are neither left of nor above each other


@dataclass
class Turn:
    """A question, its true answer, and its kind.

    `thing` is what it was about (for a question that says "it"), `listed` what the answer names, in order.
    """

    question: str
    answer: str
    kind: str
    thing: Thing | None = None
    listed: list[Thing] = field(default_factory=list)


def article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def plural(noun: str) -> str:
    """Form the plural of a shape or of "object"."""
    return PLURALS.get(noun, noun + "s")


def join(parts: list[str]) -> str:
    """Write a list as a sentence: "A, b and c."."""
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def full_name(thing: Thing) -> str:
    """Name a thing by size, colour and shape."""
    return f"{thing.size} {thing.colour} {thing.shape}"


def short_name(thing: Thing) -> str:
    """Name a thing by colour and shape."""
    return f"{thing.colour} {thing.shape}"


def left_to_right(things) -> list[Thing]:
    """Order things as answers list them."""
    return sorted(things, key=lambda t: t.x)


def to_count(scene: Scene, thing: Thing) -> list[list[Thing]]:
    """Say what tells a thing's place and number: things left of it, above it, all, and those alike.

    Alike are first those of its shape, then those of its colour, itself among them.
    """
    return [
        [t for t in scene.things if t.x < thing.x],
        [t for t in scene.things if t.y < thing.y],
        scene.things,
        [t for t in scene.things if t.shape == thing.shape],
        [t for t in scene.things if t.colour == thing.colour],
    ]


def describe(scene: Scene) -> str:
    """Tell everything in a scene: things from left to right, then the printed text."""
    parts = [join([article(full_name(t)) for t in left_to_right(scene.things)])] if scene.things else []
    if scene.text:
        parts.append(f"It says {scene.text}.")
    return " ".join(parts)


def as_typed(rng: random.Random, question: str) -> str:
    """Type a question as people do: sometimes without capitals or the question mark."""
    draw = rng.random()
    if draw < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    return question


def colour_word(rng: random.Random) -> str:
    """Spell "colour" as the British or the Americans do."""
    return rng.choice(("colour", "color"))


def references(scene: Scene, thing: Thing) -> list[str]:
    """List the phrases that mean this thing and no other."""
    same = [t for t in scene.things if t is not thing]
    names = []
    if all(t.shape != thing.shape for t in same):
        names += [f"the {thing.shape}"] * 2
    if all(t.colour != thing.colour for t in same):
        names += [f"the {thing.colour} {w}" for w in ("object", "shape", "thing")][:2]
    if all(short_name(t) != short_name(thing) for t in same):
        names += [f"the {short_name(thing)}"] * 2
        names.append(f"the {full_name(thing)}")
    return names or [f"the {full_name(thing)}"]


def pick(rng: random.Random, scene: Scene) -> tuple[Thing, str]:
    """Choose a thing and a phrase for it."""
    thing = rng.choice(scene.things)
    return thing, rng.choice(references(scene, thing))


def ask_describe(rng, scene):
    """Ask for everything."""
    return Turn(rng.choice(say.ASK_DESCRIBE), describe(scene), "describe", listed=left_to_right(scene.things))


def ask_count(rng, scene):
    """Ask for the number of all things, or of those of one colour or shape; "None." as often as a number."""
    draw = rng.random()
    if draw < 0.35:
        return Turn(rng.choice(say.ASK_COUNT_ALL), NUMBERS[len(scene.things)].capitalize() + ".", "count")
    absent = rng.random() < 0.35 or not scene.things
    if draw < 0.65:
        shape = rng.choice(SHAPES) if absent else rng.choice(scene.things).shape
        what, n = plural(shape), sum(t.shape == shape for t in scene.things)
    else:
        colour = rng.choice(list(COLOURS)) if absent else rng.choice(scene.things).colour
        what, n = (
            f"{colour} {rng.choice(('objects', 'shapes', 'things'))}",
            sum(t.colour == colour for t in scene.things),
        )
    return Turn(rng.choice(say.ASK_COUNT).format(what), NUMBERS[n].capitalize() + ".", "count")


def ask_colour(rng, scene):
    """Ask a thing's colour; sometimes of a thing that is not there."""
    shapes = [s for s in SHAPES if all(t.shape != s for t in scene.things)]
    text = rng.choice(say.ASK_COLOUR)
    if not scene.things or rng.random() < 0.12:
        shape = rng.choice(shapes)
        return Turn(text.format(c=colour_word(rng), x=f"the {shape}"), f"There is no {shape}.", "colour")
    known = [t for t in scene.things if sum(u.shape == t.shape for u in scene.things) == 1]
    sized = [
        t for t in scene.things if sum((u.shape, u.size) == (t.shape, t.size) for u in scene.things) == 1
    ]
    if not sized:
        return None
    thing = rng.choice(known or sized)
    name = (
        f"the {thing.shape}" if thing in known and rng.random() < 0.8 else f"the {thing.size} {thing.shape}"
    )
    return Turn(text.format(c=colour_word(rng), x=name), thing.colour.capitalize() + ".", "colour", thing)


def ask_shape(rng, scene):
    """Ask a thing's shape by its colour; sometimes of a colour that is not there."""
    text = rng.choice(say.ASK_SHAPE)
    noun = rng.choice(("object", "thing", "one"))
    if not scene.things or rng.random() < 0.12:
        colour = rng.choice([c for c in COLOURS if all(t.colour != c for t in scene.things)])
        return Turn(text.format(x=f"the {colour} {noun}"), f"There is no {colour} object.", "shape")
    known = [t for t in scene.things if sum(u.colour == t.colour for u in scene.things) == 1]
    sized = [
        t for t in scene.things if sum((u.colour, u.size) == (t.colour, t.size) for u in scene.things) == 1
    ]
    if not sized:
        return None
    thing = rng.choice(known or sized)
    plain = thing in known and rng.random() < 0.8
    name = f"the {thing.colour} {noun}" if plain else f"the {thing.size} {thing.colour} {noun}"
    return Turn(text.format(x=name), article(thing.shape).capitalize() + ".", "shape", thing)


def ask_size(rng, scene):
    """Ask how big a thing is."""
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    names = [n for n in references(scene, thing) if thing.size not in n]
    if not names:
        return None
    return Turn(
        rng.choice(say.ASK_SIZE).format(x=rng.choice(names)), thing.size.capitalize() + ".", "size", thing
    )


def place_of(scene: Scene, thing: Thing) -> str | None:
    """Name the ninth of the picture that holds a thing's centre; None near a border."""
    names = []
    for value, extent, words in (
        (thing.y, scene.height, ("top", "", "bottom")),
        (thing.x, scene.width, ("left", "", "right")),
    ):
        third = value / extent * 3
        if min(abs(third - 1), abs(third - 2)) * extent / 3 < 0.025:
            return None
        names.append(words[min(2, max(0, int(third)))])
    return (" ".join(n for n in names if n) or "centre").capitalize() + "."


def ask_place(rng, scene):
    """Ask where in the picture a thing is."""
    if not scene.things:
        return None
    thing, name = pick(rng, scene)
    place = place_of(scene, thing)
    return place and Turn(rng.choice(say.ASK_PLACE).format(x=name), place, "position", thing)


def related(scene: Scene, thing: Thing, where: str) -> list[Thing] | None:
    """Find what lies on one side of a thing; None if any other thing is too close to call."""
    sign, axis = {"left": (-1, "x"), "right": (1, "x"), "above": (-1, "y"), "below": (1, "y")}[where]
    gaps = [(t, sign * (getattr(t, axis) - getattr(thing, axis))) for t in scene.things if t is not thing]
    if any(abs(gap) < CLEAR for _, gap in gaps):
        return None
    return left_to_right(t for t, gap in gaps if gap > 0)


def relation_answer(found: list[Thing]) -> str:
    """Write the answer to "what is left of …?"."""
    return join([article(short_name(t)) for t in found]) if found else "Nothing."


def ask_relation(rng, scene):
    """Ask what is left of, right of, above or below a thing."""
    if not scene.things or (len(scene.things) == 1 and rng.random() < 0.8):
        return None
    thing, name = pick(rng, scene)
    where = rng.choice(say.ASK_WHERE)
    found = related(scene, thing, where)
    if found is None or (not found and rng.random() < 0.5):
        return None
    text = rng.choice(say.ASK_RELATION).format(r=rng.choice(say.WORDS_WHERE[where]), x=name)
    return Turn(text, relation_answer(found), "position", thing, found)


def ask_is_relation(rng, scene):
    """Ask whether one thing is left of (right of, above, below) another."""
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    where = rng.choice(say.ASK_WHERE)
    gap = one.x - other.x if where in ("left", "right") else one.y - other.y
    if abs(gap) < CLEAR:
        return None
    yes = (gap < 0) == (where in ("left", "above"))
    x, y = rng.choice(references(scene, one)), rng.choice(references(scene, other))
    text = rng.choice(say.ASK_IS_RELATION).format(x=x, y=y, r=rng.choice(say.WORDS_WHERE[where]))
    return Turn(text, "Yes." if yes else "No.", "yes/no", one)


def absent_name(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    """Invent a colour and shape that are not there together, often near misses."""
    for _ in range(20):
        colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if scene.things and rng.random() < 0.7:
            thing = rng.choice(scene.things)
            colour, shape = rng.choice(((thing.colour, shape), (colour, thing.shape)))
        if all((t.colour, t.shape) != (colour, shape) for t in scene.things):
            return colour, shape
    return None


def ask_exists(rng, scene):
    """Ask whether there is a thing, by shape, by colour or by both; yes and no equally often."""
    yes = bool(scene.things) and rng.random() < 0.5
    draw = rng.random()
    if draw < 0.5:
        pair = (rng.choice(scene.things) if yes else None) or absent_name(rng, scene)
        name = short_name(pair) if yes else " ".join(pair)
        return Turn(
            rng.choice(say.ASK_EXISTS).format(x=article(name)),
            "Yes." if yes else "No.",
            "yes/no",
            pair if yes else None,
        )
    have = {t.shape for t in scene.things} if draw < 0.75 else {t.colour for t in scene.things}
    every = set(SHAPES) if draw < 0.75 else set(COLOURS)
    what = rng.choice(sorted(have if yes else every - have))
    if draw < 0.75:
        text = (
            rng.choice(say.ASK_EXISTS).format(x=article(what))
            if rng.random() < 0.6
            else rng.choice(say.ASK_ANY).format(plural(what))
        )
    else:
        noun = rng.choice(("object", "shape", "thing"))
        one = rng.random() < 0.5
        text = (
            rng.choice(say.ASK_EXISTS).format(x=article(f"{what} {noun}"))
            if one
            else rng.choice(say.ASK_ANY).format(f"{what} {noun}s")
        )
    return Turn(text, "Yes." if yes else "No.", "yes/no")


def ask_largest(rng, scene):
    """Ask for the largest or the smallest thing, if one is a class of its own."""
    if len(scene.things) < 2:
        return None
    small = rng.random() < 0.4
    order = sorted(scene.things, key=lambda t: t.diameter, reverse=not small)
    if order[0].size == order[1].size:
        return None
    text = rng.choice(say.ASK_LARGEST).format(
        s=rng.choice(("smallest", "tiniest")) if small else rng.choice(("largest", "biggest"))
    )
    return Turn(text, f"The {short_name(order[0])}.", "largest", order[0], order[:1])


def ask_read(rng, scene):
    """Ask what is printed."""
    if not scene.text and rng.random() < 0.6:
        return None
    return Turn(
        rng.choice(say.ASK_READ), f"It says {scene.text}." if scene.text else "There is no text.", "reading"
    )


def ask_text(rng, scene):
    """Ask whether anything is printed."""
    return Turn(rng.choice(say.ASK_TEXT), "Yes." if scene.text else "No.", "yes/no")


ASKERS = {
    ask_describe: 2.0,
    ask_count: 2.0,
    ask_colour: 1.5,
    ask_shape: 1.5,
    ask_size: 0.7,
    ask_place: 0.9,
    ask_relation: 3.5,
    ask_is_relation: 1.3,
    ask_exists: 1.8,
    ask_largest: 0.8,
    ask_read: 1.6,
    ask_text: 0.3,
}


def ask(rng: random.Random, scene: Scene, asker=None) -> Turn:
    """Ask one question about a scene.

    Parameters
    ----------
    rng : random.Random
    scene : Scene
    asker : callable, optional
        One of `ASKERS`; drawn by weight if None, again if it has nothing to ask.

    Returns
    -------
    Turn
    """
    while True:
        turn = (asker or rng.choices(list(ASKERS), list(ASKERS.values()))[0])(rng, scene)
        if turn:
            turn.question = as_typed(rng, turn.question)
            return turn


def follow(rng: random.Random, scene: Scene, thing: Thing) -> Turn | None:
    """Ask about "it", the thing of the turn before."""
    draw = rng.randrange(4)
    if draw == 0:
        place = place_of(scene, thing)
        return place and Turn(rng.choice(say.FOLLOW_PLACE), place, "position", thing)
    if draw == 1:
        return Turn(rng.choice(say.FOLLOW_SIZE), thing.size.capitalize() + ".", "size", thing)
    if draw == 2:
        return Turn(
            rng.choice(say.FOLLOW_COLOUR).format(c=colour_word(rng)),
            thing.colour.capitalize() + ".",
            "colour",
            thing,
        )
    where = rng.choice(say.ASK_WHERE)
    found = related(scene, thing, where)
    if found is None:
        return None
    text = rng.choice(say.FOLLOW_RELATION).format(r=rng.choice(say.WORDS_WHERE[where]))
    return Turn(text, relation_answer(found), "position", thing, found)


def converse(rng: random.Random, scene: Scene, turns: int) -> list[Turn]:
    """Hold a conversation of several turns about one scene; some turns say "it"."""
    talk: list[Turn] = []
    while len(talk) < turns:
        turn = None
        if talk and talk[-1].thing and rng.random() < 0.5:
            turn = follow(rng, scene, talk[-1].thing)
            if turn:
                turn.question = as_typed(rng, turn.question)
        talk.append(turn or ask(rng, scene))
    return talk
