"""Show an answer as it comes, then its figures: python examples/stream.py text.gguf mmproj.gguf photo.jpg"""

import sys

from llava_native import Llava


def main() -> None:
    model, mmproj, image = sys.argv[1:]
    with (
        Llava(model, mmproj) as llava,
        llava.stream("What is this?", image=image, max_tokens=64, seed=1) as stream,
    ):
        for token in stream:
            print(token.text, end="", flush=True)
    print(f"\n{stream.finish_reason}, {stream.usage}, {stream.timings}", file=sys.stderr)


if __name__ == "__main__":
    main()
