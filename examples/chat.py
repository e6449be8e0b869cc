"""Talk about a picture, turn by turn: python examples/chat.py text.gguf mmproj.gguf photo.jpg"""

import sys

from llava_native import Llava

QUESTIONS = ("What is this?", "What colour is it?", "Is it dangerous?")


def main() -> None:
    model, mmproj, image = sys.argv[1:]
    with Llava(model, mmproj) as llava:
        chat = llava.chat()
        for n, question in enumerate(QUESTIONS):
            print(f"> {question}")
            # the picture is shown once and remembered
            for token in chat.send(question, image=None if n else image, temperature=0, max_tokens=32):
                print(token.text, end="", flush=True)
            print()
        print(f"{len(chat.messages)} messages, {chat.plan('And?').n_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
