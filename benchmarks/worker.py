"""Our side of the benchmark: one measurement in a fresh process, one line of JSON on stdout.

`bench_native.py` starts this; it can be run by hand too:

    python benchmarks/worker.py encode --mmproj mmproj.gguf --image picture.png --dtype bf16
    python benchmarks/worker.py decode --model text.gguf --depth 600 --n 32
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_native import Context, ImageEmbedding, Model

FLASH = {"auto": None, "on": True, "off": False}
HEAD, TAIL = "<|user|>\n", "<|end|>\n<|assistant|>\n"


def timed(call: Callable[[], Any]) -> float:
    """Return the milliseconds that `call` took."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def imports(args: argparse.Namespace) -> dict[str, Any]:
    """Time ``import llava_native`` in this process, which has not imported it yet."""
    start = time.perf_counter()
    import llava_native

    for name in filter(None, args.names.split(",")):
        getattr(llava_native, name)  # the package imports what is asked for, when it is
    ms = (time.perf_counter() - start) * 1e3
    heavy = [name for name in ("numpy", "PIL", "llava_native._native") if name in sys.modules]
    return {"ms": [ms], "loaded": heavy}


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """Time `ImageEncoder.encode` of a decoded picture, after one encode to warm up."""
    from PIL import Image

    from llava_native import ImageEncoder

    picture = Image.open(args.image).convert("RGB")
    with ImageEncoder(args.mmproj, n_threads=args.threads, dtype=args.dtype) as encoder:
        encoder.encode(picture)
        times = [timed(lambda: encoder.encode(picture)) for _ in range(args.repeat)]
        return {"ms": times, "dtype": encoder.dtype, "rows": encoder.n_tokens}


def _context(args: argparse.Namespace, model: Model) -> Context:
    from llava_native import Context

    return Context(
        model,
        n_ctx=args.ctx,
        n_ubatch=args.ubatch,
        n_threads=args.threads,
        flash_attn=FLASH[args.flash_attn],
    )


def _rows(n: int, width: int) -> ImageEmbedding:
    """Make an image's rows without an encoder, as large as a token's."""
    import numpy as np

    from llava_native import ImageEmbedding

    values = np.random.default_rng(0).standard_normal((n, width), np.float32)
    return ImageEmbedding.from_buffer(values * np.float32(0.3))


def _ids(model: Model, n: int) -> list[int]:
    """Choose `n` ordinary tokens, the same ones every time; a BOS comes first."""
    return [model.bos, *(1000 + (i * 7919) % 20000 for i in range(n - 1))]


def prefill(args: argparse.Namespace) -> dict[str, Any]:
    """Time a prompt of `--prompt` tokens in all, of which `--rows` are an image's."""
    from llava_native import Model

    with Model(args.model) as model, _context(args, model) as ctx:
        ids = _ids(model, args.prompt - args.rows)
        head, tail = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        rows = [_rows(args.rows, model.n_embd)] if args.rows else []
        entries = [(0, part, part is tail) for part in (head, *rows, tail)]

        def once() -> None:
            ctx.clear()
            ctx.eval_batch(entries)
            memoryview(ctx.logits).release()

        once()
        return {"ms": [timed(once) for _ in range(args.repeat)], "tokens": args.prompt}


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """Time `--n` greedy tokens, each sampled and evaluated, after `--depth` tokens."""
    from llava_native import Model, Sampler, SamplingParams

    with Model(args.model) as model, _context(args, model) as ctx:
        sampler = Sampler(model, SamplingParams(temperature=0))
        ctx.eval(_ids(model, args.depth))
        ctx.eval([sampler.sample(ctx)])
        times = []
        for _ in range(args.repeat):
            ctx.truncate_sequence(0, args.depth)
            ctx.eval([1000])

            def once() -> None:
                for _ in range(args.n):
                    ctx.eval([sampler.sample(ctx)])

            times.append(timed(once))
        sampler.close()
        return {"ms": times, "tokens": args.n}


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """Do the whole job once: load both files, encode, prefill, answer greedily."""
    from llava_native import ImageEncoder, Model, Sampler, SamplingParams

    begin = time.perf_counter()
    encoder = ImageEncoder(args.mmproj, n_threads=args.threads, dtype=args.dtype)
    with encoder, Model(args.model, repack=args.repack) as model:
        loaded = time.perf_counter()
        with _context(args, model) as ctx:
            rows = encoder.encode(args.image)
            encoded = time.perf_counter()
            head = model.tokenize(HEAD, add_special=True, parse_special=True)
            tail = model.tokenize(args.question + TAIL, add_special=False, parse_special=True)
            for part in (head, rows, tail):  # apart, as mtmd-cli has them: answers are compared, bit for bit
                ctx.eval(part)
            with Sampler(model, SamplingParams(temperature=0)) as sampler:
                tokens = [sampler.sample(ctx)]
                first = time.perf_counter()
                while len(tokens) < args.n and not model.is_eog(tokens[-1]):
                    ctx.eval([tokens[-1]])
                    tokens.append(sampler.sample(ctx))
            del rows
        text = b"".join(model.token_bytes(t) for t in tokens).decode(errors="replace")
    end = time.perf_counter()
    stages = {"load": loaded - begin, "encode": encoded - loaded, "prefill": first - encoded}
    return {"text": text, "tokens": tokens, "seconds": {**stages, "decode": end - first}}


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    top = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    jobs = top.add_subparsers(dest="job", required=True)
    for job in (imports, encode, prefill, decode, ask):
        sub = jobs.add_parser(job.__name__, help=job.__doc__)
        sub.set_defaults(run=job)
        sub.add_argument("--threads", type=int)
        sub.add_argument("--repeat", type=int, default=3)
        if job is imports:
            sub.add_argument("--names", default="")
        if job in (encode, ask):
            sub.add_argument("--mmproj", required=True)
            sub.add_argument("--image", required=True)
            sub.add_argument("--dtype", choices=("auto", "f16", "bf16"), default="auto")
        if job in (prefill, decode, ask):
            sub.add_argument("--model", required=True)
            sub.add_argument("--ctx", type=int, default=4096)
            sub.add_argument("--ubatch", type=int, default=672)
            sub.add_argument("--flash-attn", choices=tuple(FLASH), default="auto")
        if job is prefill:
            sub.add_argument("--prompt", type=int, default=600)
            sub.add_argument("--rows", type=int, default=576)
        if job is decode:
            sub.add_argument("--depth", type=int, default=600)
        if job in (decode, ask):
            sub.add_argument("--n", type=int, default=32)
        if job is ask:
            sub.add_argument("--question", default="What is this?")
            sub.add_argument(
                "--repack", action="store_true", default=None, help="copy weights, as llama.cpp does"
            )
    return top


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parser().parse_args(argv)
    print(json.dumps(args.run(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
