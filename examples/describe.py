"""Describe pictures: python examples/describe.py text.gguf mmproj.gguf photo.jpg [more.jpg …]"""

import sys

from llava_native import Llava, LlavaError


def main() -> None:
    model, mmproj, *images = sys.argv[1:]
    with Llava(model, mmproj) as llava:
        for image in images:
            try:
                print(f"{image}: {llava.describe(image, max_tokens=64)}")
            except (LlavaError, OSError) as exc:  # this image is bad; the next may be sound
                print(f"{image}: {exc}", file=sys.stderr)


if __name__ == "__main__":
    main()
