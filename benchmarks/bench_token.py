"""What a stream of the embedded model adds to a token: against a C++ loop over the same calls.

    python benchmarks/bench_token.py

The loop is `token_loop.cpp`, linked with the libraries of `peers.py`, which are built from the same patched
tree. Both sides have the same prompt, context and threads, choose greedily and never end early; runs
alternate.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import time
from pathlib import Path

import harness
import peers

from llava_native import Llava, devices
from llava_native.gguf import read_header
from llava_native.machine import default_flash_attn
from llava_native.preflight.text import all_tensors
from llava_native.prompt import Text
from llava_native.repack import should_repack

LOOP = Path(__file__).with_name("token_loop.cpp")
LIBRARIES = ("src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a", "ggml/src/libggml-base.a")
PROMPT = "What is a circle?"
GOAL = 150.0  # microseconds
N_CTX, N_SEQUENCES = 2048, 16


def build_loop() -> Path:
    """Compile the loop; return the program."""
    built = peers.build(targets=("llama-quantize",))["llama-quantize"].parent.parent
    tree = peers.source_dir()
    program = built / "bin" / LOOP.stem
    command = ["g++", "-O2", "-std=c++17", "-fopenmp", "-o", program, LOOP]
    command += [f"-I{tree / folder}" for folder in ("include", "ggml/include")]
    command += [built / name for name in LIBRARIES]
    subprocess.run([str(part) for part in command], check=True)
    return program


def stream_us(llava: Llava, n_tokens: int) -> float:
    """Return the microseconds from one token of a stream to the next."""
    never = {t: -math.inf for t in range(llava.model.n_vocab) if llava.model.is_eog(t)}
    options = {"max_tokens": n_tokens, "temperature": 0, "logit_bias": never}
    with llava.stream_prompt([Text(PROMPT)], **options) as stream:
        next(stream)
        began = time.perf_counter()
        count = sum(1 for _ in stream)
        took = time.perf_counter() - began
    if count != n_tokens - 1:
        raise harness.BenchError(f"{count + 1} tokens came instead of {n_tokens}")
    return took / count * 1e6


def loop_us(program: Path, llava: Llava, n_threads: int, n_tokens: int) -> float:
    """Return the loop's, in a process of its own; its second answer counts, as ours."""
    [prompt] = llava.planner.pieces([Text(PROMPT)])
    tensors = all_tensors(read_header(llava.model.path)).values()
    is_copied = int(should_repack(tensors, devices()))
    flash_attn = default_flash_attn(devices(), "f16", "f16")
    how = [is_copied, -1 if flash_attn is None else int(flash_attn)]  # as the stream's, by default
    command = [program, llava.model.path, *how, N_CTX, N_SEQUENCES, n_threads, n_tokens, 2, *prompt]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=400, help="of an answer (default 400)")
    args = parser.parse_args()
    program = build_loop()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs, medians of {args.rounds}")
    for n_threads in sorted({1, os.cpu_count() or 1}):
        with Llava.demo(n_ctx=N_CTX, n_threads=n_threads) as llava:
            stream_us(llava, args.tokens)
            pairs = [
                (stream_us(llava, args.tokens), loop_us(program, llava, n_threads, args.tokens))
                for _ in range(args.rounds)
            ]
        ours, theirs = (harness.median(side) for side in zip(*pairs, strict=True))
        added = harness.median([a - b for a, b in pairs])
        print(f"{n_threads} threads: a stream {ours:.0f} µs a token, the loop {theirs:.0f}; "
              f"{added:.0f} added (goal {GOAL:.0f})")  # fmt: skip


if __name__ == "__main__":
    main()
