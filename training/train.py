"""Train the network: first the eyes alone (patch heads), then eyes and language together.

``python -m training.train --out DIR`` starts, or goes on from the newest checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import functools
import json
import os
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .data import HELD_OUT, Batches, Packer, load_tokenizer, make_row, special_ids, stack_rows
from .model import PATCH_CLASSES, Trainee, learning_rate, look_around, make_config, split_parameters
from .muon import Muon

EMA = 0.998
OTHERS = 1 / 3  # AdamW's learning rate as a share of Muon's
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
PREFETCH = 6  # batches that each of the loader's workers makes ahead
RECIPES = {  # the defaults of `parse`
    "cpu": {
        "processes": 2, "workers": 1, "rows": 5, "pairs": 2, "eyes_rows": 10,
        "steps": 16300, "cooldown": 6500, "eyes": 5300, "still": 12600,
    },
    "cuda": {
        "processes": 1, "workers": (os.cpu_count() or 2) - 1, "rows": 96, "pairs": 38, "eyes_rows": 112,
        "steps": 3499, "cooldown": 1453, "eyes": 1500, "still": 1500,
    },
}  # fmt: skip


def is_eyes_only(args: argparse.Namespace, step: int) -> bool:
    """Tell whether a step trains only the vision tower: those before ``args.eyes``, and most after that."""
    return step < args.eyes or step % args.joint_every > 0


def plan(args: argparse.Namespace, step: int) -> tuple[int, int, int]:
    """Tell how many rows and pairs a step's batch has, and how many things its scenes may have."""
    return (args.eyes_rows, 0, 5) if is_eyes_only(args, step) else (args.rows, args.pairs, 5)


def look(_step: int) -> tuple[int, int, int]:
    """Tell how many rows and pairs there are to look at before the first step."""
    return 64, 0, 5


def move(value, device: str):
    """Move a batch's tensors, at any depth, to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: move(part, device) for name, part in value.items()}
    return [move(part, device) for part in value]


class Trainer:
    """One training process: network, optimisers, averaged weights, checkpoints.

    Parameters
    ----------
    args : argparse.Namespace
        See `parse`.
    rank : int
        0 to ``args.processes - 1``; rank 0 evaluates and saves.
    """

    def __init__(self, args: argparse.Namespace, rank: int):
        self.args, self.rank = args, rank
        tokenizer = load_tokenizer(args.out)
        torch.manual_seed(args.seed)
        self.model = Trainee(make_config(tokenizer.get_vocab_size(), special_ids(tokenizer)))
        look_around(self.model.llava.model.vision_tower, next(iter(Batches(args.out, 0, look)))["pixels"])
        self.model.to(args.device).train_lean()
        matrices, others = split_parameters(self.model)
        self.optimisers = [
            Muon(matrices, lr=args.lr, rank=rank, world=args.processes),
            torch.optim.AdamW(others, lr=args.lr * OTHERS, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.eyes = list(self.model.llava.model.vision_tower.parameters())
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds, self.log = 0, 0.0, []
        self.path = args.out / "checkpoint.pt"
        if self.path.exists():
            self.load()

    def load(self) -> None:
        """Go on from the checkpoint."""
        saved = torch.load(self.path, map_location=self.args.device, weights_only=False)
        self.model.load_state_dict(saved["model"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.ema, self.step, self.seconds, self.log = (
            saved["ema"],
            saved["step"],
            saved["seconds"],
            saved["log"],
        )

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        temporary = self.path.with_suffix(".new")
        torch.save(state, temporary)
        temporary.replace(self.path)
        (self.args.out / "log.json").write_text(json.dumps(self.log))

    def average_gradients(self) -> None:
        """Average gradients over the processes, in one message."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.args.processes > 1:
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g) / self.args.processes)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def one_step(self, batch: dict) -> dict[str, torch.Tensor]:
        """Learn from one batch; returns the answers' loss, where there were any, and the patches'."""
        eyes_only = is_eyes_only(self.args, self.step)
        for parameter in self.eyes:
            parameter.requires_grad_(eyes_only or self.step >= self.args.still)
        answer, patches = self.model(batch, text=not eyes_only)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        (answer * 2 + patches * (1.0 if eyes_only else 0.5)).backward()
        self.average_gradients()
        start = 0 if self.step < self.args.eyes else self.args.eyes  # the language model warms up anew
        rate = learning_rate(self.step - start, self.args.steps - start, self.args.lr, self.args.cooldown)
        for optimiser, share in zip(self.optimisers, (1.0, OTHERS), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), list(self.model.state_dict().values()), 1 - decay)
        return {"patches": patches.detach()} | ({} if eyes_only else {"answer": answer.detach()})

    def run(self) -> None:
        """Train to the last step."""
        data = Batches(
            self.args.out, self.step, functools.partial(plan, self.args), self.rank, self.args.processes
        )
        loader = iter(
            torch.utils.data.DataLoader(
                data, batch_size=None, num_workers=self.args.workers, prefetch_factor=PREFETCH
            )
        )
        saved = shown = time.time()
        losses: dict[str, list[torch.Tensor]] = defaultdict(list)
        while self.step < self.args.steps:
            begin = time.time()
            for name, loss in self.one_step(move(next(loader), self.args.device)).items():
                losses[name].append(loss)
            self.seconds += time.time() - begin
            if self.rank == 0 and time.time() - shown > 20:
                entry = {name: round(torch.stack(some).mean().item(), 4) for name, some in losses.items()}
                entry |= {"step": self.step, "seconds": round(self.seconds)}
                self.log.append(entry)
                speed = len(losses["patches"]) / (time.time() - shown)
                print(json.dumps(entry), f"{speed:.2f}/s", flush=True)
                losses.clear()
                shown = time.time()
            if self.rank == 0 and (
                time.time() - saved > self.args.save_every or self.step == self.args.steps
            ):
                self.report()
                self.save()
                saved = shown = time.time()

    def report(self) -> None:
        """Print and log the averaged weights' accuracy on held-out scenes."""
        judge = Trainee(self.model.llava.config).to(self.args.device)
        judge.load_state_dict(self.ema)
        judge.train_lean()
        table = accuracy(judge, load_tokenizer(self.args.out), self.args.check_rows)
        self.log.append({"step": self.step, "seconds": round(self.seconds), "accuracy": table})
        print(self.step, {k: round(v[0], 3) for k, v in table.items()}, flush=True)


@torch.no_grad()
def accuracy(model: Trainee, tokenizer, rows: int, start: int = HELD_OUT) -> dict[str, tuple[float, int]]:
    """Measure the answers that greedy decoding gets exactly right, by kind of question.

    Every token of the true answer being the likeliest, given those before it, is the same as greedy decoding
    giving that answer, and needs one forward pass.

    Returns
    -------
    dict
        kind → (share right, number of questions); "patch …" rows are the patch heads' accuracy.
    """
    packer, found = Packer(tokenizer), defaultdict(list)
    device = model.eval().heads.out.weight.device
    for first in range(0, rows, 16):
        made = [make_row(packer, start + first + i, i < 3, 5) for i in range(min(16, rows - first))]
        batch = move(stack_rows(packer, made), device)
        features = model.features(batch["pixels"])
        right = model.logits(features, batch).argmax(-1) == batch["label"]
        parts = model.heads(features)
        for i, name in enumerate(PATCH_CLASSES):
            on = batch["patches"][..., i] > 0
            found["patch " + name].append(
                (parts[i].argmax(-1) == batch["patches"][..., i])[on].float().mean()
            )
        segment = batch["segment"].flatten()[batch["where"]]
        row = batch["where"] // batch["segment"].shape[1]
        for r, (_, _, kinds) in enumerate(made):
            for s in segment[row == r].unique().tolist():
                found[kinds[s - 1]].append(right[(row == r) & (segment == s)].all().float())
    return {k: (torch.stack(v).mean().item(), len(v)) for k, v in sorted(found.items())}


def work(rank: int, args: argparse.Namespace) -> None:
    """Be one training process: on one core, or with the GPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # keep memory between steps: page faults take a fifth of the time
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU; nothing changes on a CPU
    if args.processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{args.port}",
            rank=rank,
            world_size=args.processes,
            timeout=datetime.timedelta(hours=8),
        )
    Trainer(args, rank).run()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or the arguments given; what they leave out is the device's recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path.home() / ".cache/llava_native/training", help="checkpoints and logs")
    add("--device", choices=tuple(RECIPES), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--steps", type=int, help="all steps")
    add("--cooldown", type=int, help="steps at the end over which the learning rate falls to 0")
    add("--eyes", type=int, help="steps at the start that train only the vision tower")
    add("--still", type=int, help="step until which the eyes then stand still")
    add("--joint-every", type=int, default=1, help="of the steps after --eyes, one in so many has language")
    add("--rows", type=int, help="rows of a process's batch: a scene each, or two, and questions")
    add("--pairs", type=int, help="how many of the rows show two pictures")
    add("--eyes-rows", type=int, help="rows while only the eyes learn")
    add("--lr", type=float, default=4e-3, help="of the hidden layers' matrices (Muon)")
    add("--seed", type=int, default=1)
    add("--processes", type=int, help="one a core; the batch grows with them; one with a GPU")
    add("--workers", type=int, help="of each process, to draw the pictures")
    add(
        "--threads",
        type=int,
        default=1,
        help="threads of a process (more than 1 is slower on a busy machine)",
    )
    add("--save-every", type=float, default=240, help="seconds between checkpoints")
    add("--check-rows", type=int, default=96, help="held-out rows for the accuracy printed on the way")
    add("--port", type=int, default=29517)
    parser.set_defaults(**RECIPES[parser.parse_known_args(arguments)[0].device])
    return parser.parse_args(arguments)


def main() -> None:
    """Start the processes; this one is rank 0, so pausing it pauses them all."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    load_tokenizer(args.out)
    (args.out / "training.pid").write_text(f"{os.getpid()}\n")
    context = mp.get_context("spawn")
    others = [context.Process(target=work, args=(rank, args)) for rank in range(1, args.processes)]
    for process in others:
        process.start()
    work(0, args)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()
