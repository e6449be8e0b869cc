"""Draw the pictures of ``examples/``: scenes and a font that training never saw.

``python -m training.pictures --to examples`` needs Debian's package fonts-open-sans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .data_scene import Scene, draw_scene, sample_scene
from .data_talk import describe
from .evaluate import HELD_OUT

FONT = "/usr/share/fonts/truetype/open-sans/OpenSans-Bold.ttf"
ORIENTATION = 0x0112  # EXIF


class Picture(NamedTuple):
    """A file, its scene's number after those of the evaluation, its longer side, and how it is written.

    The scenes are some that the shipped model describes truly.
    """

    name: str
    scene: int
    side: int
    options: dict[str, Any]


PICTURES = (
    Picture("shapes.png", 107, 480, {"optimize": True}),
    Picture("sign.webp", 57, 640, {"quality": 85}),
    Picture("turned.jpg", 649, 640, {"quality": 85}),
    Picture("large.jpg", 28, 3000, {"quality": 80}),
    Picture("left.png", 87, 400, {"optimize": True}),
    Picture("right.png", 22, 400, {"optimize": True}),
)


def scene_of(picture: Picture) -> Scene:
    """Return what a picture shows."""
    return sample_scene(2 * HELD_OUT + picture.scene)


def write(picture: Picture, folder: Path) -> str:
    """Draw a picture into `folder`; returns its true description.

    "turned.jpg" lies on its side in the file, and its EXIF says how to turn it, as cameras write them.
    """
    scene = scene_of(picture)
    image, _ = draw_scene(scene, picture.side, [FONT])
    options = dict(picture.options)
    if picture.name.startswith("turned"):
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[ORIENTATION] = 6  # turn it clockwise to show it
        options["exif"] = exif
    image.save(folder / picture.name, **options)
    return describe(scene)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("examples"))
    args = parser.parse_args()
    for picture in PICTURES:
        print(f"{picture.name:12s} {write(picture, args.to)}")


if __name__ == "__main__":
    main()
