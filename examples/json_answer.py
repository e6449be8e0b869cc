"""Get facts about a picture as JSON: python examples/json_answer.py examples/shapes.png"""

import argparse
import json

from llava_native import Constraint, Llava

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["photograph", "drawing", "text"]},
        "colours": {
            "type": "array",
            "items": {"enum": ["red", "green", "blue", "black", "white"]},
            "maxItems": 3,
        },
    },
    "required": ["kind", "colours"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    with Llava(args.model, args.mmproj) if args.model else Llava.demo() as llava:
        result = llava.generate(
            "What kind of picture is this, and which colours has it?",
            image=args.image,
            temperature=0,
            constraint=Constraint.json_schema(SCHEMA),
        )
    facts = json.loads(result.text)
    print(facts["kind"], *facts["colours"])


if __name__ == "__main__":
    main()
