"""Get facts about a picture as JSON: python examples/json_answer.py text.gguf mmproj.gguf photo.jpg"""

import json
import sys

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
    model, mmproj, image = sys.argv[1:]
    with Llava(model, mmproj) as llava:
        result = llava.generate(
            "What kind of picture is this, and which colours has it?",
            image=image,
            temperature=0,
            constraint=Constraint.json_schema(SCHEMA),
        )
    facts = json.loads(result.text)
    print(facts["kind"], *facts["colours"])


if __name__ == "__main__":
    main()
