"""Show an answer as it comes, then its figures: python examples/stream.py examples/shapes.png"""

import argparse
import sys

from llava_native import Llava


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    with (
        Llava(args.model, args.mmproj) if args.model else Llava.demo() as llava,
        llava.stream("What is this?", image=args.image, max_tokens=64, seed=1) as stream,
    ):
        for token in stream:
            print(token.text, end="", flush=True)
    print(f"\n{stream.finish_reason}, {stream.usage}, {stream.timings}", file=sys.stderr)


if __name__ == "__main__":
    main()
