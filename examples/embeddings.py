"""Image rows to NumPy, to a file and back, without a language model until the question comes.

python examples/embeddings.py examples/shapes.png   (needs NumPy)
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from llava_native import ImageEmbedding, ImageEncoder, Llava
from llava_native.demo import demo_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    files = (args.model, args.mmproj) if args.model else demo_files()
    with ImageEncoder(files[1]) as encoder:
        rows = encoder.encode(args.image)
        array = np.asarray(rows)  # the same memory, not a copy
        print(f"{array.shape} {array.dtype}, at {rows.address:#x} and {array.ctypes.data:#x}")

        path = Path(tempfile.gettempdir()) / "picture.emb"
        rows.save(path)
        again = ImageEmbedding.load(path, encoder=encoder)  # refused, had another encoder made it
        path.unlink()
        print("equal after a round trip:", np.array_equal(array, again))

        doubled = ImageEmbedding.from_buffer(array * 2)  # rows of your own; borrowed, not copied
        with Llava(files[0], encoder, n_ctx=2048) as llava:
            for embedding in (again, doubled):
                print(llava.describe(embedding, max_tokens=16))


if __name__ == "__main__":
    main()
