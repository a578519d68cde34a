"""First-order and texture features, against published and hand-made numbers."""

import numpy as np
import pytest
from scipy import stats

from ctssl_jax.frozen.radiomics import (
    BINS,
    FIRST_ORDER,
    NAMES,
    TEXTURE,
    co_occurrence,
    first_order,
    radiomics,
    texture,
)

# Haralick et al. 1973, figure 3: an image of four grey levels and its matrices, not normalised.
IMAGE = np.array([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]]])
PUBLISHED = {
    (0, 1): [[4, 2, 1, 0], [2, 4, 0, 0], [1, 0, 6, 1], [0, 0, 1, 2]],
    (1, 0): [[6, 0, 2, 0], [0, 4, 2, 0], [2, 2, 2, 2], [0, 0, 2, 0]],
    (1, -1): [[4, 1, 0, 0], [1, 2, 2, 0], [0, 2, 4, 1], [0, 0, 1, 0]],
    (1, 1): [[2, 1, 3, 0], [1, 2, 1, 0], [3, 1, 0, 2], [0, 0, 2, 0]],
}


@pytest.mark.parametrize("step", PUBLISHED)
def test_co_occurrence_is_that_of_the_paper(step):
    published = np.array(PUBLISHED[step])
    np.testing.assert_allclose(co_occurrence(IMAGE, step, 4)[0], published / published.sum())


def test_texture_by_hand():
    """Levels 0 and 1 side by side: half of the pairs are unlike."""
    p = np.array([[[0.25, 0.25], [0.25, 0.25]], [[1.0, 0.0], [0.0, 0.0]]])
    of = dict(zip(TEXTURE, texture(p).T, strict=True))
    np.testing.assert_allclose(of["contrast"], [0.5, 0.0])
    np.testing.assert_allclose(of["dissimilarity"], [0.5, 0.0])
    np.testing.assert_allclose(of["homogeneity"], [0.75, 1.0])
    np.testing.assert_allclose(of["energy"], [0.5, 1.0])
    np.testing.assert_allclose(of["correlation"], [0.0, 1.0])
    np.testing.assert_allclose(of["entropy"], [np.log(4), 0.0], atol=1e-12)


def test_first_order_by_hand():
    x = np.array([[0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    of = dict(zip(FIRST_ORDER, first_order(x).T, strict=True))
    np.testing.assert_allclose(of["mean"], [0.25, 0.5])
    np.testing.assert_allclose(of["deviation"], [np.sqrt(3) / 4, 0.0])
    np.testing.assert_allclose(of["skewness"], [2 / np.sqrt(3), 0.0])
    np.testing.assert_allclose(of["kurtosis"], [stats.kurtosis(x[0]), 0.0])
    np.testing.assert_allclose(of["energy"], [0.25, 0.25])
    np.testing.assert_allclose(of["uniformity"], [0.625, 1.0])
    np.testing.assert_allclose(of["entropy"], [-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0.0])
    np.testing.assert_allclose(of["quantile_0.5"], [0.0, 0.5])
    assert BINS > 1


def test_a_slice_has_its_features_whatever_lies_beside_it():
    x = np.random.default_rng(0).uniform(size=(3, 16, 16))
    x[2] = 0.5
    found = radiomics(x)
    assert found.shape == (3, len(NAMES))
    assert np.isfinite(found).all()
    for row in range(3):
        np.testing.assert_allclose(radiomics(x[row : row + 1])[0], found[row], rtol=1e-12)


def test_turning_a_slice_leaves_its_features():
    """Four directions in quarters of a turn are all that this can see of an orientation."""
    x = np.random.default_rng(1).uniform(size=(1, 12, 12))
    turned = np.rot90(x, axes=(1, 2))
    np.testing.assert_allclose(radiomics(turned), radiomics(x), rtol=1e-9)
