"""Masks among images: told by where they lie and what they are called, or by their values."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from data_prep.readers.image_file import is_named_image

_FOLDER = re.compile(
    r"(.*[ _-])?(masks?|labels?|annotations?|annots?|segmentations?|segs?|groundtruths?|gts?)"
    r"([ _-].*)?"
)
_AFFIX = re.compile(
    r"^(mask|seg|label|gt)[ _-]+|[ _.-]+(mask|seg|label|gt|segmentation)([ _-]?[0-9]+)?$"
)
MAX_VALUES = 8  # of a mask; the darkest slice of CT has more
MIN_PIXELS = 1024  # fewer say nothing of how many values there are
MIN_EQUAL = 0.9  # share of neighbours, since a mask is areas of one value


def mask_names(paths: Iterable[str], root: Path) -> set[str]:
    """The files that are masks by their names, each beside an image of the same name.

    That is a file in a folder called masks, labels, annotations or the like with one of the same
    name in another folder, or NAME_mask beside NAME in the same folder.
    """
    in_folders, images, plain = [], set(), set()
    for path in filter(is_named_image, paths):
        *folders, name = Path(path).relative_to(root).parts
        stem = Path(name).stem.lower()
        if any(_FOLDER.fullmatch(folder.lower()) for folder in folders):
            in_folders.append((path, stem))
        else:
            images.add(stem)
            plain.add((tuple(folders), stem, path))
    beside = {(folders, stem) for folders, stem, _ in plain}
    masks = {path for path, stem in in_folders if {stem, _AFFIX.sub("", stem)} & images}
    return masks | {
        path
        for folders, stem, path in plain
        if (base := _AFFIX.sub("", stem)) != stem and (folders, base) in beside
    }


def is_mask(image: Int16[np.ndarray, "h w"]) -> bool:
    """Whether an image has a few values alone, in areas of one value each.

    One of one value may be an empty mask or an empty slice, and is none by this.
    """
    if image.size < MIN_PIXELS or len(np.unique(image[::8, ::8])) > MAX_VALUES:
        return False
    values = len(np.unique(image))
    equal = float(np.mean(image[:, 1:] == image[:, :-1]))
    return 1 < values <= MAX_VALUES and equal >= MIN_EQUAL
