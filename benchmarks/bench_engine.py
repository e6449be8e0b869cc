"""Measure several callers at once against the pinned tree's own llama-server, side by side, in one run.

Both sides read the same files (`models.py`: the seeds' real shapes, random weights), answer greedily and
never end early. The server answers over HTTP on this machine, llava_native in this process.

    python benchmarks/bench_engine.py --docs docs/benchmarks.md     # everything; a round takes 40 minutes
    python benchmarks/bench_engine.py --only new_image four_questions --rounds 3
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import dataclasses
import datetime
import http.client
import io
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import bench_native
import harness
import models
import peers
import sides

BEGIN, END = "<!-- engine:begin -->", "<!-- engine:end -->"
QUESTIONS = ("What is this?", "Which colours are there?", "Who made it?", "Where was it taken?")
N_ANSWER = 33
# llama-server as it comes, and with what makes single tokens fastest on a CPU
SERVERS = {"defaults": [], "best flags": ["-fa", "off", "-ctk", "q8_0", "-ub", "640"]}


class Side(Protocol):
    """Whoever answers."""

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One thing that is measured, with the bound that it should keep."""

    title: str
    unit: str
    run: Callable[[Side, Callable[[], bytes]], float]
    limit: float  # of ours to theirs
    higher_is_better: bool = False


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
    "new_image": Scenario("new image to first token", "s", new_image, 0.97),
    "second_question": Scenario("second question to first token", "s", second_question, math.inf),
    "four_questions": Scenario("four questions at once on one image", "s", four_questions, 0.40),
    "eight_images": Scenario("eight images at once, one question each", "s", eight_images, 0.95),
    "one_stream": Scenario("one stream, 600 tokens in context", "tokens/s", one_stream, 1.25, True),
    "longest_gap": Scenario("longest gap while another brings an image", "s", longest_gap, 1 / 3),
}


class Ours:
    """llava_native, in this process."""

    def __init__(self, files: dict[str, Path], threads: int) -> None:
        from llava_native import Llava

        self._llava = Llava(files["text"], files["mmproj"], n_ctx=4096, n_threads=threads)
        model = self._llava.model
        self._never = {t: -math.inf for t in range(model.n_vocab) if model.is_eog(t)}

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""
        options: dict[str, Any] = {"max_tokens": n, "temperature": 0, "logit_bias": self._never}
        with self._llava.stream(question, image=picture, **options) as stream:
            for _ in stream:
                yield time.perf_counter()

    def close(self) -> None:
        """Free the models."""
        self._llava.close()


class Server:
    """A llama-server of its own."""

    def __init__(self, tool: Path, files: dict[str, Path], threads: int, flags: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        pair = ["-m", files["text"], "--mmproj", files["mmproj"]]
        command = [tool, *pair, "-np", 4, "-c", 16384, "-t", threads, "--port", self._port, *flags]
        self._process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise harness.BenchError("llama-server did not start")
            time.sleep(0.5)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        body = {
            "messages": [{"role": "user", "content": content}], "max_tokens": n, "temperature": 0,
            "ignore_eos": True, "stream": True, "cache_prompt": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=900)
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), kind)
        with connection.getresponse() as response:
            if response.status != 200:
                raise harness.BenchError(f"llama-server says {response.status}: {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    if "role" not in delta and delta:
                        yield time.perf_counter()
        connection.close()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def measure(
    wanted: dict[str, Scenario], setup: sides.Setup, rounds: int, servers: Sequence[str]
) -> Iterator[dict[str, dict[str, list[float]]]]:
    """Run every scenario on every side, `rounds` times; each side is started anew each round.

    Yields what there is after each round: all of them take hours on two cores, and may be interrupted.
    """
    found: dict[str, dict[str, list[float]]] = {key: {} for key in wanted}
    makers: dict[str, Callable[[], Any]] = {
        name: lambda name=name: Server(setup.tools["llama-server"], setup.files, setup.threads, SERVERS[name])
        for name in servers
    }
    makers["llava_native"] = lambda: Ours(setup.files, setup.threads)
    fresh = pictures(setup.picture)
    for turn in range(rounds):
        for name, make in reversed(makers.items()) if turn % 2 else makers.items():
            side = make()
            try:
                for key, scenario in wanted.items():
                    value = scenario.run(side, fresh)
                    found[key].setdefault(name, []).append(value)
                    line = f"{key} {turn + 1}/{rounds} {name}: {value:.3g} {scenario.unit}"
                    print(line, file=sys.stderr, flush=True)
            finally:
                side.close()
        yield found


def table(wanted: dict[str, Scenario], found: dict[str, dict[str, list[float]]]) -> str:
    """Render the results as Markdown."""
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    peers_ = [name for name in names if name != "llava_native"]
    titles = " | ".join(f"llama-server, {name}" for name in peers_)
    lines = [
        f"| What | llava_native | {titles} | Ratio (bound) | Met |",
        f"|---|---:|{'---:|' * len(peers_)}---|---|",
    ]
    for key, scenario in wanted.items():
        medians = {name: harness.median(values) for name, values in found[key].items()}
        best = (max if scenario.higher_is_better else min)(medians[name] for name in peers_)
        if key == "one_stream" and "defaults" in medians:
            best = medians["defaults"]  # the bound is against its defaults
        ratio = medians["llava_native"] / best
        met = ratio >= scenario.limit if scenario.higher_is_better else ratio <= scenario.limit
        sign = "≥" if scenario.higher_is_better else "≤"
        has_bound = scenario.limit < math.inf
        bound = f"{ratio:.2f} ({sign} {scenario.limit:.2f})" if has_bound else f"{ratio:.2f}"
        mark = ("yes" if met else "**no**") if has_bound else ""
        cells = " | ".join(f"{medians[name]:.3g} {scenario.unit}" for name in ["llava_native", *peers_])
        lines.append(f"| {scenario.title} | {cells} | {bound} | {mark} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", help="cache folder (default LLAVA_NATIVE_BENCH_CACHE or the platform's)")
    parser.add_argument("--max-load", type=float, default=0.5, help="load per core allowed at the start")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--docs", type=Path, help="page whose generated part is rewritten")
    args = parser.parse_args(argv)
    wanted = {key: s for key, s in SCENARIOS.items() if not args.only or key in args.only}
    tools = peers.build(cache=args.cache, targets=("llama-server", "llama-quantize"))
    files = models.ensure(
        "phi-3-mini", only=("text", "mmproj"), cache=args.cache, tool=tools["llama-quantize"]
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
    for n, found in enumerate(measure(wanted, setup, args.rounds, args.servers), 1):
        rounds = "one round" if n == 1 else f"medians of {n} rounds"
        head = f"Measured {today} on {where}; {rounds}. Load per core before: {load:.2f}."
        text = f"{head}\n\n{table(wanted, found)}\n"
        print(text, flush=True)
        if args.docs:
            bench_native.rewrite(args.docs, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
