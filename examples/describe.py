"""Describe pictures: python examples/describe.py examples/shapes.png [more.jpg …]"""

import argparse
import sys

from llava_native import Llava, LlavaError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    with Llava(args.model, args.mmproj) if args.model else Llava.demo() as llava:
        for image in args.images:
            try:
                print(f"{image}: {llava.describe(image, max_tokens=64)}")
            except (LlavaError, OSError) as exc:  # this image is bad; the next may be sound
                print(f"{image}: {exc}", file=sys.stderr)


if __name__ == "__main__":
    main()
