"""Write a tiny LLaVA pair with random weights, to try the package without downloading a model.

It answers every question with nonsense: nothing was ever trained. It needs NumPy, and the vocabulary in
vendor/llama.cpp, which the build fills.

    python examples/random_pair.py pair
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.tiny_models import write_pair


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "pair")
    folder.mkdir(parents=True, exist_ok=True)
    pair = write_pair(folder, layout="legacy", vocab="phi-3", dtype="f16")
    print(f"{pair.text.path}\n{pair.mmproj.path}")
    print("random weights: whatever they answer means nothing", file=sys.stderr)


if __name__ == "__main__":
    main()
