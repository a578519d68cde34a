"""Cuts the pictures of a folder to their central 64 x 64 pixels, as the study's plan says.

    python docs/results/centre.py FROM TO

PNG files keep their place below the folder.
"""

import os
import sys
from pathlib import Path

from PIL import Image

SIDE = 64


def main(source: Path, out: Path) -> None:
    """Writes the centre of each picture."""
    found = [Path(at, name) for at, _, names in os.walk(source, followlinks=True) for name in names]
    pictures = sorted(path for path in found if path.suffix == ".png")
    if not pictures:
        sys.exit(f"{source}: no PNG file there or below")
    for path in pictures:
        with Image.open(path) as picture:
            left, top = ((length - SIDE) // 2 for length in picture.size)
            centre = picture.crop((left, top, left + SIDE, top + SIDE))
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        centre.save(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
