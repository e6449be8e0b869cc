"""Scenes drawn by code: a few coloured shapes and perhaps a printed word, with everything known about them.

Lengths are fractions of the picture's long side, so that a scene is the same whatever its size in pixels.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .data_words import WORDS

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "crescent")
COLOURS = {
    "red": (214, 28, 34),
    "green": (36, 152, 58),
    "blue": (34, 72, 212),
    "yellow": (246, 216, 32),
    "orange": (245, 130, 20),
    "purple": (124, 38, 160),
    "pink": (250, 132, 182),
    "brown": (112, 64, 26),
    "black": (18, 18, 20),
    "white": (249, 249, 248),
}
SIZES = {"small": (0.17, 0.2), "medium": (0.25, 0.295), "large": (0.37, 0.43)}
STYLES = ("flat", "edged", "outlined", "shaded")
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MEAN_COLOUR = (122, 116, 104)
FONT_FOLDERS = ("dejavu", "liberation", "freefont")
FONT_SKIP = ("Math", "ExtraLight", "Italic", "Oblique")


@dataclass
class Thing:
    """One shape: names, centre and diameter (fractions of the long side), rotation in degrees."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float
    style: str


@dataclass
class Scene:
    """A picture's whole truth; `width` and `height` are fractions of the long side (one of them is 1)."""

    width: float
    height: float
    things: list[Thing] = field(default_factory=list)
    text: str = ""
    text_box: tuple[float, float, float] = (0.0, 0.0, 0.0)  # centre x, centre y, font size
    text_angle: float = 0.0
    background: tuple = ()
    seed: int = 0


@functools.cache
def training_fonts() -> tuple[str, ...]:
    """List the upright fonts of the Debian packages fonts-dejavu-core, -liberation and -freefont-ttf."""
    paths = sorted(p for f in FONT_FOLDERS for p in Path("/usr/share/fonts/truetype", f).glob("*.ttf"))
    names = tuple(str(p) for p in paths if not any(s in p.name for s in FONT_SKIP))
    if not names:
        packages = "fonts-dejavu-core fonts-liberation fonts-freefont-ttf"
        raise FileNotFoundError(f"no fonts: apt-get install {packages}")
    return names


@functools.lru_cache(maxsize=512)
def load_font(path: str, pixels: int) -> ImageFont.FreeTypeFont:
    """Open a font once for each size."""
    return ImageFont.truetype(path, pixels)


def distance(a, b) -> float:
    """Measure how different two RGB colours look (weighted Euclidean, 0 to about 765)."""
    mean = (a[0] + b[0]) / 2
    dr, dg, db = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt((2 + mean / 256) * dr * dr + 4 * dg * dg + (2 + (255 - mean) / 256) * db * db)


def sample_text(rng: random.Random, strange: float = 0.25) -> str:
    """Pick a short word, a number of up to three digits or, rarely, letters that are no word."""
    draw = rng.random()
    if draw < 0.3:
        return str(rng.randint(0, 10 ** rng.randint(1, 3) - 1))
    if draw < 0.3 + 0.7 * strange:
        return "".join(rng.choice(CHARS[:26]) for _ in range(rng.randint(2, 5)))
    return rng.choice(WORDS)


def sample_background(rng: random.Random, avoid: list) -> tuple:
    """Choose one or two background colours that no foreground colour can be mistaken for, and a texture."""
    base = None
    for limit in (170, 150, 130, 110, 90, 60):
        for _ in range(12):
            draw = rng.random()
            if draw < 0.35:
                level = rng.randint(0, 255)
                base = tuple(max(0, min(255, level + rng.randint(-6, 6))) for _ in range(3))
            else:
                base = tuple(rng.randint(0, 255) for _ in range(3))
            if all(distance(base, c) >= limit for c in avoid):
                break
        else:
            continue
        break
    other = base
    kind = rng.choices(("plain", "gradient", "noise"), (0.4, 0.35, 0.25))[0]
    if kind == "gradient":
        for _ in range(20):
            spread = rng.randint(15, 80)
            other = tuple(max(0, min(255, v + rng.randint(-spread, spread))) for v in base)
            if all(distance(other, c) >= 90 for c in avoid):
                break
        else:
            other = base
    return base, other, kind, rng.random() * 360, rng.uniform(4, 18)


def _place(rng: random.Random, scene: Scene, diameter: float, overlap: float) -> tuple[float, float] | None:
    """Find a centre that keeps clear of the other things; None if there is no room."""
    half = diameter / 2
    for _ in range(40):
        x = rng.uniform(half * 0.98 + 0.01, scene.width - half * 0.98 - 0.01)
        y = rng.uniform(half * 0.98 + 0.01, scene.height - half * 0.98 - 0.01)
        clear = all(
            math.hypot(x - t.x, y - t.y) >= overlap * (half + t.diameter / 2) and abs(x - t.x) >= 0.035
            for t in scene.things
        )
        if clear and scene.text:
            tx, ty, size = scene.text_box
            wide = 0.36 * size * len(scene.text) + half * 0.9
            clear = abs(x - tx) > wide or abs(y - ty) > 0.5 * size + half * 0.95
        if clear:
            return x, y
    return None


def _sample_names(rng: random.Random, n: int) -> list[tuple[str, str, str]]:
    """Draw n different (size, colour, shape), often sharing a colour or a shape to be counted."""
    colours, shapes = list(COLOURS), list(SHAPES)
    if rng.random() < 0.35:
        colours = rng.sample(colours, 2)
    if rng.random() < 0.35:
        shapes = rng.sample(shapes, 2)
    names: list[tuple[str, str, str]] = []
    weights = (0.4, 0.35, 0.25) if n > 2 else (0.33, 0.34, 0.33)
    while len(names) < n:
        size = rng.choices(list(SIZES), weights)[0]
        one = (size, rng.choice(colours), rng.choice(shapes))
        if one not in names:
            names.append(one)
    return sorted(names, key=lambda name: -SIZES[name[0]][0])


def sample_scene(seed: int, max_things: int = 5, text_rate: float = 0.4) -> Scene:
    """Invent one scene.

    Parameters
    ----------
    seed : int
        Decides everything: the same seed gives the same scene and picture.
    max_things : int, default 5
        Upper limit of the number of shapes (a curriculum begins with fewer).
    text_rate : float, default 0.4
        How often a word or number is printed.

    Returns
    -------
    Scene
    """
    rng = random.Random(seed)
    aspect = rng.choice((1.0, 1.0, rng.uniform(1, 2), rng.uniform(1, 2)))
    width, height = (1.0, 1 / aspect) if rng.random() < 0.6 else (1 / aspect, 1.0)
    scene = Scene(width, height, seed=seed)
    n = rng.choices(range(1, 6), (0.2, 0.2, 0.2, 0.2, 0.2))[0]
    n = min(n, max_things)
    if rng.random() < text_rate:
        n = min(n, 4) if rng.random() > 0.15 else 0
        _place_text(rng, scene)
    overlap = 0.72 if rng.random() < 0.25 else 1.03
    for size, colour, shape in _sample_names(rng, n):
        for smaller in list(SIZES)[list(SIZES).index(size) :: -1]:
            diameter = rng.uniform(*SIZES[smaller])
            spot = _place(rng, scene, diameter, overlap)
            if spot:
                break
        if not spot or any((t.size, t.colour, t.shape) == (smaller, colour, shape) for t in scene.things):
            continue
        angle = rng.uniform(-12, 12) if rng.random() < 0.5 else 0.0
        style = rng.choices(STYLES, (0.4, 0.2, 0.2, 0.2))[0]
        scene.things.append(Thing(shape, colour, smaller, *spot, diameter, angle, style))
    scene.background = sample_background(rng, [COLOURS[t.colour] for t in scene.things])
    return scene


def close_pairs(scene: Scene) -> int:
    """Count the pairs of things that are nearly above or beside each other: hard to put in order."""
    gaps = [
        abs(a - b)
        for axis in ("x", "y")
        for a, b in itertools.combinations([getattr(t, axis) for t in scene.things], 2)
    ]
    return sum(0.035 <= gap < 0.1 for gap in gaps)


def sample_hard_scene(seed: int, max_things: int = 5) -> Scene:
    """Invent a scene for training: a quarter the hardest of three to put in order, a quarter to read."""
    hardest = {2: close_pairs, 3: lambda scene: len(scene.text)}.get(seed % 4)
    if hardest is None:
        return sample_scene(seed, max_things)
    return max((sample_scene(seed + (n << 37), max_things) for n in range(3)), key=hardest)


def _place_text(rng: random.Random, scene: Scene) -> None:
    """Choose what is printed, how large and where, inside the picture."""
    scene.text = sample_text(rng)
    limit = 0.9 * scene.width / (0.72 * len(scene.text))
    size = min(rng.uniform(0.22, 0.32), limit)
    half = 0.36 * size * len(scene.text)
    x = rng.uniform(min(half, scene.width / 2), max(scene.width - half, scene.width / 2))
    y = rng.uniform(0.6 * size, scene.height - 0.6 * size)
    scene.text_box = (x, y, size)
    scene.text_angle = rng.uniform(-6, 6) if rng.random() < 0.3 else 0.0


def outline(shape: str) -> list[tuple[float, float]]:
    """Give a shape's corners in a box from -1 to 1 (y downwards)."""
    turn = [math.tau * i / 48 for i in range(48)]
    if shape == "circle":
        return [(math.cos(a), math.sin(a)) for a in turn]
    if shape == "square":
        return [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    if shape == "triangle":
        return [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)]
    if shape == "star":
        radius = [1.05, 0.42] * 5
        return [
            (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5) + 0.06)
            for i, r in enumerate(radius)
        ]
    if shape == "heart":
        return [
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 15.5
                - 0.1,
            )
            for a in turn
        ]
    if shape == "diamond":
        return [(0, -1.05), (0.66, 0), (0, 1.05), (-0.66, 0)]
    if shape == "cross":
        w = 0.34
        return [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
    outer = [math.radians(d) for d in range(40, 321, 8)]
    inner = [math.radians(d) for d in range(295, 64, -8)]
    return [(math.cos(a) + 0.1, math.sin(a)) for a in outer] + [
        (0.86 * math.cos(a) + 0.5, 0.86 * math.sin(a)) for a in inner
    ]


def _thing_mask(thing: Thing, pixels: float) -> Image.Image:
    """Draw one thing's coverage (0 to 255), antialiased, in a square that holds it."""
    side = max(4, round(pixels * 1.16))
    zoom = 3 if side < 160 else 2
    c, s = math.cos(math.radians(thing.angle)), math.sin(math.radians(thing.angle))
    scale, mid = zoom * pixels / 2, zoom * side / 2
    points = [(mid + scale * (x * c - y * s), mid + scale * (x * s + y * c)) for x, y in outline(thing.shape)]
    mask = Image.new("L", (side * zoom, side * zoom))
    draw = ImageDraw.Draw(mask)
    if thing.style == "outlined":
        thick = max(2, round(scale * (0.3 if thing.size == "small" else 0.22)))
        shrunk = [(mid + (x - mid) * 0.92, mid + (y - mid) * 0.92) for x, y in points]
        draw.line(shrunk + shrunk[:2], fill=255, width=thick, joint="curve")
    else:
        draw.polygon(points, fill=255)
    return mask.reduce(zoom)


def _paint(thing: Thing, rng: random.Random, mask: Image.Image) -> Image.Image:
    """Colour a square of the mask's size: flat, with an edge, or shaded from light to dark."""
    base = [max(0, min(255, v + rng.randint(-9, 9))) for v in COLOURS[thing.colour]]
    side = mask.size[0]
    if thing.style == "shaded":
        ramp = np.linspace(0, 1, side)[None, :, None] * np.ones((side, 1, 1))
        ramp = ramp if rng.random() < 0.5 else ramp.transpose(1, 0, 2)
        ramp = ramp[::-1] if rng.random() < 0.5 else ramp
        light = np.minimum(255, np.array(base) * 1.08 + 14)
        dark = np.array(base) * (0.86 if thing.colour == "white" else 0.7)
        return Image.fromarray((light + (dark - light) * ramp).astype(np.uint8))
    paint = Image.new("RGB", mask.size, tuple(base))
    if thing.style == "edged":
        thin = thing.shape in ("crescent", "star", "cross")
        width = max(3, int(side * (0.02 if thin else 0.04)) * 2 + 1)
        inner = mask.filter(ImageFilter.MinFilter(min(width, 9)))
        edge = (12, 12, 12) if sum(base) > 140 else (150, 150, 150)
        paint = Image.composite(paint, Image.new("RGB", mask.size, edge), inner)
    return paint


def _draw_background(scene: Scene, rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Fill the canvas: plain, gradient or noisy."""
    base, other, kind, angle, strength = scene.background
    if kind == "plain":
        return Image.new("RGB", size, base)
    width, height = size
    if kind == "gradient":
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        ramp = np.linspace(-0.5, 0.5, width)[None, :] * c + np.linspace(-0.5, 0.5, height)[:, None] * s
        ramp = (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
        pixels = np.array(base) + ramp[:, :, None] * (np.array(other) - np.array(base))
    else:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((height, width, 1), np.float32)
        pixels = np.array(base, np.float32) + noise * strength
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_text(canvas: Image.Image, ids: Image.Image, scene: Scene, rng: random.Random, fonts) -> None:
    """Print the scene's text; in the id picture each character's box tells its place and which it is."""
    long_side = max(canvas.size)
    x, y, size = scene.text_box
    font = load_font(rng.choice(fonts or training_fonts()), max(6, round(size * long_side)))
    starts = [font.getlength(scene.text[:i]) for i in range(len(scene.text) + 1)]
    left, top, right, bottom = font.getbbox(scene.text)
    pad = 3
    box = (round(max(right, starts[-1]) - min(left, 0)) + 2 * pad, bottom - top + 2 * pad)
    alpha, marks = Image.new("L", box), Image.new("L", box)
    ImageDraw.Draw(alpha).text((pad - min(left, 0), pad - top), scene.text, fill=255, font=font)
    draw = ImageDraw.Draw(marks)
    for i, char in enumerate(scene.text):
        draw.rectangle(
            (starts[i] + pad, pad, starts[i + 1] + pad - 1, box[1] - pad),
            fill=10 + i * len(CHARS) + CHARS.index(char),
        )
    if scene.text_angle:
        alpha = alpha.rotate(scene.text_angle, Image.Resampling.BILINEAR, expand=True)
        marks = marks.rotate(scene.text_angle, Image.Resampling.NEAREST, expand=True)
    spot = (round(x * long_side - alpha.size[0] / 2), round(y * long_side - alpha.size[1] / 2))
    spot = tuple(max(0, min(s, c - a)) for s, c, a in zip(spot, canvas.size, alpha.size, strict=True))
    inks = [c for c in COLOURS.values() if all(distance(c, b) > 260 for b in scene.background[:2])]
    plain = [
        c for c in ((15, 15, 15), (245, 245, 245)) if all(distance(c, b) > 260 for b in scene.background[:2])
    ]
    ink = rng.choice(plain) if plain and rng.random() < 0.6 else rng.choice(inks or plain or [(0, 0, 0)])
    canvas.paste(Image.new("RGB", alpha.size, ink), spot, alpha)
    ids.paste(marks, spot, marks.point(lambda v: 255 if v else 0))


def draw_scene(scene: Scene, long_side: int = 240, fonts=None) -> tuple[Image.Image, Image.Image]:
    """Paint a scene.

    Parameters
    ----------
    scene : Scene
    long_side : int, default 240
        Pixels of the longer side.
    fonts : sequence of str, optional
        Font files to choose from; the training fonts if None.

    Returns
    -------
    picture : PIL.Image.Image
        RGB.
    ids : PIL.Image.Image
        Mode "L", same size: 0 background, 1 + i the i-th thing, 10 + p * 36 + c the character CHARS[c]
        at place p of the text.
    """
    rng = random.Random(scene.seed ^ 0x5EED)
    size = (max(8, round(scene.width * long_side)), max(8, round(scene.height * long_side)))
    canvas = _draw_background(scene, rng, size)
    ids = Image.new("L", size)
    if scene.text:
        _draw_text(canvas, ids, scene, rng, fonts)
    for i, thing in enumerate(scene.things):
        mask = _thing_mask(thing, thing.diameter * long_side)
        spot = (round(thing.x * long_side - mask.size[0] / 2), round(thing.y * long_side - mask.size[1] / 2))
        canvas.paste(_paint(thing, rng, mask), spot, mask)
        ids.paste(
            1 + i,
            (*spot, spot[0] + mask.size[0], spot[1] + mask.size[1]),
            mask.point(lambda v: 255 * (v > 99)),
        )
    return canvas, ids


def degrade(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Make a picture worse, as the world does: blur, sensor noise, JPEG."""
    draw = rng.random()
    if draw < 0.12:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * max(picture.size) / 200))
    elif draw < 0.2:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(
            0, rng.uniform(2, 9), (*picture.size[::-1], 1)
        )
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(40, 95))
        picture = Image.open(file).convert("RGB")
    return picture


def square(picture: Image.Image, fill) -> Image.Image:
    """Pad to a centred square, as LLaVA does (``expand2square``)."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    canvas = Image.new(picture.mode, (side, side), fill)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def preprocess(picture: Image.Image, side: int) -> np.ndarray:
    """Pad with the mean colour and resize bicubically: uint8 ``(side, side, 3)``, what the tower sees."""
    return np.asarray(square(picture, MEAN_COLOUR).resize((side, side), Image.Resampling.BICUBIC))
