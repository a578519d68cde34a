"""The contrastive methods against closed forms, and their order of events."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import ENCODER, METHODS, loss_batch

from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import Progress, apply_in_groups, ema, l2_normalise
from ctssl_jax.methods.byol import TauSchedule, regression_loss
from ctssl_jax.methods.moco import NO_RECORD, info_nce
from ctssl_jax.methods.simclr import nt_xent
from ctssl_jax.methods.swav import sinkhorn, swapped_loss
from ctssl_jax.nn.heads import MLP

RNG = np.random.default_rng(0)
STEPS = 20
COMPILED = {}  # programs of `loss_of`


def unit_rows(*shape, seed=0):
    return l2_normalise(
        jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
    )


def progress(step=3):
    return Progress(jnp.int32(step), STEPS, tiny.STEPS_PER_EPOCH)


def loss_of(method, state, batch):
    """Loss and what it changed, in one call, which is compiled once for each method."""

    def loss(state, batch):
        return method.loss(ENCODER, state.params, state, batch, jax.random.key(2), progress())

    return COMPILED.setdefault(repr(method), jax.jit(loss))(state, batch)


def embed(method, params, batch_stats, x):
    """What MoCo makes of slices, in one compiled call."""
    run = jax.jit(lambda *given: method.embed(ENCODER, *given, jax.random.key(0))[0])
    return run(params, batch_stats, x)


# Closed forms


def test_equal_embeddings_give_the_log_of_the_number_of_choices():
    same = jnp.tile(unit_rows(1, 6), (4, 1))
    loss, _ = info_nce(same, same, jnp.tile(same[:1], (10, 1)), temperature=0.2)
    assert float(loss) == pytest.approx(math.log(11), abs=1e-6)
    loss, _ = nt_xent(jnp.stack([same, same]), temperature=0.1)
    assert float(loss) == pytest.approx(math.log(7), abs=1e-5)


def test_info_nce_of_a_perfect_match_among_orthogonal_keys():
    """Positive similarity 1, K negatives of similarity 0: -log(e^5 / (e^5 + K)) at T = 0.2."""
    eye = jnp.eye(8)
    loss, found = info_nce(eye[:4], eye[:4], eye[4:], temperature=0.2)
    assert float(loss) == pytest.approx(-math.log(math.exp(5) / (math.exp(5) + 4)), abs=1e-6)
    assert float(found) == 1.0
    loss, found = info_nce(eye[:4], eye[4:], eye[:4], temperature=0.2)
    assert float(found) == 0.0


def test_hidden_pairs_are_no_negatives():
    query, queue = unit_rows(4, 6), unit_rows(10, 6, seed=1)
    hidden = jnp.zeros((4, 10), bool).at[:, 7:].set(True)
    found = info_nce(query, query, queue, 0.2, hidden)
    expected = info_nce(query, query, queue[:7], 0.2)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-6)


def test_sinkhorn_has_the_marginals():
    q = np.asarray(sinkhorn(unit_rows(12, 4), epsilon=0.5, iterations=50))
    np.testing.assert_allclose(q.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(q.sum(axis=0), 3.0, atol=1e-4)
    # the last of few iterations is that of the samples
    np.testing.assert_allclose(
        np.asarray(sinkhorn(unit_rows(12, 4), 0.05, 3)).sum(axis=1), 1.0, atol=1e-6
    )


def test_sinkhorn_bears_scores_that_would_overflow():
    """exp(1 / 0.005) is beyond fp32."""
    q = sinkhorn(jnp.eye(6), epsilon=0.005, iterations=3)
    np.testing.assert_allclose(q, np.eye(6), atol=1e-6)


def test_swapped_loss_of_uniform_predictions_is_the_log_of_the_prototypes():
    codes = sinkhorn(unit_rows(4, 5), 0.05, 3)
    loss = swapped_loss(jnp.zeros((3, 4, 5)), jnp.stack([codes, codes]), 0.1)
    assert float(loss) == pytest.approx(math.log(5), abs=1e-6)


def test_swapped_loss_equals_its_definition_and_leaves_a_views_own_code_out():
    scores, codes = RNG.standard_normal((4, 3, 5)), RNG.dirichlet(np.ones(5), (2, 3))
    log_p = scores / 0.1 - np.log(np.exp(scores / 0.1).sum(-1, keepdims=True))
    per_code = [
        np.mean([-(codes[a] * log_p[v]).sum(-1).mean() for v in range(4) if v != a])
        for a in range(2)
    ]
    found = swapped_loss(jnp.asarray(scores, jnp.float32), jnp.asarray(codes, jnp.float32), 0.1)
    assert float(found) == pytest.approx(np.mean(per_code), rel=1e-5)


def test_regression_loss_of_equal_opposite_and_orthogonal_vectors():
    x = unit_rows(4, 6) * 3.0
    assert float(regression_loss(x, 0.5 * x)) == pytest.approx(0, abs=1e-6)
    assert float(regression_loss(x, -x)) == pytest.approx(4, abs=1e-6)
    eye = jnp.eye(8)
    assert float(regression_loss(eye[:4], eye[4:])) == pytest.approx(2, abs=1e-6)


def test_byol_is_zero_where_prediction_and_target_agree():
    """All weights of the last layers zero but equal biases: every vector is the same."""
    method = METHODS["byol"]
    state = tiny.initial("byol")

    def constant(head):
        last = {"kernel": jnp.zeros_like(head["linear2"]["kernel"]), "bias": jnp.arange(1.0, 7.0)}
        return {**head, "linear2": last}

    head = {name: constant(part) for name, part in state.params["head"].items()}
    target = {**state.aux["params"], "projector": constant(state.aux["params"]["projector"])}
    state = state.replace(
        params={**state.params, "head": head}, aux={**state.aux, "params": target}
    )
    loss, out = loss_of(method, state, loss_batch("byol"))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(out.metrics["embedding_std"]) == pytest.approx(0, abs=1e-5)


# Order of events


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_teacher_follows_the_updated_student_and_keeps_its_own_statistics(name):
    method = METHODS[name]
    state = tiny.initial(name)
    moved = jax.tree.map(lambda x: x + 1.0, state.params)
    stats = jax.tree.map(lambda x: x + 5.0, state.batch_stats)
    after = jax.jit(method.after_update)(
        state.replace(params=moved, batch_stats=stats), progress(0)
    )
    momentum = 0.9
    encoder_after = after.aux["params"]["encoder"]
    expected = jax.tree.map(lambda x: x + (1 - momentum), state.aux["params"]["encoder"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), encoder_after, expected)
    jax.tree.map(np.testing.assert_array_equal, after.aux["batch_stats"], state.aux["batch_stats"])


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_step_moves_the_teacher_by_the_new_parameters(name):
    """An average taken before the update would leave the teacher where it was in the first step."""
    method = METHODS[name]
    state, step = tiny.training(method)
    before = jax.device_get(state)
    run, _ = tiny.on(1, state, step)
    after, _ = run([0])
    kernels = [
        part["encoder"]["conv0"]["kernel"]
        for part in (before.params, after.params, after.aux["params"])
    ]
    old, new, teacher = map(np.asarray, kernels)
    np.testing.assert_allclose(teacher, 0.9 * old + 0.1 * new, atol=1e-6)
    assert np.abs(teacher - old).max() > 0


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_teachers_statistics_come_from_its_own_pass(name):
    """Planted: a student whose first convolution is far from the teacher's."""
    method = METHODS[name]
    state = tiny.initial(name)
    params = jax.tree.map(lambda x: x * 1.0, state.params)
    params["encoder"]["conv0"]["kernel"] = params["encoder"]["conv0"]["kernel"] * 3 + 1
    batch = loss_batch(name)
    _, out = loss_of(method, state.replace(params=params), batch)

    kernel = np.asarray(state.aux["params"]["encoder"]["conv0"]["kernel"])  # 4x4, stride 4
    views = np.concatenate([np.asarray(view) for view in batch["views"]])
    seen = views[1:] if name == "moco" else views
    patches = seen.reshape(-1, 8, 4, 8, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16)
    expected = 0.1 * (patches @ kernel.reshape(16, -1)).mean(axis=0)
    found = out.aux["batch_stats"]["encoder"]["bn0"]["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


# MoCo


def moco(**changes):
    return dataclasses.replace(METHODS["moco"], **changes)


def test_logits_meet_the_queue_as_it_was_and_the_keys_enter_it_afterwards():
    method = moco(bn_groups=1, mask_own=False)
    state = tiny.initial("moco")
    batch = loss_batch("moco")
    loss, out = loss_of(method, state, batch)
    query = embed(method, state.params, state.batch_stats, batch["views"][0][0])
    keys, _ = jax.jit(partial(method.keys, ENCODER))(
        state.aux, batch["views"][0][1], jax.random.key(0)
    )
    expected, _ = info_nce(query, keys, state.aux["queue"], method.temperature)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(out.aux["queue"][: tiny.BATCH], keys, atol=1e-5)
    np.testing.assert_array_equal(out.aux["queue"][tiny.BATCH :], state.aux["queue"][tiny.BATCH :])
    assert int(out.aux["pointer"]) == tiny.BATCH
    np.testing.assert_array_equal(out.aux["record"][: tiny.BATCH], batch["record"])
    assert set(np.asarray(out.aux["record"][tiny.BATCH :])) == {NO_RECORD}


def test_the_queue_is_a_ring():
    method = METHODS["moco"]
    state = tiny.initial("moco")
    for number in (0, 1, 2):
        batch = loss_batch("moco", number)
        _, out = loss_of(method, state, batch)
        state = state.replace(aux=out.aux)
    np.testing.assert_array_equal(out.aux["record"], np.r_[np.arange(16, 24), np.arange(8, 16)])
    assert int(out.aux["pointer"]) == 8


@pytest.mark.parametrize("mask_own", [True, False])
def test_a_slices_own_key_in_the_queue_is_no_negative(mask_own):
    """The same batch twice: the second time its own keys are in the queue."""
    method = moco(mask_own=mask_own)
    state = tiny.initial("moco")
    batch = loss_batch("moco")
    _, out = loss_of(method, state, batch)
    again, _ = loss_of(method, state.replace(aux=out.aux), batch)
    emptied = {**out.aux, "record": jnp.full((16,), NO_RECORD, jnp.int32)}
    unmasked, _ = loss_of(method, state.replace(aux=emptied), batch)
    assert (float(again) < float(unmasked) - 1e-3) == mask_own


def test_groups_have_statistics_of_their_own_and_shuffled_keys_come_back_in_order():
    method = moco(bn_groups=2)
    state = tiny.initial("moco")
    x = loss_batch("moco")["views"][0][1]
    z = embed(method, state.params, state.batch_stats, x)
    halves = [
        embed(moco(bn_groups=1), state.params, state.batch_stats, half) for half in (x[:4], x[4:])
    ]
    np.testing.assert_allclose(z, jnp.concatenate(halves), atol=1e-5)

    keys, _ = jax.jit(partial(METHODS["moco"].keys, ENCODER))(state.aux, x, jax.random.key(5))
    order = jax.random.permutation(jax.random.split(jax.random.key(5))[0], x.shape[0])
    shuffled = embed(method, state.aux["params"], state.aux["batch_stats"], x[order])
    np.testing.assert_allclose(np.asarray(keys)[np.asarray(order)], shuffled, atol=1e-5)
    assert not np.array_equal(order, np.arange(8))


def test_query_and_key_are_different_views():
    query, key = loss_batch("moco")["views"][0]
    assert float(jnp.abs(query - key).mean()) > 0.01


# SwAV


def test_prototypes_rest_and_then_move_and_stay_on_the_sphere():
    """Frozen for 0.125 epochs, that is the first of eight steps."""
    method = METHODS["swav"]
    state, step = tiny.training(method)
    start = np.asarray(state.params["head"]["prototypes"]["kernel"])
    run, _ = tiny.on(1, state, step)
    one, _ = run([0])
    one = jax.device_get(one)  # its memory is reused by the next step
    np.testing.assert_allclose(one.params["head"]["prototypes"]["kernel"], start, atol=1e-6)
    two, _ = run([1, 2], one)
    moved = np.asarray(two.params["head"]["prototypes"]["kernel"])
    assert np.abs(moved - start).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1.0, atol=1e-6)


def test_codes_are_targets_without_a_gradient():
    method = METHODS["swav"]
    z, kernel, queue = unit_rows(2, 8, 6), unit_rows(5, 6, seed=1), unit_rows(2, 16, 6, seed=2)

    def first(z, kernel):
        return method.codes(z, kernel, {"queue": queue}, progress(0))[0, 0, 0]

    for gradient in jax.jit(jax.grad(first, argnums=(0, 1)))(z, kernel):
        assert not gradient.any()


def test_the_queue_joins_the_assignment_late_and_only_when_full():
    """Queue of 16 = two batches; from epoch 0.5, that is step 4."""
    method = METHODS["swav"]
    z, kernel, queue = unit_rows(2, 8, 6), unit_rows(5, 6, seed=1), unit_rows(2, 16, 6, seed=2)
    alone = jax.jit(dataclasses.replace(method, queue_size=0).codes)(z, kernel, (), progress(9))
    assign = jax.jit(lambda scores: sinkhorn(scores, method.epsilon, 3)[:8])
    joint = jnp.stack([assign(jnp.concatenate([z[i], queue[i]]) @ kernel.T) for i in range(2)])
    assert float(jnp.abs(alone - joint).max()) > 1e-2
    early = dataclasses.replace(method, queue_epoch=0.0)
    for which, step, expected in (
        (method, 3, alone),
        (method, 4, joint),
        (early, 1, alone),
        (early, 2, joint),
    ):
        found = jax.jit(which.codes)(z, kernel, {"queue": queue}, progress(step))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_queue_keeps_the_newest():
    method = METHODS["swav"]
    aux, z = {"queue": jnp.zeros((2, 16, 6))}, unit_rows(3, 2, 8, 6)
    for batch in z:
        aux = method.enqueue(aux, batch)
    np.testing.assert_array_equal(aux["queue"], jnp.concatenate([z[2], z[1]], axis=1))


# BYOL


def test_tau_goes_to_one_over_the_run_or_to_and_fro_as_run():
    method = METHODS["byol"]

    def taus(method, steps):
        return [float(method.momentum(Progress(jnp.int32(s), 100, 10.0))) for s in steps]

    assert taus(method, (0, 50, 100)) == pytest.approx([0.9, 0.95, 1.0])
    as_run = dataclasses.replace(method, tau_schedule=TauSchedule.TWO_EPOCHS)
    assert taus(as_run, (0, 5, 10, 20, 30)) == pytest.approx([0.9, 0.95, 1.0, 0.9, 1.0])


def test_byol_views_have_statistics_of_their_own():
    method = METHODS["byol"]
    state = tiny.initial("byol")
    x = jnp.concatenate(loss_batch("byol")["views"])
    params = state.aux["params"]
    z, _ = method.project(ENCODER, params, state.aux["batch_stats"], x, jax.random.key(0))
    for i in range(2):
        one, _ = method.project(
            ENCODER, params, state.aux["batch_stats"], x[i : i + 1], jax.random.key(0)
        )
        np.testing.assert_allclose(z[i], one[0], atol=1e-5)


# Pieces


def test_ema_is_the_weighted_mean():
    assert float(ema(jnp.float32(1), jnp.float32(3), 0.75)) == 1.5


def test_running_statistics_of_groups_are_their_mean():
    head = MLP(4, 2, batch_norm=True)
    x = unit_rows(3, 8, 5)
    variables = head.init(jax.random.key(0), x[0], False)
    _, stats = apply_in_groups(
        head, variables["params"], variables["batch_stats"], x, jax.random.key(0)
    )
    hidden = np.asarray(x) @ np.asarray(variables["params"]["linear1"]["kernel"])
    np.testing.assert_allclose(
        stats["bn1"]["mean"], 0.1 * hidden.mean(axis=1).mean(axis=0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("moco", {"temperature": 0.0}, "method.temperature=0.0"),
        ("moco", {"momentum": 1.0}, "method.momentum=1.0"),
        ("moco", {"queue_size": 0}, "method.queue_size=0"),
        ("moco", {"view": tiny.view(count=1)}, "method.view.count=1"),
        ("swav", {"epsilon": 0.0}, "method.epsilon=0.0"),
        ("swav", {"prototypes": 1}, "method.prototypes=1"),
        ("swav", {"view": tiny.view(count=1)}, "method.view.count=1"),
        ("byol", {"tau": 1.0}, "method.tau=1.0"),
        ("byol", {"view": tiny.view(64)}, "method.view.size=64"),
        ("byol", {"other_view": tiny.view(count=2)}, "method.other_view.count=2"),
        ("simclr", {"temperature": -1.0}, "method.temperature=-1.0"),
        ("simclr", {"view": tiny.view(count=3)}, "method.view.count=3"),
    ],
)
def test_values_that_make_no_sense_are_named(name, change, named):
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(METHODS[name], **change).validate()


@pytest.mark.parametrize(
    ("name", "change", "batch", "slices", "named"),
    [
        ("moco", {"queue_size": 12}, 8, 64, "queue_size=12 is no multiple of batch_size=8"),
        ("moco", {"queue_size": 64}, 8, 64, "use at most half of them, 32"),
        ("moco", {"bn_groups": 8}, 8, 64, "bn_groups=8 does not part batch_size=8"),
        ("swav", {"queue_size": 12}, 8, 64, "queue_size=12 is no multiple"),
        ("swav", {"queue_size": 64}, 8, 64, "use at most half of them, 32"),
        ("byol", {}, 1, 64, "batch_size=1"),
        ("simclr", {}, 1, 64, "batch_size=1"),
        ("simclr", {}, 65, 64, "batch_size=65"),
    ],
)
def test_queue_batch_and_data_must_fit(name, change, batch, slices, named):
    with pytest.raises(ConfigError, match=named):
        dataclasses.replace(METHODS[name], **change).validate_run(batch, slices)
    METHODS[name].validate_run(8, 64)
