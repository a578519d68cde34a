"""Cases of any length, pooled as one by one: what is padded and grouped is not seen."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.dataset.cases import case_table
from ctssl_jax.methods import Cases
from ctssl_jax.methods.base import TrainState
from ctssl_jax.methods.cases import CaseHead, Pooling
from ctssl_jax.run.prediction import Predictor, pool_cases

LENGTHS, WIDTH = (5, 1000, 1, 17, 6, 64, 2), 8


@pytest.fixture(scope="module")
def bags():
    """Cases whose slices lie between each other in the split, and features of these."""
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    names = np.array([f"c{n}" for n in owner])
    order = rng.permutation(len(owner))
    table = case_table(owner.astype(np.int32) % 2, names, names, order)
    return table, rng.standard_normal((len(owner), WIDTH)).astype(np.float32)


@pytest.mark.parametrize("pooling", Pooling)
def test_cases_of_5_to_1000_slices_are_pooled_as_one_by_one(bags, pooling):
    table, features = bags
    method = Cases(classes=2, pooling=pooling, hidden=4)
    head = CaseHead(2, pooling, method.top_k, method.hidden).init(
        jax.random.key(0), jnp.zeros((1, 1, WIDTH)), jnp.ones((1, 1), bool)
    )["params"]
    state = TrainState(0, {"head": jax.device_put(head)}, {}, (), ())
    compiled = []

    def pool(head, x, valid):
        compiled.append(x.shape)
        logits, shares = method.case_logits(head, x, valid)
        return jax.nn.log_softmax(logits), shares

    predict = Predictor(types.SimpleNamespace, jax.jit(pool))
    found = pool_cases(predict, state, features, np.arange(len(features)), table)
    assert len(compiled) <= len(LENGTHS)
    assert max(n for _, n, _ in compiled) == 1024
    for place, rows in enumerate(table.rows):
        alone = jnp.asarray(features[rows])[None]
        logits, shares = method.case_logits(head, alone, jnp.ones((1, len(rows)), bool))
        expected = jax.nn.log_softmax(logits)[0]
        np.testing.assert_allclose(found.log_probabilities[place], expected, atol=1e-5)
        np.testing.assert_allclose(found.shares[place], shares[0], atol=1e-6)
        assert found.shares[place].sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_one_slice_a_case_makes_few_programs():
    n = 300
    names = np.full(n, "")
    table = case_table(np.zeros(n, np.int32), names, names, np.zeros(n, int))
    seen = []

    def pool(head, x, valid):
        seen.append(x.shape)
        return x[:, 0], valid.astype(jnp.float32)

    state = TrainState(0, {"head": {"w": jnp.zeros(1)}}, {}, (), ())
    features = np.arange(n, dtype=np.float32)[:, None]
    found = pool_cases(Predictor(pool, pool), state, features, np.arange(n), table)
    assert seen == [(512, 1, 1)]
    np.testing.assert_array_equal(found.log_probabilities[:, 0], np.arange(n))
