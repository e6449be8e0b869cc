"""Measure llava_native against the pinned llama.cpp's own programs, side by side, in one run.

Both sides are built from the same patched tree and read the same files: models of the seeds' real
shapes with random weights (`models.py`). Runs alternate, ours and theirs, each in a fresh process;
medians are compared. A machine that does other work makes the figures worthless: the load average
is checked first, and each run says how much CPU time others took meanwhile.

    python benchmarks/bench_native.py                            # everything, an hour and a half on two cores
    python benchmarks/bench_native.py --only encode import       # some of it
    python benchmarks/bench_native.py --docs docs/benchmarks.md  # rewrite that page's table
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import models
import peers
import sides

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
SAME = "as mtmd-cli"  # F16 weights, flash attention on, weights copied: what llama-mtmd-cli does by default
FLASH = {"default": "auto", "fa off": "off"}
Side = Callable[[sides.Setup], sides.Sample]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing that is measured: our settings, and theirs, of which the best counts."""

    key: str
    title: str
    unit: str
    ours: dict[str, Side]
    peer: dict[str, Side]
    # our setting → bound of the ratio; of the difference for MiB; of the value where there is no peer
    limits: dict[str, float]
    higher_is_better: bool = False


def _bench_prefills() -> dict[str, Side]:
    """Return llama-bench's settings that may be its best for a prompt."""
    return {
        f"fa {fa}, ub {ub}, {how}": functools.partial(sides.peer_prefill, flash=fa, ubatch=ub, repack=repack)
        for fa in ("on", "off")
        for how, repack, ub in (("copied", True, 512), ("as stored", False, 672))
    }


def _bench_decodes() -> dict[str, Side]:
    """Return llama-bench's settings that may be its best for single tokens."""
    decode = sides.peer_decode
    return {
        "fa on, as stored": functools.partial(decode, flash="on", repack=False),
        "fa off, as stored": functools.partial(decode, flash="off", repack=False),
        "fa off, copied": functools.partial(decode, flash="off", repack=True),
        "fa off, as stored, keys q8_0": functools.partial(decode, flash="off", repack=False, cache="q8_0"),
    }


def _comparisons() -> list[Comparison]:
    """List everything that is measured, with the bounds that it should keep."""
    s = sides
    bf16 = {"bf16": 0.80} if re.search("avx512_bf16|amx_bf16", cpu_name()) else {}
    return [
        Comparison(
            "import", "`import llava_native`", "ms",
            {"package": s.ours_import, "with Llava": functools.partial(s.ours_import, names="Llava")},
            {}, {"package": 60.0},
        ),
        Comparison(
            "encode", "encode an image", "ms",
            {dtype: functools.partial(s.ours_encode, dtype=dtype) for dtype in ("f16", "bf16")},
            {"mtmd-cli": s.peer_encode}, {"f16": 1.02, **bf16},
        ),
        Comparison(
            "prefill", "prefill image and prompt", "tokens/s",
            {
                "default": functools.partial(s.ours_prefill, flash="auto", rows=576),
                "tokens only": functools.partial(s.ours_prefill, flash="auto", rows=0),
            },
            _bench_prefills(), {"default": 1 / 1.02}, higher_is_better=True,
        ),
        Comparison(
            "decode", "decode at depth 600", "tokens/s",
            {fa: functools.partial(s.ours_decode, flash=flash) for fa, flash in FLASH.items()},
            _bench_decodes(), {"default": 0.98}, higher_is_better=True,
        ),
        Comparison(
            "rss", "peak RSS, whole job", "MiB",
            {
                "default": functools.partial(s.ours_ask, dtype="auto", flash="auto"),
                SAME: functools.partial(s.ours_ask, dtype="f16", flash="on", repack=True),
            },
            {"mtmd-cli": s.peer_ask}, {"default": 60.0, SAME: 60.0},
        ),
    ]  # fmt: skip


@dataclasses.dataclass
class Result:
    """All samples of one comparison."""

    what: Comparison
    ours: dict[str, list[sides.Sample]]
    peer: dict[str, list[sides.Sample]]

    def values(self, side: str, setting: str) -> list[float]:
        """Return every value of one setting."""
        return [value for sample in getattr(self, side)[setting] for value in sample.values]

    def best_peer(self) -> str | None:
        """Return the other side's setting with the best median."""
        pick = max if self.what.higher_is_better else min
        return pick(self.peer, key=lambda name: harness.median(self.values("peer", name)), default=None)

    def verdict(self, setting: str) -> tuple[str, bool]:
        """Return how one of our settings compares, in words, and whether it is within its bound."""
        ours, limit = harness.median(self.values("ours", setting)), self.what.limits[setting]
        best = self.best_peer()
        if best is None:
            return f"≤ {limit:g} {self.what.unit}", ours <= limit
        theirs = harness.median(self.values("peer", best))
        if self.what.unit == "MiB":
            return f"{ours - theirs:+.0f} MiB (≤ +{limit:g})", ours - theirs <= limit
        ratio = ours / theirs
        if self.what.higher_is_better:
            return f"{ratio:.3f} (≥ {limit:.2f})", ratio >= limit
        return f"{ratio:.3f} (≤ {limit:.2f})", ratio <= limit

    def met(self) -> bool:
        """Tell whether every bound is met."""
        return all(self.verdict(setting)[1] for setting in self.what.limits)

    def foreign(self) -> float:
        """Return the largest share of the machine that others took in any run used."""
        runs = [run for side in (self.ours, self.peer) for samples in side.values() for run in samples]
        return max((run.foreign or 0.0 for run in runs), default=0.0)


def measure(what: Comparison, setup: sides.Setup, rounds: int) -> Result:
    """Alternate between the sides for `rounds` rounds, every other round backwards."""
    result = Result(what, {name: [] for name in what.ours}, {name: [] for name in what.peer})
    todo = [("llama.cpp", name, side, result.peer[name]) for name, side in what.peer.items()]
    todo += [("llava_native", name, side, result.ours[name]) for name, side in what.ours.items()]
    for turn in range(rounds):
        for who, name, side, samples in reversed(todo) if turn % 2 else todo:
            sample = side(setup)
            samples.append(sample)
            shown = ", ".join(f"{value:.4g}" for value in sample.values)
            noise = "" if sample.foreign is None else f"; others {sample.foreign:.0%}"
            line = f"{what.key} {turn + 1}/{rounds} {who} {name}: {shown} {what.unit}{noise}"
            print(line, file=sys.stderr, flush=True)
    return result


def table(results: list[Result]) -> str:
    """Render the results as Markdown, a line for each setting."""
    lines = [
        "| What | Side | Setting | Median | Range | Against the best (bound) | Met |",
        "|---|---|---|---:|---|---|---|",
    ]
    for result in results:
        what, best = result.what, result.best_peer()
        for side, who in (("ours", "llava_native"), ("peer", "llama.cpp")):
            for setting in getattr(result, side):
                values = result.values(side, setting)
                text, mark = "", ""
                if side == "ours" and setting in what.limits:
                    text, met = result.verdict(setting)
                    mark = "yes" if met else "**no**"
                title = f"{setting} (best)" if side == "peer" and setting == best else setting
                lines.append(
                    f"| {what.title} | {who} | {title} | {harness.median(values):.4g} {what.unit} "
                    f"| {harness.spread(values)} | {text} | {mark} |"
                )
    return "\n".join(lines)


def same_answers(results: list[Result]) -> bool | None:
    """Tell whether both sides gave the same greedy answer with the same settings; None if not asked."""
    for result in results:
        if result.what.key == "rss":
            return len(sides.texts([*result.ours[SAME], *result.peer["mtmd-cli"]])) == 1
    return None


def cpu_name() -> str:
    """Return the processor's name and what of it matters here."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    useful = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(useful)})"


def environment(load: float, setup: sides.Setup) -> dict[str, Any]:
    """Describe the machine and the build."""
    import llava_native

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": setup.threads,
        "load_per_core_before": round(load, 3),
        "python": platform.python_version(),
        "llava_native": getattr(llava_native, "__version__", "?"),
        "build": getattr(llava_native, "build_info", dict)(),
    }


def report(results: list[Result], env: dict[str, Any], rounds: int) -> str:
    """Render the page's generated part."""
    noise = max((result.foreign() for result in results), default=0.0)
    same = same_answers(results)
    lines = [
        f"Measured {env['date']} on {env['cpu']}, {env['cpus']} CPUs, {env['threads']} threads; "
        f"{rounds} alternating rounds. Load per core before: {env['load_per_core_before']:.2f}; "
        f"others took at most {noise:.0%} of the machine during a run.",
        "",
        table(results),
    ]
    if same is not None:
        lines += ["", f"Both sides' greedy answers are the same: {'yes' if same else '**no**'}."]
    return "\n".join(lines) + "\n"


def rewrite(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put `text` between two markers of a page, at its end if it has none."""
    old = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    if begin not in old:
        old = f"{old.rstrip()}\n\n{begin}\n{end}\n"
    head, _, rest = old.partition(begin)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"{head}{begin}\n{text}{end}{rest.partition(end)[2]}", encoding="utf-8")


def as_json(results: list[Result], env: dict[str, Any]) -> str:
    """Render every sample, for later comparison."""
    rows = [
        {
            "key": result.what.key,
            "unit": result.what.unit,
            "verdicts": {setting: result.verdict(setting) for setting in result.what.limits},
            "best_peer": result.best_peer(),
            **{
                side: {name: [dataclasses.asdict(run) for run in runs] for name, runs in group.items()}
                for side, group in (("ours", result.ours), ("peer", result.peer))
            },
        }
        for result in results
    ]
    return json.dumps({"environment": env, "results": rows}, indent=1)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=[c.key for c in _comparisons()], metavar="KEY")
    parser.add_argument("--model", choices=sorted(models.TEXT), default="phi-3-mini")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements a process (default 3)")
    parser.add_argument("--tries", type=int, default=3, help="runs until one is undisturbed (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-load", type=float, default=0.5, help="load per core allowed at the start")
    parser.add_argument("--wait", type=float, default=300, help="seconds to wait for that (default 300)")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--cache", help="cache folder (default LLAVA_NATIVE_BENCH_CACHE or the platform's)")
    parser.add_argument("--source", help="llama.cpp tree of the peers (default vendor/llama.cpp)")
    parser.add_argument("--peers", help="folder of built peers, instead of building them")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.md")
    parser.add_argument("--docs", type=Path, help="page whose generated part is rewritten")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace, wanted: list[Comparison]) -> sides.Setup:
    """Build what is missing, models and programs."""
    tools, files = {}, {}
    if any(what.peer for what in wanted):
        names = ("llama-quantize", "llama-bench", "llama-mtmd-cli")
        if args.peers:
            tools = {name: Path(args.peers) / name for name in names}
        else:
            tools = peers.build(args.source, cache=args.cache, targets=names)
        files = models.ensure(args.model, cache=args.cache, source=args.source, tool=tools["llama-quantize"])
    folder = peers.cache_dir(args.cache)
    jpeg = peers.source_dir(args.source) / "tools" / "mtmd" / "test-1.jpeg"
    picture = sides.square_picture(jpeg, folder / "test-1-336.png")
    return sides.Setup(tools, files, picture, args.threads, tries=args.tries, repeat=args.repeat)


def main(argv: list[str] | None = None) -> int:
    """Measure; return 0 when every bound is met, 1 when one is not, 2 on a busy machine."""
    args = arguments(argv)
    wanted = [what for what in _comparisons() if not args.only or what.key in args.only]
    setup = prepare(args, wanted)
    load = harness.check_load(args.max_load, args.wait)
    if load > args.max_load:
        print(f"load {load:.2f} per core > {args.max_load}: figures would mean nothing", file=sys.stderr)
        if not args.force:
            return 2
    results: list[Result] = []
    env = environment(load, setup)
    for what in wanted:  # what there is is written after each: all of them take long, and may be interrupted
        results.append(measure(what, setup, args.rounds))
        text = report(results, env, args.rounds)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "bench.md").write_text(text, encoding="utf-8")
            (args.out / "bench.json").write_text(as_json(results, env), encoding="utf-8")
        if args.docs:
            rewrite(args.docs, text)
    print(text)
    return 0 if all(result.met() for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
