"""The loss of cases against its formula, and against `Supervised` where each has one slice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ENCODER

from ctssl_jax.augment import ViewGroup
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods import Cases, Supervised
from ctssl_jax.methods.base import Progress, TrainState
from ctssl_jax.methods.cases import Learn, Pooling

LENGTHS, PADDED = (4, 1, 3), 4
LABEL = np.array([1, 0, 1], np.int32)
VALID = (np.arange(PADDED) < np.array(LENGTHS)[:, None]).ravel()
POOLINGS = [pooling for pooling in Pooling if pooling is not Pooling.ATTENTION]


def method(cls=Cases, **fields):
    return cls(classes=2, view=ViewGroup(size=32), **fields)


def images(n, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal((n, 32, 32, 1)).astype(np.float32))


def state_of(method, seed=0):
    initial = method.init(ENCODER, jax.random.key(seed), 1)
    return TrainState(jnp.int32(0), initial.params, initial.batch_stats, (), ())


def loss(method, state, batch):
    @jax.jit
    def run(params, state, batch):
        return method.loss(
            ENCODER, params, state, batch, jax.random.key(0), Progress(jnp.int32(0), 1, 1, 1)
        )

    return run(state.params, state, batch)


def case_batch(image=None, **more):
    image = images(len(VALID)) if image is None else image
    return {
        "views": (image[None],),
        "label": jnp.asarray(LABEL),
        "valid": jnp.asarray(VALID),
        "slice_label": jnp.asarray(np.repeat(LABEL, PADDED)),
        **more,
    }


def softmax_loss(logits, labels, weights=None):
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.average(-logs[np.arange(len(labels)), labels], weights=weights)


@pytest.mark.parametrize("pooling", Pooling)
def test_padding_is_not_seen(pooling):
    """Neither by the loss, nor by BatchNorm, nor by the gradient."""
    own = method(pooling=pooling, hidden=4)
    state, image = state_of(own), images(len(VALID))
    noise = jnp.where(jnp.asarray(VALID)[:, None, None, None], image, 1e3)
    found, out = loss(own, state, case_batch(image))
    again, other = loss(own, state, case_batch(noise))
    np.testing.assert_allclose(found, again, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        out.batch_stats,
        other.batch_stats,
    )


@pytest.mark.parametrize("learn", Learn)
def test_one_slice_a_case_is_supervised(learn):
    """Loss, batch statistics and gradients, at equal parameters."""
    own, plain = method(learn=learn), method(Supervised)
    state, image = state_of(own), images(3)
    as_slices = state.replace(params={**state.params, "head": state.params["head"]["classifier"]})
    one = {"valid": jnp.ones(3, bool), "slice_label": jnp.asarray(LABEL)}
    batch = {"views": (image[None],), "label": jnp.asarray(LABEL)}
    found, out = loss(own, state, batch | one)
    expected, theirs = loss(plain, as_slices, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        out.batch_stats,
        theirs.batch_stats,
    )
    features = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 16)), jnp.float32)
    ours = own.case_logits(state.params["head"], features, jnp.ones((3, 1), bool))[0]
    alone = plain.case_logits(as_slices.params["head"], features, jnp.ones((3, 1), bool))[0]
    np.testing.assert_allclose(
        jax.nn.softmax(ours), jax.nn.softmax(alone), rtol=1e-5, err_msg="up to a constant"
    )


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_the_loss_of_known_features_is_that_of_their_pooled_vector(weights):
    own = method(class_weights=weights)
    state = state_of(own)
    rng = np.random.default_rng(0)
    features = np.where(VALID[:, None], rng.standard_normal((len(VALID), 16)), 0)
    batch = case_batch(features=jnp.asarray(features, jnp.float32))
    found, out = loss(own, state, batch)
    linear = state.params["head"]["classifier"]["linear"]
    bags = features.reshape(3, PADDED, 16)
    pooled = np.stack([bag[:n].mean(axis=0) for bag, n in zip(bags, LENGTHS, strict=True)])
    logits = pooled @ linear["kernel"] + linear["bias"]
    expected = softmax_loss(logits, LABEL, np.array(weights)[LABEL] if weights else None)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, out.batch_stats, state.batch_stats)


def test_slices_learn_their_own_labels():
    own = method(learn=Learn.SLICES)
    state = state_of(own)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(VALID), 16))
    labels = rng.integers(0, 2, len(VALID)).astype(np.int32)
    batch = case_batch(features=jnp.asarray(features, jnp.float32), slice_label=jnp.asarray(labels))
    found, _ = loss(own, state, batch)
    linear = state.params["head"]["classifier"]["linear"]
    logits = features @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(found, softmax_loss(logits, labels, VALID * 1.0), rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_scores_of_slices_are_pooled_as_log_odds(pooling):
    own = method(learn=Learn.SLICES, pooling=pooling, top_k=2)
    head = state_of(own).params["head"]
    bags = np.random.default_rng(1).standard_normal((3, PADDED, 16)).astype(np.float32)
    valid = VALID.reshape(3, PADDED)
    logits, _ = own.case_logits(head, jnp.asarray(bags), jnp.asarray(valid))
    linear = head["classifier"]["linear"]
    for case, n in enumerate(LENGTHS):
        each = bags[case, :n] @ linear["kernel"] + linear["bias"]
        odds = np.sort(each[:, 1] - each[:, 0])
        expected = {"mean": odds, "max": odds[-1:], "top_k": odds[-2:]}[pooling.value].mean()
        np.testing.assert_allclose(logits[case, 1] - logits[case, 0], expected, rtol=1e-4)


def test_the_head_is_named_for_export():
    head = state_of(method(pooling=Pooling.ATTENTION)).params["head"]
    assert {name: sorted(of) for name, of in head.items()} == {
        "attention": ["U", "V", "w"],
        "classifier": ["linear"],
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"slices": 0}, r"method\.slices=0: must be 1 or more"),
        ({"top_k": 0}, r"method\.top_k=0: must be 1 or more"),
        ({"frozen": True}, r"method\.frozen=true and method\.view\.hflip=0\.5: features are"),
        ({"learn": Learn.SLICES, "pooling": Pooling.ATTENTION}, "teaches no attention"),
    ],
)
def test_what_makes_no_sense_is_named(fields, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(Cases(), **fields).validate()
