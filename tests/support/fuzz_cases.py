"""What the fuzzers do: damaged models, damaged images, and calls in any order from two threads."""

from __future__ import annotations

import contextlib
import gc
import io
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_native import Context, ImageEmbedding, ImageEncoder, Model, Sampler, SamplingParams
from llava_native._native import live_counts
from llava_native._state import get_state, set_state
from llava_native.errors import LlavaError
from llava_native.images import open_image

from . import damage
from .gguf_parts import Parts, RawTensor

Run = Callable[[int], None]
NUMBERS = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "JPEG2000")
ALLOWED = (LlavaError, ValueError, TypeError, OverflowError, BufferError, OSError)


def check_nothing_left() -> None:
    """Raise where a native object is alive that nobody holds."""
    gc.collect()
    left = {kind: n for kind, n in live_counts().items() if n}
    if left:
        raise AssertionError(f"alive after all was closed: {left}")


# -- model files


def _value(rng: random.Random) -> Any:
    """Invent a metadata value of any type."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(NUMBERS),
        lambda: np.int32(rng.choice((-1, 0, 5, -(2**31)))),
        lambda: np.uint64(rng.choice((0, 2**63, 2**64 - 1))),
        lambda: np.uint8(rng.randrange(256)),
        lambda: float(rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))),
        lambda: np.float64(rng.random()),
        lambda: rng.random() < 0.5,
        lambda: rng.choice(
            ("", "llama", "gpt2", "phi3", "yarn", "x" * 300, "a\0b", "\ufffd{{", "mlp", "resampler")
        ),
        lambda: [rng.random() for _ in range(1 + rng.randrange(5))],
        lambda: [rng.randrange(-3, 40) for _ in range(1 + rng.randrange(6))],
        lambda: ["t" * rng.randrange(4) for _ in range(1 + rng.randrange(400))],
    )
    return rng.choice(makers)()


def _change_key(parts: Parts, rng: random.Random) -> None:
    key = rng.choice(list(parts.kv))
    draw = rng.random()
    if draw < 0.2:
        del parts.kv[key]
    elif draw < 0.3:
        raw = bytearray(parts.kv[key])
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        parts.kv[key] = bytes(raw)
    elif draw < 0.4:
        parts.extra_kv.append((key.encode(), parts.kv[key]))
    else:
        with contextlib.suppress(KeyError, OverflowError, ValueError, AttributeError):
            parts.set(key, _value(rng))


def _change_tensor(parts: Parts, rng: random.Random) -> None:
    name = rng.choice(list(parts.tensors))
    tensor = parts.tensors[name]
    draw = rng.random()
    if draw < 0.2:
        del parts.tensors[name]
    elif draw < 0.5:
        shape = list(tensor.shape)
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 3, 31, 32, 64, 96, 2**20, 2**40))
        parts.tensors[name] = RawTensor(tuple(shape), tensor.type, tensor.data)
    elif draw < 0.65:
        with contextlib.suppress(Exception):
            parts.reshape(name, (*tensor.shape[:-1], tensor.shape[-1] + rng.choice((-1, 1))))
    elif draw < 0.8:
        parts.tensors[name] = RawTensor(tensor.shape, rng.randrange(45), tensor.data)
    elif draw < 0.9:
        noise = rng.randbytes(min(len(tensor.data), 4096))
        parts.tensors[name] = RawTensor(tensor.shape, tensor.type, noise + tensor.data[len(noise) :])
    else:
        offset = rng.choice((0, 32, 33, 2**40, 2**63))
        parts.tensors[name] = RawTensor(tensor.shape, tensor.type, tensor.data, offset)


def _change_counts(parts: Parts, rng: random.Random) -> None:
    which = rng.choice(("n_tensors", "n_kv", "version"))
    setattr(parts, which, rng.choice((0, 1, 2, 4, 2**16, 2**31)))


def _change_bytes(data: bytes, rng: random.Random, header: int) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(min(header, len(raw)))
        size = rng.choice((1, 1, 2, 4, 8))
        raw[at : at + size] = rng.choice((rng.randbytes(size), b"\xff" * size, b"\0" * size))
    if rng.random() < 0.15:
        del raw[rng.randrange(len(raw)) :]
    return bytes(raw)


def _damaged_file(good: Path, target: Path, rng: random.Random) -> None:
    parts = Parts.read(good)
    changes = (_change_key, _change_key, _change_tensor, _change_tensor, _change_counts)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        rng.choice(changes)(parts, rng)
    try:
        data = parts.to_bytes()
    except (struct.error, OverflowError):
        data = good.read_bytes()
    if rng.random() < 0.3:
        data = _change_bytes(data, rng, 16_000)
    target.write_bytes(data)


def text_files(folder: Path) -> Run:
    """Load a damaged text model, and evaluate and sample with what loads."""
    good = damage.good_text(folder / "good.gguf")

    def run(number: int) -> None:
        rng = random.Random(f"text {number}")
        _damaged_file(good, folder / "bad.gguf", rng)
        try:
            with Model(folder / "bad.gguf") as model, Context(model, n_ctx=32, n_threads=1) as context:
                context.eval([1, 2, 3])
                for temperature in (0.0, 1.0):
                    Sampler(model, SamplingParams(temperature=temperature, seed=1)).sample(context)
        except ALLOWED:
            pass

    return run


def mmproj_files(folder: Path) -> Run:
    """Load a damaged mmproj, and encode with what loads."""
    layouts = ("legacy", "full", "modern")
    goods = [damage.good_mmproj(folder / f"{layout}.gguf", layout=layout) for layout in layouts]
    image = Image.new("RGB", (20, 10), "red")

    def run(number: int) -> None:
        rng = random.Random(f"mmproj {number}")
        _damaged_file(rng.choice(goods), folder / "bad.gguf", rng)
        try:
            with ImageEncoder(folder / "bad.gguf", n_threads=1) as encoder:
                encoder.encode(image)
        except ALLOWED:
            pass

    return run


# -- images


def images(kind: str) -> Callable[[Path], Run]:
    """Decode damaged images of one of Pillow's formats."""

    def make(_folder: Path) -> Run:
        noise = Image.effect_noise((48, 32), 60).convert("RGB")
        goods = []
        for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK"):
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                noise.convert(mode).save(file, kind)
                goods.append(file.getvalue())

        def run(number: int) -> None:
            rng = random.Random(f"{kind} {number}")
            good = rng.choice(goods)
            header = rng.choice((64, 256, len(good)))
            with contextlib.suppress(*ALLOWED):
                open_image(_change_bytes(good, rng, header), max_pixels=1 << 22)

        return run

    return make


# -- calls


class Calls:
    """Objects of every kind, and calls on them in any order, from two threads at once."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.models: list[Model] = []
        self.contexts: list[Context] = []
        self.encoders: list[ImageEncoder] = []
        self.rows: list[ImageEmbedding] = []
        self.samplers: list[Sampler] = []
        self.states: list[bytes] = [b""]

    def model(self) -> None:
        self.models.append(Model(self.folder / "good.gguf"))

    def context(self) -> None:
        n_ctx = self.rng.choice((8, 64, 256))
        model = self.rng.choice(self.models)
        self.contexts.append(Context(model, n_ctx=n_ctx, n_seq_max=self.rng.choice((1, 3)), n_threads=1))

    def encoder(self) -> None:
        self.encoders.append(ImageEncoder(self.folder / "mmproj.gguf", n_threads=1))

    def encode(self) -> None:
        size = self.rng.randrange(1, 60), self.rng.randrange(1, 60)
        self.rows.append(self.rng.choice(self.encoders).encode(Image.new("RGB", size)))

    def own_rows(self) -> None:
        shape = self.rng.randrange(4), self.rng.choice((1, 64))
        self.rows.append(ImageEmbedding.from_buffer(np.zeros(shape, np.float32)))

    def evaluate(self) -> None:
        tokens = [self.rng.randrange(-1, 310) for _ in range(self.rng.randrange(9))]
        given = self.rng.choice([tokens, *self.rows])
        self.rng.choice(self.contexts).eval(given, seq=self.rng.randrange(-1, 4))

    def batch(self) -> None:
        entries = [
            (self.rng.randrange(-1, 4), [self.rng.randrange(300)] * self.rng.randrange(4), True)
            for _ in range(3)
        ]
        self.rng.choice(self.contexts).eval_batch(entries)

    def truncate(self) -> None:
        context = self.rng.choice(self.contexts)
        context.truncate_sequence(self.rng.randrange(-1, 4), self.rng.randrange(-1, 20))

    def copy(self) -> None:
        context = self.rng.choice(self.contexts)
        context.copy_sequence(self.rng.randrange(4), self.rng.randrange(4), self.rng.choice((None, 0, 3)))

    def state(self) -> None:
        self.states.append(get_state(self.rng.choice(self.contexts), self.rng.randrange(4)))

    def restore(self) -> None:
        state = self.rng.choice(self.states)
        set_state(self.rng.choice(self.contexts), state, self.rng.randrange(20), self.rng.randrange(4))

    def sampler(self) -> None:
        params = SamplingParams(temperature=self.rng.choice((0, 1)), seed=self.rng.randrange(9))
        self.samplers.append(Sampler(self.rng.choice(self.models), params))

    def sample(self) -> None:
        self.rng.choice(self.samplers).sample(self.rng.choice(self.contexts))

    def look(self) -> None:
        np.asarray(self.rng.choice(self.contexts).logits).sum()

    def tokenize(self) -> None:
        self.rng.choice(self.models).tokenize("w1 \ud83d w2"[: self.rng.randrange(9)])

    def close(self) -> None:
        pool: list[Any] = self.rng.choice((self.models, self.contexts, self.encoders, self.samplers))
        self.rng.choice(pool).close()

    def drop(self) -> None:
        pool: list[Any] = self.rng.choice((self.rows, self.samplers, self.states))
        del pool[self.rng.randrange(len(pool))]

    def play(self, n: int) -> None:
        """Make `n` random calls."""
        names = [name for name in vars(Calls) if not name.startswith("_") and name not in ("play", "end")]
        for _ in range(n):
            with contextlib.suppress(IndexError, UnicodeError, *ALLOWED):
                getattr(self, self.rng.choice(names))()

    def end(self) -> None:
        """Close everything, what needs others first."""
        self.rows.clear()
        for pool in (self.samplers, self.contexts, self.encoders, self.models):
            for thing in pool:
                thing.close()


def calls(folder: Path) -> Run:
    """Play two random programs at once on the same objects."""
    damage.good_text(folder / "good.gguf")
    damage.good_mmproj(folder / "mmproj.gguf")

    def run(number: int) -> None:
        game = Calls(folder, random.Random(f"calls {number}"))
        game.model()
        game.context()
        other = threading.Thread(target=game.play, args=(25,))
        other.start()
        game.play(25)
        other.join()
        game.end()

    return run


KINDS: dict[str, Callable[[Path], Run]] = {
    "text": text_files,
    "mmproj": mmproj_files,
    "calls": calls,
    **{kind: images(kind) for kind in FORMATS},
}
