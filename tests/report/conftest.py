"""For tests of what the page says, which need no pictures."""

import pytest

from ctssl_jax.report.figures.picture import Picture

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)


@pytest.fixture
def undrawn(monkeypatch):
    """One pixel in place of every drawing; its words and numbers stay."""
    for module in ("study", "pretraining", "annotations"):
        monkeypatch.setattr(
            f"ctssl_jax.report.sections.{module}.drawn",
            lambda name, alt, draw, numbers: Picture(name, alt, PIXEL, numbers=numbers),
        )
