"""Near pairs do not depend on which lot comes first, nor on the order of the slices."""

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.dataset import alignment, matching
from ctssl_jax.dataset.alignment import LIKENESS, NEAR, aligned_cosine, detail, is_near
from ctssl_jax.dataset.matching import exact_pairs, names, near_pairs
from ctssl_jax.dataset.signatures import SIDE, Signatures, describe, thumbnail


def picture(seed, size=48):
    """Smooth shapes and fine texture: its spectrum falls as that of pictures."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) * size + 1
    spectrum = rng.normal(size=(2, *frequency.shape)) / frequency**1.5
    found = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (size, size))
    return np.rint(20 + 200 * (found - found.min()) / np.ptp(found)).astype(np.int16)


def head(seed, size=96):
    """A skull, the same in all, and a brain that is this person's own."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / 0.7, y / 0.85)
    brain = np.clip(60 + 0.9 * (picture(seed, size) - 120), 0, 255)
    return np.where(radius < 0.9, brain, np.where(radius < 1, 255, 0)).astype(np.int16)


def signatures(images):
    described = [describe(np.ascontiguousarray(image), "grey8") for image in images]
    row = np.array([f"{n}" for n in range(len(images))], "S16")
    zero = np.zeros(len(images), np.int32)
    return Signatures(
        np.array([one.digest for one in described], np.uint64),
        np.array([one.dhash for one in described], np.uint64),
        np.stack([one.thumbnail for one in described]),
        row,
        row,
        zero,
        zero,
    )


def edited(image, seed):
    """Cut, brightened, mirrored or resized, at random."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 3, 2)
    image = image[top:, left:]
    image = image[:, ::-1] if rng.integers(2) else image.T
    return np.clip(image + rng.integers(-20, 20), 0, 255).astype(np.int16)


def as_set(pairs, left, right):
    """The pairs by what their slices are called, whatever the rows."""
    return {
        (left.patient[one], right.patient[other])
        for one, other in zip(pairs.left, pairs.right, strict=True)
    }


@pytest.mark.parametrize("find", [near_pairs, exact_pairs])
@pytest.mark.parametrize("seed", range(3))
def test_neither_the_order_of_the_lots_nor_of_the_slices_matters(find, seed, monkeypatch):
    monkeypatch.setattr(matching, "BLOCK", 9 if seed == 2 else 65536)
    monkeypatch.setattr(matching, "BUCKET", 2)  # so that some of a bucket are left out
    originals = [picture(seed) for seed in range(16)]
    copies = [edited(originals[n], [seed, n]) for n in (1, 1, 4, 4, 4, 9)]
    left = signatures(originals)
    right = signatures([*copies, originals[3], *(picture(100 + n) for n in range(6))])
    forth, back = find(left, right), find(right, left)
    assert len(forth.left)
    pairs = sorted(zip(forth.left.tolist(), forth.right.tolist(), strict=True))
    assert pairs == sorted(zip(back.right.tolist(), back.left.tolist(), strict=True))
    rng = np.random.default_rng(seed)
    one, other = (s.take(rng.permutation(len(s))) for s in (left, right))
    assert as_set(find(one, other), one, other) == as_set(forth, left, right)


def test_a_copy_is_told_whichever_of_the_two_was_cut():
    image = picture(3, 400)
    one, other = (thumbnail(x, "grey8")[None] for x in (image, image[16:-8, 8:-16]))
    assert aligned_cosine(other, one)[0] < aligned_cosine(one, other)[0]
    assert is_near(one, other).all()
    assert is_near(other, one).all()


def test_two_heads_with_one_skull_are_told_apart():
    """By their detail: the cosine alone would take them for copies."""
    images = [head(seed) for seed in range(8)]
    small = np.stack([thumbnail(image, "grey8") for image in images])
    one, other = np.triu_indices(len(images), 1)
    assert aligned_cosine(small[one], small[other]).min() > NEAR
    assert not is_near(small[one], small[other]).any()
    brighter = [np.clip(image * 0.8 + 30, 0, 255).astype(np.int16) for image in images]
    assert is_near(small, np.stack([thumbnail(image, "grey8") for image in brighter])).all()


def test_what_is_faint_and_noisy_is_told_by_the_cosine_alone(monkeypatch):
    """Noise takes the detail of its flat parts."""
    flat = np.full((1, SIDE, SIDE), 110.0)
    flat[:, 6:15, 5:13], flat[:, 3:5, 16:20] = 140, 80
    noise = np.random.default_rng(0).normal(size=(2, 1, SIDE, SIDE))
    one, other = (np.rint(flat + part).astype(np.uint8) for part in noise)
    assert aligned_cosine(one, other)[0] >= NEAR
    fine = detail(one.astype(float), other.astype(float))
    assert (2 * aligned_cosine(one, other) + fine)[0] / 3 < LIKENESS
    assert is_near(one, other)[0]
    monkeypatch.setattr(alignment, "FAINT", 100.0)  # as if much differed
    assert not is_near(one, other)[0]


def test_the_detail_is_a_mean_correlation_of_neighbourhoods():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (3, SIDE, SIDE)).astype(float)
    np.testing.assert_allclose(detail(one, one), 1, atol=0.01)
    np.testing.assert_allclose(detail(one, 255 - one), -1, atol=0.01)
    np.testing.assert_allclose(detail(one, 0.2 * one + 90), 1, atol=0.01)
    assert np.abs(detail(one, one[::-1])[[0, 2]]).max() < 0.2


def test_a_pair_that_is_known_to_be_none_gives_way_to_the_next():
    image = picture(1)
    first = np.clip(image + 5, 0, 255).astype(np.int16)
    second = np.asarray(Image.fromarray(image.astype(np.uint8)).resize((40, 40))).astype(np.int16)
    left, right = signatures([first, second, picture(2)]), signatures([image])
    found = near_pairs(left, right)
    assert len(found.left) == 1
    apart = names(left, right, found)
    again = near_pairs(left, right, apart)
    assert again.left.tolist() == [1 - found.left[0]]
    assert near_pairs(right, left, apart).right.tolist() == again.left.tolist()
    assert len(near_pairs(left, right, [*apart, *names(left, right, again)]).left) == 0
