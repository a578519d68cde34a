"""One size for all slices, by area averages: what the host does to a slice before batching."""

import numpy as np
from jaxtyping import Int16
from PIL import Image

SMALLEST = 32  # pixels a side: what a ResNet reduces to one


def to_canvas(image: Int16[np.ndarray, "h w"], size: int) -> Int16[np.ndarray, "{size} {size}"]:
    """The slice at `size` x `size` by averaging the pixels of each cell, rounded.

    The aspect ratio is not kept, as in the paper's downstream tasks ("area" interpolation).
    Enlarging by a whole factor repeats pixels; a slice of the right size is returned as it is.
    """
    if image.shape == (size, size):
        return image
    rows, columns = image.shape
    # Pillow makes the floats itself, which spares two copies of the slice.
    whole = Image.frombytes("F", (columns, rows), np.ascontiguousarray(image), "raw", "F;16NS")
    return np.rint(np.asarray(whole.resize((size, size), Image.Resampling.BOX))).astype(np.int16)
