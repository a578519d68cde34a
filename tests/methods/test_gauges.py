"""Gauges against closed forms; the watch names a planted failure in time."""

import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.methods import gauges
from ctssl_jax.methods.base import l2_normalise
from ctssl_jax.run.health import COLLAPSED_RANK, PATIENCE, Watch, in_words

HEALTHY = {
    "loss": 3.0,
    "chance": 6.9,
    "embedding_std": 0.9,
    "effective_rank": 30.0,
    "prototypes": 500.0,
    "prototypes_used": 400.0,
    "queue_age_epochs": 0.3,
    "contrast_accuracy": 0.5,
}


def read(z):
    return {name: float(value) for name, value in gauges.embedding_gauges(z).items()}


def test_spread_is_one_on_the_sphere_and_zero_in_a_point():
    z = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)
    assert read(l2_normalise(jnp.asarray(z)))["embedding_std"] == pytest.approx(1.0, abs=0.02)
    point = jnp.tile(l2_normalise(jnp.asarray(z[:1])), (50, 1))
    assert read(point)["embedding_std"] == pytest.approx(0.0, abs=1e-5)
    assert read(point)["effective_rank"] < COLLAPSED_RANK


@pytest.mark.parametrize("batch", [64, 6])  # more and fewer samples than dimensions
def test_effective_rank_counts_directions_of_equal_weight(batch):
    axes = np.eye(8, dtype=np.float32)[:3]
    z = jnp.asarray(np.tile(np.concatenate([axes, -axes]), (batch // 6, 1)))
    assert read(z)["effective_rank"] == pytest.approx(3.0, rel=1e-4)


def test_perplexity_counts_what_is_in_use():
    p = jnp.asarray([[0.25] * 4 + [0.0] * 4, [1.0] + [0.0] * 7])
    np.testing.assert_allclose(gauges.perplexity(p), [4.0, 1.0], rtol=1e-4)


def test_the_gauges_are_said_in_words_and_absent_ones_are_not():
    assert in_words({"loss": 1.0, "lr": 1.0}) == ""
    words = in_words(HEALTHY)
    assert words == (
        "spread 0.90 of 1, rank 30.0, loss +3.90 below chance, 6.90, 50% find their partner, "
        "400 of 500 prototypes, queue 0.30 epochs old"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"embedding_std": 0.01}, "all embeddings are nearly equal (spread 0.010 of 1)"),
        ({"effective_rank": 1.02}, "lie on a line (effective rank 1.0)"),
        ({"prototypes_used": 9.0}, "only 9 of 500 prototypes"),
        ({"queue_age_epochs": 0.8}, "the queue spans 0.80 epochs"),
    ],
)
def test_a_failure_is_named_at_the_second_line_once_and_its_end_too(change, named):
    watch = Watch()
    assert watch.read(HEALTHY) == []
    assert watch.read({**HEALTHY, **change}) == []
    (line,) = watch.read({**HEALTHY, **change})
    assert line.startswith("WARNING: ")
    assert named in line
    assert "config." in line
    assert watch.read({**HEALTHY, **change}) == []
    (over,) = watch.read(HEALTHY)
    assert over.startswith("no longer: ")


def test_a_single_bad_line_is_not_named():
    watch = Watch()
    for values in ({**HEALTHY, "embedding_std": 0.01}, HEALTHY) * 3:
        assert watch.read(values) == []


def test_chance_is_named_after_the_first_lines():
    watch, lost = Watch(), {**HEALTHY, "loss": 6.88}
    said = [watch.read(lost) for _ in range(PATIENCE + 3)]
    assert [len(lines) for lines in said] == [0] * (PATIENCE + 1) + [1, 0]
    assert "no better than chance: loss 6.880 where guessing gives 6.900" in said[-2][0]
