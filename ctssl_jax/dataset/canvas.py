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
    resized = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return np.rint(np.asarray(resized)).astype(np.int16)
