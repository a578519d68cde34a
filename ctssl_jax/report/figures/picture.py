"""A picture of the page: a PNG in light and dark, its words, and its numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from ctssl_jax.report.figures.theme import THEMES, Theme


@dataclass(frozen=True)
class Picture:
    """A PNG to show; `dark` is the same in dark colours, `numbers` as CSV, where there are any."""

    name: str
    alt: str
    light: bytes
    dark: bytes | None = None
    numbers: str = ""

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG header."""
        return int.from_bytes(self.light[16:20]), int.from_bytes(self.light[20:24])

    def files(self) -> dict[str, bytes]:
        """What lies in the folder `figures` beside the page, by file name."""
        found = {f"{self.name}.png": self.light}
        if self.dark:
            found[f"{self.name}-dark.png"] = self.dark
        if self.numbers:
            found[f"{self.name}.csv"] = self.numbers.encode()
        return found


@dataclass(frozen=True)
class Numbers:
    """The numbers of a table of the page as CSV."""

    name: str
    numbers: str

    def files(self) -> dict[str, bytes]:
        """What lies in the folder `figures` beside the page, by file name."""
        return {f"{self.name}.csv": self.numbers.encode()}


def drawn(name: str, alt: str, draw: Callable[[Theme], bytes], numbers: str) -> Picture:
    """A picture by a function of its colours."""
    light, dark = map(draw, THEMES)
    return Picture(name, alt, light, dark, numbers)
