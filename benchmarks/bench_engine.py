"""Measure several callers at once against the pinned llama.cpp's own llama-server, side by side, in one run.

All read the same files (`models.py`: the seeds' real shapes, random weights), answer greedily and never
end early. The server answers over HTTP on this machine, llava_native in this process, llama-cpp-python
(where a Python that has it is named) in a process of its own, one caller after the other. The server is
built from the pinned tree without our patches, and once more with them: what our kernels are worth shows.

    python benchmarks/bench_engine.py --docs docs/benchmarks.md     # everything; a round takes 40 minutes
    python benchmarks/bench_engine.py --only new_image four_questions --rounds 3
    python benchmarks/bench_engine.py --llama-cpp-python ~/venv/bin/python
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import functools
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import bench_native
import harness
import models
import peers
import sides
from answerers import LlamaCppPython, Ours, Server, Side

BEGIN, END = "<!-- engine:begin -->", "<!-- engine:end -->"
QUESTIONS = ("What is this?", "Which colours are there?", "Who made it?", "Where was it taken?")
N_ANSWER = 33
OURS, SERVER, LLAMA_CPP_PYTHON = "llava_native", "llama-server", "llama-cpp-python"
# llama-server as it comes; with what makes single tokens fastest on a CPU; and the same with our kernels
_FAST = ["-fa", "off", "-ctk", "q8_0", "-ub", "640"]
FLAGS = {"defaults": [], "best flags": _FAST, "our patches": [*_FAST, "--no-repack"]}
PATCHED = "our patches"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One thing that is measured, with the bound that it should keep."""

    title: str
    unit: str
    run: Callable[[Side, Callable[[], bytes]], float]
    limits: dict[str, float]  # how a peer's name begins → bound of ours to the best of these
    higher_is_better: bool = False
    has_several_callers: bool = False

    def verdict(self, medians: dict[str, float]) -> tuple[str, bool]:
        """Return how ours compares, in words, and whether it is within its bounds."""
        sign, best = ("≥", max) if self.higher_is_better else ("≤", min)
        words, is_met = [], True
        for peer, limit in self.limits.items():
            theirs = [value for name, value in medians.items() if name.startswith(peer)]
            if theirs:
                ratio = medians[OURS] / best(theirs)
                is_met &= ratio >= limit if self.higher_is_better else ratio <= limit
                words.append(f"{ratio:.3g} of {peer} ({sign} {limit:.3g})")
        return "; ".join(words), is_met


def pictures(source: Path) -> Callable[[], bytes]:
    """Return a maker of pictures that were never seen before: the test JPEG, moved by another offset."""
    from PIL import Image, ImageChops

    picture, moved = Image.open(source).convert("RGB"), iter(range(1, 10**6))

    def fresh() -> bytes:
        file = io.BytesIO()
        ImageChops.offset(picture, next(moved), 0).save(file, "PNG")
        return file.getvalue()

    return fresh


def together(side: Side, asked: Sequence[tuple[bytes, str]]) -> float:
    """Return the seconds until all who ask at once have their whole answers."""
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        list(pool.map(lambda one: len(list(side.ask(*one, N_ANSWER))), asked))
    return time.perf_counter() - began


def first_token(side: Side, picture: bytes, question: str) -> float:
    """Return the seconds until the first token."""
    began = time.perf_counter()
    first, *_ = side.ask(picture, question, 2)
    return first - began


def new_image(side: Side, fresh: Callable[[], bytes]) -> float:
    """A picture that nobody has asked about."""
    return first_token(side, fresh(), QUESTIONS[0])


def second_question(side: Side, fresh: Callable[[], bytes]) -> float:
    """Another question about the same picture."""
    picture = fresh()
    first_token(side, picture, QUESTIONS[0])
    return first_token(side, picture, QUESTIONS[1])


def four_questions(side: Side, fresh: Callable[[], bytes]) -> float:
    """Four callers ask about one new picture."""
    picture = fresh()
    return together(side, [(picture, question) for question in QUESTIONS])


def eight_images(side: Side, fresh: Callable[[], bytes]) -> float:
    """Eight callers, each with a picture."""
    return together(side, [(fresh(), QUESTIONS[0]) for _ in range(8)])


def one_stream(side: Side, fresh: Callable[[], bytes]) -> float:
    """Tokens a second of a single caller, after 600 tokens."""
    times = list(side.ask(fresh(), QUESTIONS[0], N_ANSWER))
    return (len(times) - 1) / (times[-1] - times[0])


def longest_gap(side: Side, fresh: Callable[[], bytes]) -> float:
    """The longest pause of a stream while another caller brings a picture."""
    arrived, over = threading.Event(), threading.Event()

    def other() -> None:
        arrived.wait()
        first_token(side, fresh(), QUESTIONS[1])
        over.set()

    thread = threading.Thread(target=other)
    thread.start()
    gap = before = 0.0
    for n, moment in enumerate(side.ask(fresh(), QUESTIONS[0], 1000)):
        gap = max(gap, moment - before) if n > 5 else 0.0
        before = moment
        if n == 5:
            arrived.set()
        if over.is_set():
            break
    thread.join()
    return gap


SCENARIOS = {
    "new_image": Scenario("new image to first token", "s", new_image, {SERVER: 0.97}),
    "second_question": Scenario(
        "second question to first token", "s", second_question, {SERVER: 1.0, LLAMA_CPP_PYTHON: 1 / 30}
    ),
    "four_questions": Scenario(
        "four questions at once on one image", "s", four_questions, {SERVER: 0.40}, has_several_callers=True
    ),
    "eight_images": Scenario(
        "eight images at once, one question each", "s", eight_images, {SERVER: 0.95}, has_several_callers=True
    ),
    "one_stream": Scenario(
        "one stream, 600 tokens in context", "tokens/s", one_stream,
        {f"{SERVER}, defaults": 1.25, SERVER: 1.0}, higher_is_better=True,
    ),
    "longest_gap": Scenario(
        "longest gap while another brings an image", "s", longest_gap, {SERVER: 1 / 3},
        has_several_callers=True,
    ),
}  # fmt: skip


def everybody(
    setup: sides.Setup, servers: Sequence[str], llama_cpp_python: Path | None
) -> dict[str, Callable[[], Side]]:
    """Return who is measured, by name: how each is started."""
    makers: dict[str, Callable[[], Side]] = {}
    for name in servers:
        tool = setup.tools[PATCHED if name == PATCHED else SERVER]
        maker = functools.partial(Server, tool, setup.files, setup.threads, FLAGS[name])
        makers[f"{name}, {SERVER}" if name == PATCHED else f"{SERVER}, {name}"] = maker
    if llama_cpp_python:
        makers[LLAMA_CPP_PYTHON] = functools.partial(
            LlamaCppPython, llama_cpp_python, setup.files, setup.threads
        )
    return {**makers, OURS: functools.partial(Ours, setup.files, setup.threads)}


def measure(
    wanted: dict[str, Scenario], makers: dict[str, Callable[[], Side]], picture: Path, rounds: int
) -> Iterator[dict[str, dict[str, list[float]]]]:
    """Run every scenario on every side, `rounds` times; each side is started anew each round.

    Yields what there is after each round: all of them take hours on two cores, and may be interrupted.
    """
    found: dict[str, dict[str, list[float]]] = {key: {} for key in wanted}
    fresh = pictures(picture)
    for turn in range(rounds):
        for name, make in reversed(makers.items()) if turn % 2 else makers.items():
            side = make()
            try:
                for key, scenario in wanted.items():
                    if scenario.has_several_callers and name == LLAMA_CPP_PYTHON:
                        continue  # it answers one at a time
                    value = scenario.run(side, fresh)
                    found[key].setdefault(name, []).append(value)
                    line = f"{key} {turn + 1}/{rounds} {name}: {value:.3g} {scenario.unit}"
                    print(line, file=sys.stderr, flush=True)
            finally:
                side.close()
        yield found


def table(wanted: dict[str, Scenario], found: dict[str, dict[str, list[float]]], names: Sequence[str]) -> str:
    """Render the results as Markdown."""
    lines = [
        f"| What | {' | '.join(names)} | Ratio (bound) | Met |",
        f"|---|{'---:|' * len(names)}---|---|",
    ]
    for key, scenario in wanted.items():
        medians = {name: harness.median(values) for name, values in found[key].items()}
        cells = [f"{medians[name]:.3g} {scenario.unit}" if name in medians else "" for name in names]
        words, is_met = scenario.verdict(medians)
        mark = ("yes" if is_met else "**no**") if words else ""
        lines.append(f"| {scenario.title} | {' | '.join(cells)} | {words} | {mark} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--servers", nargs="+", choices=FLAGS, default=list(FLAGS))
    parser.add_argument("--llama-cpp-python", type=Path, help="a Python that can import llama_cpp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", help="cache folder (default LLAVA_NATIVE_BENCH_CACHE or the platform's)")
    parser.add_argument("--max-load", type=float, default=0.5, help="load per core allowed at the start")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--docs", type=Path, help="page whose generated part is rewritten")
    args = parser.parse_args(argv)
    wanted = {key: s for key, s in SCENARIOS.items() if not args.only or key in args.only}
    patched = peers.build(cache=args.cache, targets=(SERVER, "llama-quantize"))
    tools = peers.build(cache=args.cache, targets=(SERVER,), unpatched=True) | {PATCHED: patched[SERVER]}
    files = models.ensure(
        "phi-3-mini", only=("text", "mmproj"), cache=args.cache, tool=patched["llama-quantize"]
    )
    jpeg = peers.source_dir() / "tools" / "mtmd" / "test-1.jpeg"
    picture = sides.square_picture(jpeg, peers.cache_dir(args.cache) / "test-1-336.png")
    setup = sides.Setup(tools, files, picture, args.threads)
    load = harness.check_load(args.max_load, 300)
    if load > args.max_load and not args.force:
        print(f"load {load:.2f} per core > {args.max_load}: figures would mean nothing", file=sys.stderr)
        return 2
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    where = f"{bench_native.cpu_name()}, {os.cpu_count()} CPUs, {args.threads} threads"
    makers = everybody(setup, args.servers, args.llama_cpp_python)
    for n, found in enumerate(measure(wanted, makers, picture, args.rounds), 1):
        rounds = "one round" if n == 1 else f"medians of {n} rounds"
        head = f"Measured {today} on {where}; {rounds}. Load per core before: {load:.2f}."
        text = f"{head}\n\n{table(wanted, found, [OURS, *(name for name in makers if name != OURS)])}\n"
        print(text, flush=True)
        if args.docs:
            bench_native.rewrite(args.docs, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
