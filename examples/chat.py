"""Talk about a picture, turn by turn: python examples/chat.py examples/shapes.png"""

import argparse
import sys

from llava_native import Llava

QUESTIONS = ("What is this?", "What is the largest thing?", "What colour is it?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    with Llava(args.model, args.mmproj) if args.model else Llava.demo() as llava:
        chat = llava.chat()
        for n, question in enumerate(QUESTIONS):
            print(f"> {question}")
            # the picture is shown once and remembered
            for token in chat.send(question, image=None if n else args.image, temperature=0, max_tokens=32):
                print(token.text, end="", flush=True)
            print()
        print(f"{len(chat.messages)} messages, {chat.plan('And?').n_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
