"""What guessing tokens costs and saves: `prompt_lookup` on the real-shape pair.

    python benchmarks/bench_lookup.py

First, how long it takes to evaluate 1, 2, 4 … tokens at once with 600 in the context: a guess of n - 1 pays
where more of them are right, on the average, than (time of n) / (time of 1) - 1. Then an answer that must
repeat a text, with and without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import models

from llava_native import Context, Llava, Model

DEPTH = 600
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
GRAMMAR = f'root ::= "{TEXT}"'


def step_ms(model: Model, rounds: int) -> dict[int, float]:
    """Return the median milliseconds of a batch of each size."""
    with Context(model, n_ctx=1024, n_outputs=max(SIZES)) as context:
        context.eval([5] * DEPTH)
        times: dict[int, list[float]] = {n: [] for n in SIZES}
        for _ in range(rounds):
            for n in SIZES:
                began = time.perf_counter()
                context.eval_batch([(0, [7] * n, n)])
                times[n].append(time.perf_counter() - began)
                context.truncate_sequence(0, DEPTH)
    return {n: statistics.median(found) * 1e3 for n, found in times.items()}


def repeat_seconds(model: Model, prompt_lookup: int) -> float:
    """Return how long the answer takes that repeats the prompt; a grammar makes random weights say it."""
    with Llava(model, n_ctx=1024, prompt_lookup=prompt_lookup) as llava:
        llava.generate("Hello.", max_tokens=2)
        began = time.perf_counter()
        answer = llava.generate(f"Repeat: {TEXT}", grammar=GRAMMAR, temperature=0, max_tokens=200)
        seconds = time.perf_counter() - began
        assert answer.text == TEXT, answer.text
        stats = llava.stats()
        print(f"prompt_lookup={prompt_lookup:2d} {seconds:6.2f} s, {stats.right_tokens} right of "
              f"{stats.guessed_tokens} guessed, {answer.usage.completion_tokens} tokens")  # fmt: skip
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs, medians of {rounds}")
    with Model(models.ensure(only=("text",))["text"]) as model:
        found = step_ms(model, rounds)
        for n, ms in found.items():
            print(f"{n:2d} tokens {ms:7.0f} ms, {ms / found[1]:.2f} of one")
        for prompt_lookup in (0, 2, 4, 8):
            repeat_seconds(model, prompt_lookup)


if __name__ == "__main__":
    main()
