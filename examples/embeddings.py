"""Image rows to NumPy, to a file and back, without a language model until the question comes.

python examples/embeddings.py text.gguf mmproj.gguf photo.jpg   (needs NumPy)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from llava_native import ImageEmbedding, ImageEncoder, Llava


def main() -> None:
    model, mmproj, image = sys.argv[1:]
    with ImageEncoder(mmproj) as encoder:
        rows = encoder.encode(image)
        array = np.asarray(rows)  # the same memory, not a copy
        print(f"{array.shape} {array.dtype}, at {rows.address:#x} and {array.ctypes.data:#x}")

        path = Path(tempfile.gettempdir()) / "picture.emb"
        rows.save(path)
        again = ImageEmbedding.load(path, encoder=encoder)  # refused, had another encoder made it
        path.unlink()
        print("equal after a round trip:", np.array_equal(array, again))

        doubled = ImageEmbedding.from_buffer(array * 2)  # rows of your own; borrowed, not copied
        with Llava(model, encoder) as llava:
            for embedding in (again, doubled):
                print(llava.describe(embedding, max_tokens=16))


if __name__ == "__main__":
    main()
