"""From scenes and questions to batches: the tokenizer, packed sequences, truth for each patch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from . import data_pairs, data_talk
from .data_scene import (
    CHARS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    degrade,
    draw_scene,
    preprocess,
    sample_hard_scene,
    sample_scene,
    square,
)
from .data_talk import left_to_right, to_count
from .model import IMAGE_SIZE, N_IMAGE_TOKENS, PATCH_SIZE, POINTING_LAYERS

SPECIAL = ("<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<image>", "<pad>", "<|endoftext|>")
VOCAB_SIZE = 768
HELD_OUT = 1 << 40  # seeds from here on are never trained on
LENGTH = 512


def make_tokenizer(bpe: models.BPE) -> Tokenizer:
    """Make a byte-level tokenizer with GPT-2's splitting rule."""
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(path: Path, scenes: int = 6000) -> Tokenizer:
    """Train a byte-level BPE on the conversations' own words.

    Printed words are left out, so that they are spelt letter by letter.
    """
    rng = random.Random(7)
    lines = []
    for seed in range(scenes):
        scene = sample_scene(seed, text_rate=0)
        other = sample_scene(seed + scenes, text_rate=0)
        turns = [*data_talk.converse(rng, scene, 6), data_pairs.ask_pair(rng, scene, other)]
        lines += [t.question for t in turns] + [t.answer for t in turns]
    lines += ["It says", "There is no text."] * 200
    tokenizer = make_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(path))
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open ``tokenizer.json`` in `folder`, training it first if it is not there."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer(path)
    return Tokenizer.from_file(str(path))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Map each special token to its id."""
    return {s: tokenizer.token_to_id(s) for s in SPECIAL}


def patch_truth(scene: Scene, ids: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Tell what is on each patch, and what is to be counted from there.

    Returns
    -------
    truth : ndarray
        float32 ``(n_patches, 15)``, see `model.PatchHeads.loss`.
    counted : ndarray
        bool ``(5, n_patches, 1 + n_patches)``, see `model.counting_loss`.
    """
    side = IMAGE_SIZE // PATCH_SIZE
    grid = np.asarray(square(ids, 0).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.NEAREST))
    blocks = grid.reshape(side, PATCH_SIZE, side, PATCH_SIZE).transpose(0, 2, 1, 3).reshape(side * side, -1)
    truth = np.zeros((side * side, 15), np.float32)
    counted = np.zeros((5, side * side, 1 + side * side), bool)
    offset = ((1 - scene.width) / 2, (1 - scene.height) / 2)
    best = np.full(side * side, 0.1 * PATCH_SIZE**2)
    middle = (np.arange(side) + 0.5) / side
    centres = {
        id(t): int(min(0.999, t.y + offset[1]) * side) * side + int(min(0.999, t.x + offset[0]) * side)
        for t in scene.things
    }
    for i, thing in enumerate(scene.things):
        count = (blocks == 1 + i).sum(1)
        here = count > best
        best = np.where(here, count, best)
        x, y = thing.x + offset[0], thing.y + offset[1]
        truth[here, 0:3] = (
            1 + SHAPES.index(thing.shape),
            1 + list(COLOURS).index(thing.colour),
            1 + list(SIZES).index(thing.size),
        )
        groups = to_count(scene, thing)
        truth[here, 4] = 1 + len(groups[0])
        truth[here, 6:10] = 1 + len(groups[1]), *(len(group) for group in groups[2:])
        truth[here, 11] = (x - np.tile(middle, side))[here]
        truth[here, 12] = (y - np.repeat(middle, side))[here]
        truth[here, 13:15] = x, y
        for kind, group in enumerate(groups):
            row = np.zeros(1 + side * side, bool)
            row[[0] + [1 + centres[id(t)] for t in group]] = True
            counted[kind][here] = row
    truth[list(centres.values()), 10] = 1
    centre = blocks.reshape(-1, PATCH_SIZE, PATCH_SIZE)[:, PATCH_SIZE // 2, PATCH_SIZE // 2].astype(int) - 10
    place, char = np.divmod(centre, len(CHARS))
    truth[:, 3] = np.where(centre >= 0, 1 + char, 0)
    truth[:, 5] = np.where(centre >= 0, 1 + place, 0)
    return truth, counted


def picture_of(scene: Scene, rng: random.Random) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a scene as the tower sees it, with the world's degradations, and its patches' truth."""
    long_side = rng.randint(80, 110) if rng.random() < 0.15 else rng.randint(110, 260)
    picture, ids = draw_scene(scene, long_side)
    return preprocess(degrade(picture, rng), IMAGE_SIZE), *patch_truth(scene, ids)


class Packer:
    """Write questions and answers as token sequences.

    A prefix (picture or pictures) is shared by segments that do not see one another: each segment is a
    conversation of its own about the same picture, as if the others did not exist.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.id = special_ids(tokenizer)
        self.newline = tokenizer.encode("\n").ids
        named = [[" " + word for word in group] for group in (SHAPES, COLOURS, SIZES)]
        self.words = [torch.tensor([self.text(word)[0] for word in group]) for group in [*named, CHARS]]
        forms = [
            [[word, data_talk.plural(word)] for word in SHAPES],
            [[w] for w in COLOURS],
            [[w] for w in SIZES],
        ]
        self.says = {  # token -> column of a patch's truth, value there
            self.text(" " + form)[0]: (column, 1 + i)
            for column, group in enumerate(forms)
            for i, words in enumerate(group)
            for form in words
        }

    def text(self, text: str) -> list[int]:
        """Tokenize plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, pictures: int, newline: bool = True) -> list[int]:
        """Begin a conversation with pictures (one ``<image>`` id for each of their tokens)."""
        ids = [self.id["<s>"], self.id["<|user|>"], *self.newline]
        for _ in range(pictures):
            ids += [self.id["<image>"]] * N_IMAGE_TOKENS + (self.newline if newline else [])
        return ids

    def turns(self, turns) -> tuple[list[int], list[float], list[tuple[int, int, Any]]]:
        """Write turns after the prefix, weigh each token, and tell what the questions are about.

        A token's weight is 0 where the model need not say it itself. A long answer weighs more than a short
        one, but less than its length: most questions are answered in a word or two, and a description in
        forty. The third list tells where to look from which token: (0, the last word of a name, what is true
        of the things so named, or the thing), (1, the token before the answer, the thing that it is about)
        and, for the names that an answer lists, (2, the token before each of a name's words, the thing).
        """
        ids: list[int] = []
        weights: list[float] = []
        about: list[tuple[int, int, Any]] = []
        for i, turn in enumerate(turns):
            start = [*self.newline, self.id["<|user|>"], *self.newline] if i else []
            ask = (
                start
                + self.text(turn.question)
                + [self.id["<|end|>"], *self.newline, self.id["<|assistant|>"]]
            )
            ask += self.newline
            say = [*self.text(turn.answer), self.id["<|end|>"]]
            about += [(0, len(ids) + at, truth) for at, truth in self.naming(ask)]
            if turn.thing is not None:
                about.append((1, len(ids) + len(ask) - 1, turn.thing))
            ids += ask
            if turn.listed:
                for (at, words), thing in zip(self.naming(say), turn.listed, strict=True):
                    about.append((0, len(ids) + at, thing))
                    about += [(2, len(ids) + at - back, thing) for back in range(1, len(words) + 1)]
            ids += say
            weights += [0.0] * len(ask) + [len(say) ** -0.5] * len(say)
        return ids, weights, about

    def naming(self, tokens: list[int]) -> list[tuple[int, dict[int, int]]]:
        """Find where a text has named things ("large red star"), and what is true of them.

        Returns
        -------
        list of (int, dict)
            Place of the name's last word in `tokens`; column of `patch_truth` → value. A size names nothing.
        """
        found: list[tuple[int, dict[int, int]]] = []
        for i, token in enumerate(tokens):
            if token in self.says:
                column, value = self.says[token]
                goes_on = bool(found) and found[-1][0] == i - 1 and column not in found[-1][1]
                before = found.pop()[1] if goes_on else {}
                found.append((i, before | {column: value}))
        return [(i, truth) for i, truth in found if set(truth) != {2}]

    def pack(self, prefix: list[int], segments, length: int = LENGTH) -> dict[str, Any]:
        """Fill one row: ids, segment (0 prefix, -1 padding), position, label (-100: none), weight, about."""
        about: list[tuple[int, int, Any]] = []
        ids, segment, position = list(prefix), [0] * len(prefix), list(range(len(prefix)))
        label, weight = [-100] * len(prefix), [0.0] * len(prefix)
        for number, (tokens, weights, things) in enumerate(segments, 1):
            if len(ids) + len(tokens) > length:
                continue
            about += [(hop, len(ids) + at, thing) for hop, at, thing in things]
            ids += tokens
            segment += [number] * len(tokens)
            position += range(len(prefix), len(prefix) + len(tokens))
            label += [t if w else -100 for t, w in zip(tokens[1:], weights[1:], strict=True)] + [-100]
            weight += [*weights[1:], 0.0]
        pad = length - len(ids)
        row = {
            "ids": ids + [self.id["<pad>"]] * pad,
            "segment": segment + [-1] * pad,
            "position": position + [0] * pad,
            "label": label + [-100] * pad,
        }
        return {k: np.array(v, np.int64) for k, v in row.items()} | {
            "weight": np.array(weight + [0.0] * pad, np.float32),
            "about": about,
        }


def make_row(packer: Packer, seed: int, pair: bool, max_things: int) -> tuple[dict, list, list[str]]:
    """Make one row: a scene (or two), as many questions as fit, pictures, and the segments' kinds.

    Below `HELD_OUT`, seeds give more of the difficult scenes than there are.
    """
    rng = random.Random(seed * 2 + 1)
    sample = sample_scene if seed >= HELD_OUT else sample_hard_scene
    scenes = [sample(seed, max_things)] + ([sample(seed + (1 << 36), max_things)] if pair else [])
    prefix = packer.prefix(len(scenes), rng.random() < 0.9)
    room, segments, kinds = LENGTH - len(prefix), [], []
    while room > 16:
        if pair:
            turns = [data_pairs.ask_pair(rng, *scenes)]
        elif not segments:  # a description says everything: the densest lesson comes first
            turns = [data_talk.ask(rng, scenes[0], data_talk.ask_describe)]
        elif rng.random() < 0.15:
            turns = data_talk.converse(rng, scenes[0], rng.randint(2, 4))
        else:
            turns = [data_talk.ask(rng, scenes[0])]
        segment = packer.turns(turns)
        room -= len(segment[0])
        segments.append(segment)
        kinds.append(turns[0].kind if len(turns) == 1 else "conversation")
    row = packer.pack(prefix, segments)
    order = left_to_right(scenes[0].things)
    row["about"] = [
        (hop, at, what if isinstance(what, dict) else {4: 1 + order.index(what)})
        for hop, at, what in row["about"]
    ]
    return row, [picture_of(s, rng) for s in scenes], kinds


def stack_rows(packer: Packer, made: list) -> dict[str, torch.Tensor]:
    """Put rows together: what `model.Trainee` takes."""
    names = ("ids", "segment", "position", "label", "weight")
    batch = {k: torch.from_numpy(np.stack([row[0][k] for row in made])) for k in names}
    pictures = [picture for row in made for picture in row[1]]
    for name, arrays in zip(("pixels", "patches", "counted"), zip(*pictures, strict=True), strict=True):
        batch[name] = torch.from_numpy(np.stack(arrays))
    batch["image_at"] = (batch["ids"].flatten() == packer.id["<image>"]).nonzero()[:, 0]
    batch["where"] = (batch["label"].flatten() >= 0).nonzero()[:, 0]
    batch["words"] = packer.words
    batch["pointing"] = [pointing(packer, made, hop) for hop in range(len(POINTING_LAYERS))]
    for name in ("label", "weight"):
        batch[name] = batch[name].flatten()[batch["where"]]
    return batch


def pointing(packer: Packer, made: list, hop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell from which tokens of a batch one should look where: flat numbers, and flags ``(n, length)``."""
    points, targets = [], []
    for number, (row, pictures, _) in enumerate(made):
        image = row["ids"] == packer.id["<image>"]
        for at, truth in [(at, truth) for which, at, truth in row["about"] if which == hop]:
            target = np.zeros(len(image), bool)
            target[image] = np.concatenate(
                [
                    np.all([patches[:, column] == value for column, value in truth.items()], axis=0)
                    for _, patches, _ in pictures
                ]
            )
            if target.any():  # there, and not hidden by others
                points.append(number * len(image) + at)
                targets.append(target)
    return torch.tensor(points, dtype=torch.long), torch.from_numpy(
        np.array(targets, bool).reshape(-1, LENGTH)
    )


class Batches(torch.utils.data.IterableDataset):
    """Endless batches, the n-th always the same: training resumes where it stopped.

    Parameters
    ----------
    folder : Path
        Holds ``tokenizer.json``.
    start : int
        Number of the first step.
    plan : callable
        ``plan(step)`` gives ``(rows, pairs, max_things)``.
    rank, world : int
        Which of how many training processes this is.
    """

    def __init__(self, folder: Path, start: int, plan, rank: int = 0, world: int = 1):
        self.folder, self.start, self.plan, self.rank, self.world = folder, start, plan, rank, world

    def __iter__(self):
        """Yield this process's batch of every step from `start` on; of several workers, each its share."""
        torch.set_num_threads(1)
        packer = Packer(load_tokenizer(self.folder))
        worker = torch.utils.data.get_worker_info()
        step, stride = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        while True:
            rows, pairs, max_things = self.plan(step)
            first = (step * self.world + self.rank) << 8
            yield stack_rows(
                packer, [make_row(packer, first + i, i < pairs, max_things) for i in range(rows)]
            )
            step += stride
