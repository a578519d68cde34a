"""Where arrays lie, and what microbatches are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ctssl_jax.augment import Intensity
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import sharding
from ctssl_jax.methods import MoCo, SimCLR
from ctssl_jax.optim import OptimConfig, OptimizerName, lr_schedule, make_optimizer
from ctssl_jax.train import init_state, make_step


def program(method, accumulate=1, name=OptimizerName.SGD, encoder=tiny.ENCODER):
    """State at step 0 and the uncompiled step."""
    none = {"warmup_epochs": 0.0, "weight_decay": 0.0, "weight_decay_end": 0.0, "clip_norm": 0.0}
    config = OptimConfig(name=name, lr=0.01, **none)
    schedule = lr_schedule(config, tiny.STEPS_PER_EPOCH, 20)
    tx = make_optimizer(config, schedule, lambda step: jnp.zeros(()))
    step = make_step(
        method,
        encoder,
        tx,
        Intensity(),
        "hu",
        total_steps=20,
        steps_per_epoch=tiny.STEPS_PER_EPOCH,
        schedules={"lr": schedule},
        accumulate=accumulate,
    )
    return jax.jit(lambda key: init_state(method, encoder, tx, 1, key))(jax.random.key(0)), step


def close(ours, theirs, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-5, **tolerance}),
        jax.device_get(ours),
        jax.device_get(theirs),
    )


def placed(method, shard_state):
    state, _ = program(method, name=OptimizerName.ADAMW)
    mesh = sharding.make_mesh()
    return state, sharding.state_shardings(state, mesh, shard_state)


def test_only_optimizer_state_and_teacher_are_split_and_only_where_asked():
    state, whole = placed(tiny.METHODS["moco"], shard_state=False)
    assert all(place.is_fully_replicated for place in jax.tree.leaves(whole))
    _, places = placed(tiny.METHODS["moco"], shard_state=True)
    for part in (places.step, places.params, places.batch_stats, places.aux["batch_stats"]):
        assert all(place.is_fully_replicated for place in jax.tree.leaves(part))
    for name in ("queue", "record", "pointer"):
        assert places.aux[name].is_fully_replicated
    teacher = zip(
        jax.tree.leaves(state.aux["params"]), jax.tree.leaves(places.aux["params"]), strict=True
    )
    for leaf, place in teacher:
        fits = any(size % 4 == 0 for size in leaf.shape)
        assert place.is_fully_replicated != fits
    split = [p for p in jax.tree.leaves(places.opt_state) if not p.is_fully_replicated]
    assert len(split) >= 2 * 8  # both moments


def test_the_largest_axis_that_divides_is_split():
    mesh = sharding.make_mesh()
    state = program(tiny.METHODS["simclr"])[0].replace(opt_state={"a": jnp.zeros((4, 7, 12))})
    places = sharding.state_shardings(state, mesh, shard_state=True)
    assert tuple(places.opt_state["a"].spec) == (None, None, "data")


@pytest.mark.parametrize("name", [pytest.param("byol", marks=pytest.mark.slow), "moco"])
def test_split_state_gives_the_same_run_in_a_quarter_of_the_memory(name):
    state, step = program(tiny.METHODS[name])
    state = jax.device_get(state)  # the step takes the memory of what it is given
    mesh = sharding.make_mesh()
    key = sharding.replicate(jax.random.key(3), mesh)
    ends = []
    for shard_state in (False, True):
        places = sharding.state_shardings(state, mesh, shard_state)
        now = jax.device_put(state, places)
        compiled = sharding.jit_step(step, mesh, places)
        for number in range(3):
            now, metrics = compiled(now, sharding.put_batch(tiny.host_batch(number), mesh), key)
        ends.append((now, metrics["loss"]))
    (whole, loss), (split, split_loss) = ends
    close(split, whole)
    assert float(split_loss) == pytest.approx(float(loss), rel=1e-6)
    kernel = next(x for x in jax.tree.leaves(split.opt_state) if x.shape == (16, 8))
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_a_state_is_restored_onto_other_places(tmp_path):
    from ctssl_jax.run.checkpoint import Checkpoints

    state, _ = program(tiny.METHODS["moco"], name=OptimizerName.ADAMW)
    mesh, one = sharding.make_mesh(), sharding.make_mesh(jax.devices()[:1])
    split = sharding.state_shardings(state, mesh, shard_state=True)
    checkpoints = Checkpoints(tmp_path, method="MoCo")
    checkpoints.save(jax.device_put(state.replace(step=jnp.int32(7)), split))
    checkpoints.close()
    for there, shard_state in ((mesh, True), (mesh, False), (one, False)):
        places = sharding.state_shardings(state, there, shard_state)
        again = Checkpoints(tmp_path)
        found = again.restore(sharding.abstract(state, places))
        again.close()
        assert (found.position, found.unfinished) == ({"next_index": 7}, False)
        close(found.state, state.replace(step=jnp.int32(7)), rtol=0, atol=0)
        wanted = jax.tree.leaves(places)
        assert [x.sharding for x in jax.tree.leaves(found.state)] == wanted


def one_step(step, state, batch, devices=1):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    key = sharding.replicate(jax.random.key(3), mesh)
    state = sharding.replicate(jax.device_get(state), mesh)
    return sharding.jit_step(step, mesh)(state, sharding.put_batch(batch, mesh), key)


def test_microbatches_average_the_gradient_and_pass_batchnorm_on():
    """Against single steps on every other slice, with SGD: an update is its rate times a mean."""
    method = SimCLR(hidden=8, features=6, view=tiny.view(count=2))
    state, single = program(method)
    _, double = program(method, accumulate=2)
    batch = tiny.host_batch()
    found, metrics = one_step(double, state, batch)

    halves = [{name: x[i::2] for name, x in batch.items()} for i in (0, 1)]
    first, first_metrics = one_step(single, state, halves[0])
    passed_on = state.replace(batch_stats=jax.device_get(first.batch_stats))
    second, second_metrics = one_step(single, passed_on, halves[1])
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, *map(jax.device_get, (first.params, second.params))
    )
    close(found.params, mean)
    close(found.batch_stats, second.batch_stats)
    both = (float(first_metrics["loss"]) + float(second_metrics["loss"])) / 2
    assert float(metrics["loss"]) == pytest.approx(both, rel=1e-6)
    whole, _ = one_step(single, state, batch)
    assert int(found.step) == int(whole.step) == 1
    with pytest.raises(AssertionError):  # negatives and statistics are those of a microbatch
        close(found.params, whole.params)


slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("spark", "swav", "byol")]


@pytest.mark.parametrize("name", ["moco", *slow])
def test_microbatches_are_the_same_on_any_number_of_devices(name):
    state, step = program(tiny.METHODS[name], accumulate=2)
    one, one_metrics = one_step(step, state, tiny.host_batch())
    four, four_metrics = one_step(step, state, tiny.host_batch(), devices=4)
    close(four.params, one.params)
    assert float(four_metrics["loss"]) == pytest.approx(float(one_metrics["loss"]), rel=1e-5)


def test_microbatches_all_enter_the_queue_and_its_age_counts_steps():
    method = MoCo(queue_size=16, bn_groups=2, hidden=8, features=6, view=tiny.view(count=2))
    state, step = program(method, accumulate=2)
    for number in range(4):
        state, metrics = one_step(step, state, tiny.host_batch(number))
    records = np.asarray(state.aux["record"])
    assert sorted(records) == list(range(16, 32))  # of the last two steps
    assert records[:4].tolist() == [16, 18, 20, 22]  # every other slice of the third
    assert float(metrics["queue_age_epochs"]) == pytest.approx(2 / tiny.STEPS_PER_EPOCH)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "devices", "named"),
    [
        (6, 1, None, "batch_size=6 does not divide over 4 devices: use a multiple of 4"),
        (8, 4, None, "over 4 devices in accumulate=4 microbatches: use a multiple of 16"),
        (512, 1, 1024, "over 1024 devices: use a multiple of 1024"),
    ],
)
def test_batches_that_do_not_divide(batch_size, accumulate, devices, named):
    with pytest.raises(ConfigError, match=named):
        sharding.check_batch(batch_size, accumulate, devices)
    sharding.check_batch(1024 * 4, accumulate, devices)


def test_who_is_alone_decides_alone():
    votes = sharding.Votes(sharding.make_mesh())
    assert [votes.cast(wish) for wish in (False, True, False)] == [False, True, False]
