"""Draw the curves of the model card: losses, and accuracy by kind of question.

``python -m training.plot --out DIR`` reads DIR/log.json and writes DIR/loss.svg and DIR/accuracy.svg.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def curves(log: list[dict]) -> tuple[dict, dict]:
    """Sort the log into curves: name → (steps, values), losses first, accuracies second."""
    losses: dict = {}
    shares: dict = {}
    for entry in log:
        for name in ("answer", "patches"):
            if entry.get(name):
                losses.setdefault(name, ([], []))
                losses[name][0].append(entry["step"])
                losses[name][1].append(entry[name])
        for kind, (share, _) in entry.get("accuracy", {}).items():
            shares.setdefault(kind, ([], []))
            shares[kind][0].append(entry["step"])
            shares[kind][1].append(100 * share)
    return losses, shares


def draw(lines: dict, label: str, path: Path, log_scale: bool) -> None:
    """Draw one figure."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, label=name, linestyle="--" if name.startswith("patch ") else "-")
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_yscale("log" if log_scale else "linear")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/llava_native/training")
    args = parser.parse_args()
    losses, shares = curves(json.loads((args.out / "log.json").read_text()))
    draw(losses, "loss", args.out / "loss.svg", log_scale=True)
    draw(shares, "held-out answers exactly right, %", args.out / "accuracy.svg", log_scale=False)


if __name__ == "__main__":
    main()
