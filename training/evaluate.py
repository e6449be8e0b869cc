"""Measure what share of the answers on held-out scenes is right, by kind of question.

``python -m training.evaluate --model text.gguf --mmproj mmproj.gguf`` prints the table.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from . import data_talk
from .data_pairs import ask_pair
from .data_scene import Scene, degrade, draw_scene, sample_scene
from .data_talk import Turn

HELD_OUT = 1 << 41  # apart from training's seeds and from those of the checks during training
ASKED = {
    "describe": data_talk.ask_describe,
    "count": data_talk.ask_count,
    "colour": data_talk.ask_colour,
    "shape": data_talk.ask_shape,
    "size": data_talk.ask_size,
    "position": data_talk.ask_relation,
    "place": data_talk.ask_place,
    "yes/no": data_talk.ask_exists,
    "left/right yes/no": data_talk.ask_is_relation,
    "largest": data_talk.ask_largest,
    "reading": data_talk.ask_read,
}
GOALS = {
    "describe": 95,
    "colour": 98,
    "shape": 98,
    "count": 97,
    "position": 95,
    "yes/no": 97,
    "reading": 85,
    "two images": 90,
}
VARIANTS = ("plain", "jpeg60", "half", "quadruple", "wide")


@dataclass
class Item:
    """One conversation to hold: pictures, its turns with the true answers, and the kind it counts for."""

    kind: str
    pictures: list[Image.Image]
    turns: list[Turn]


def paint(scene: Scene, rng: random.Random, variant: str) -> Image.Image:
    """Draw a scene as a variant asks: degraded as in training, or JPEG 60, half or four times the size."""
    side = rng.randint(160, 420)
    picture, _ = draw_scene(scene, {"half": side // 2, "quadruple": side * 4}.get(variant, side))
    if variant == "plain":
        return degrade(picture, rng)
    if variant == "jpeg60":
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=60)
        return Image.open(file).convert("RGB")
    return picture


def sample_variant(seed: int, variant: str) -> Scene:
    """Sample a scene; for "wide", search the seed's neighbours for one of about 2:1."""
    scene = sample_scene(seed)
    step = 1
    while variant == "wide" and scene.width / scene.height < 1.85 and step < 4000:
        scene = sample_scene(seed + step * 7919)
        step += 1
    return scene


def held_out(scenes: int, variant: str = "plain", start: int = HELD_OUT):
    """Yield the questions about held-out scenes, always the same.

    Parameters
    ----------
    scenes : int
        Number of scenes; each is asked one question of every kind that it allows.
    variant : str
        One of `VARIANTS`.
    start : int
        First seed.

    Yields
    ------
    Item
    """
    before = None
    for i in range(scenes):
        scene = sample_variant(start + i, variant)
        rng = random.Random(start + i)
        picture = paint(scene, rng, variant)
        for kind, asker in ASKED.items():
            turn = next(filter(None, (asker(rng, scene) for _ in range(6))), None)
            if turn:
                turn.question = data_talk.as_typed(rng, turn.question)
                yield Item(kind, [picture], [turn])
        if i % 4 == 0:
            yield Item("conversation", [picture], data_talk.converse(rng, scene, 3))
        if before:
            yield Item("two images", [before[1], picture], [ask_pair(rng, before[0], scene)])
        before = (scene, picture)


def same(kind: str, answer: str, truth: str) -> bool:
    """Compare with the true answer: exactly, but a description may list things in any order."""
    if answer.strip() == truth:
        return True
    if kind not in ("describe", "position"):
        return False
    parts = [
        sorted(p for p in re.split(r", | and |\. ?", text.strip().lower()) if p) for text in (answer, truth)
    ]
    return parts[0] == parts[1]


class TorchBackend:
    """Answer with the checkpoint in PyTorch, through Hugging Face's own ``generate``.

    Parameters
    ----------
    folder : Path
        Training's output folder.
    """

    def __init__(self, folder: Path):
        import torch

        from .data import Packer, load_tokenizer
        from .export import load_trained

        self.torch, self.model = torch, load_trained(folder).llava
        self.packer = Packer(load_tokenizer(folder))

    def pixels(self, pictures: list[Image.Image]):
        """Preprocess as LLaVA does."""
        import numpy as np

        from .data_scene import preprocess
        from .model import IMAGE_SIZE, normalise

        return normalise(self.torch.from_numpy(np.stack([preprocess(p, IMAGE_SIZE) for p in pictures])))

    def __call__(self, pictures: list[Image.Image], questions: list[str]) -> list[str]:
        """Hold a conversation of several turns about pictures shown in the first."""
        torch, packer = self.torch, self.packer
        pixels, answers = self.pixels(pictures), []
        for n in range(len(questions)):
            turns = [Turn(q, a, "") for q, a in zip(questions, [*answers, ""], strict=False)]
            ids = packer.prefix(len(pictures)) + packer.turns(turns)[0][:-1]
            with torch.inference_mode():
                tokens = torch.tensor([ids])
                out = self.model.generate(
                    input_ids=tokens,
                    pixel_values=pixels,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=False,
                    max_new_tokens=80,
                    eos_token_id=packer.id["<|end|>"],
                    pad_token_id=packer.id["<pad>"],
                )
            answers.append(
                packer.tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True).strip()
            )
            assert len(answers) == n + 1
        return answers


class NativeBackend:
    """Answer with GGUF files through `llava_native`.

    Parameters
    ----------
    model, mmproj : str or None
        Paths; the embedded model if None.
    """

    def __init__(self, model: str | None, mmproj: str | None):
        from llava_native import Llava

        # one thread: the network is so small that a second one waits more than it works
        self.llava = Llava(model, mmproj, n_threads=1) if model else Llava.demo(n_threads=1)

    def __call__(self, pictures: list[Image.Image], questions: list[str]) -> list[str]:
        """Hold a conversation of several turns about pictures shown in the first."""
        if len(questions) == 1:
            result = self.llava.generate(questions[0], image=pictures, max_tokens=80, temperature=0)
            return [result.text.strip()]
        chat, answers = self.llava.chat(), []
        for n, question in enumerate(questions):
            stream = chat.send(question, image=pictures if n == 0 else None, max_tokens=80, temperature=0)
            answers.append("".join(token.text for token in stream).strip())
        return answers


def evaluate(backend, items, show_wrong: int = 0) -> dict[str, tuple[int, int]]:
    """Ask everything and count.

    Parameters
    ----------
    backend : callable
        ``backend(pictures, questions)`` gives one answer a question.
    items : iterable of Item
    show_wrong : int, default 0
        Print so many wrong answers of each kind.

    Returns
    -------
    dict
        kind → (right, asked). A conversation is right if every turn is.
    """
    table = defaultdict(lambda: [0, 0])
    for item in items:
        answers = backend(item.pictures, [t.question for t in item.turns])
        right = all(same(t.kind, a, t.answer) for t, a in zip(item.turns, answers, strict=True))
        table[item.kind][0] += right
        table[item.kind][1] += 1
        if not right and table[item.kind][1] - table[item.kind][0] <= show_wrong:
            for turn, answer in zip(item.turns, answers, strict=True):
                print(f"  {item.kind}: {turn.question!r} -> {answer!r}, true: {turn.answer!r}", flush=True)
    return {k: tuple(v) for k, v in table.items()}


def as_markdown(tables: dict[str, dict]) -> str:
    """Write accuracy tables, one column a variant, as Markdown."""
    names = list(tables)
    lines = [f"| Question | Goal | {' | '.join(names)} |", "|---|---:" + "|---:" * len(names) + "|"]
    for kind in tables[names[0]]:
        cells = [tables[n].get(kind, (0, 0)) for n in names]
        shown = " | ".join(f"{100 * r / n:.1f} %" if n else "-" for r, n in cells)
        goal = f"{GOALS[kind]} %" if kind in GOALS else ""
        lines.append(f"| {kind} | {goal} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--backend", choices=("llava_native", "torch"), default="llava_native")
    add("--model", help="text model (GGUF); the embedded one if not given")
    add("--mmproj", help="image encoder (GGUF)")
    add(
        "--out", type=Path, default=Path.home() / ".cache/llava_native/training", help="checkpoint, for torch"
    )
    add("--scenes", type=int, default=1000)
    add("--variants", nargs="+", choices=VARIANTS, default=["plain"])
    add("--show-wrong", type=int, default=0)
    add("--json", type=Path, help="also write the counts here")
    args = parser.parse_args()
    native = args.backend == "llava_native"
    backend = NativeBackend(args.model, args.mmproj) if native else TorchBackend(args.out)
    begin = time.time()
    tables = {v: evaluate(backend, held_out(args.scenes, v), args.show_wrong) for v in args.variants}
    print(as_markdown(tables))
    print(f"\n{args.scenes} held-out scenes a column, {time.time() - begin:.0f} s, backend {args.backend}")
    if args.json:
        args.json.write_text(json.dumps(tables))


if __name__ == "__main__":
    main()
