"""How far a pass over slices is, told by one process for all while it takes long."""

import time

from ctssl_jax.hosts import distributed
from ctssl_jax.log import duration

TOLD_EVERY_S = 20.0


class Progress:
    """Lines that tell how many slices are done, how fast, and how long the rest will take.

    Args:
      split: that the slices are of.
      slices: of the pass, over all processes.
    """

    def __init__(self, split: str, slices: int):
        self._split, self._slices, self._done = split, slices, 0
        self._began = self._told = time.monotonic()

    def batch(self, size: int) -> None:
        """Called before each batch."""
        now = time.monotonic()
        if self._done and now - self._told > TOLD_EVERY_S:
            self._told, speed = now, self._done / (now - self._began)
            left = duration((self._slices - self._done) / speed)
            distributed.say(
                f"{self._split}: {self._done:,} of {self._slices:,} slices, {speed:,.1f} slices/s, "
                f"{left} left"
            )
        self._done = min(self._done + size, self._slices)
