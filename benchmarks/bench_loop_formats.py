"""How long a picture of 12 megapixels blocks an event loop, by the format of its file.

    python benchmarks/bench_loop_formats.py

The embedded model answers about each file; the rows are those of bench_loop.py.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import time

import numpy as np
from bench_loop import PICTURES, row
from PIL import Image

from llava_native import Llava

FORMATS = {
    "JPEG": {},
    "PNG": {"compress_level": 1},
    "WEBP": {"quality": 80},
    "WEBP lossless": {"lossless": True, "method": 0},
    "AVIF": {"speed": 10},
    "JPEG2000": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "PPM": {},
}


def files() -> dict[str, bytes]:
    """Return the same picture, with a camera's noise, in every format."""
    picture = Image.open(PICTURES[0]).convert("RGB").resize((4000, 3000))
    noise = np.random.default_rng(0).integers(-8, 8, (3000, 4000, 3))
    picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    made = {}
    for name, options in FORMATS.items():
        file = io.BytesIO()
        picture.save(file, name.split()[0], **options)
        made[name] = file.getvalue()
    return made


async def answer(llava: Llava, name: str, data: bytes) -> None:
    """Ask about a file, and print how long that took."""
    began = time.perf_counter()
    await llava.stream("Describe the image.", image=data, temperature=0).aresult()
    print(f"{name}, {len(data) / 1e6:.1f} MB: {time.perf_counter() - began:.2f} s")


async def measure(llava: Llava) -> None:
    """Print a row for each format."""
    await llava.stream("Describe the image.", image=PICTURES[0]).aresult()
    for name, data in files().items():
        await row(name, answer(llava, name, data))


def main() -> None:
    """Run from the command line."""
    argparse.ArgumentParser(description=__doc__.split("\n", 1)[0]).parse_args()
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs")
    with Llava.demo(n_threads=1) as llava:
        asyncio.run(measure(llava))


if __name__ == "__main__":
    main()
