"""Every shipped config: valid, and init and one step have the right shapes at full size."""

import jax
import jax.numpy as jnp
import pytest
from shipped import FINETUNING, PRETRAINING, SHIPPED, load

from configs import ablation
from ctssl_jax import flags
from ctssl_jax.config import EncoderConfig, FinetuneConfig, PretrainConfig, SubsetBy
from ctssl_jax.config_record import config_record, to_json
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods import Cases, SparK, Supervised
from ctssl_jax.nn.active import SparseForm
from ctssl_jax.optim import lr_schedule, make_optimizer, weight_decay_schedule
from ctssl_jax.optim.freezing import finetune_optimizer
from ctssl_jax.train import init_state, make_step

LIDC = 244_527  # slices, of which the paper's code had 1,910 full batches of 128


def step_specs(config, total_steps=1000):
    """Abstract state before and after one step, and the abstract metrics."""
    encoder = config.encoder.build(config.precision)
    if isinstance(config, PretrainConfig):
        lr = lr_schedule(config.optim, 10, total_steps)
        tx = make_optimizer(config.optim, lr, weight_decay_schedule(config.optim, total_steps))
    else:
        config.method.classes = 11
        tx, lr = finetune_optimizer(config.optim, config.freeze, 10)
    step = make_step(
        config.method,
        encoder,
        tx,
        config.intensity,
        "hu",
        total_steps=total_steps,
        steps_per_epoch=10.0,
        schedules={"lr": lr},
    )
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(
        lambda key: init_state(config.method, encoder, tx, config.intensity.channels, key), key
    )
    b, s = config.batch_size, config.data.canvas
    batch = {
        "image": jax.ShapeDtypeStruct((b, s, s), jnp.int16),
        "index": jax.ShapeDtypeStruct((b,), jnp.int32),
        "record": jax.ShapeDtypeStruct((b,), jnp.int32),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32),
    }
    if isinstance(config.method, Cases):
        n = b * config.method.slices
        batch |= {name: jax.ShapeDtypeStruct((n,), jnp.int32) for name in ("index", "record")}
        batch |= {"valid": jax.ShapeDtypeStruct((n,), bool)}
        batch |= {"slice_label": jax.ShapeDtypeStruct((n,), jnp.int32)}
        batch |= {"image": jax.ShapeDtypeStruct((n, s, s), jnp.int16)}
    return state, *jax.eval_shape(step, state, batch, key)


@pytest.mark.parametrize(
    ("file", "preset"),
    # Those of the phantom are run: `make smoke`, and `make demo`, which is the same, larger; :gpu
    # is the default with fewer slices a step. Other presets have other numbers.
    [
        pytest.param(file, preset, marks=[pytest.mark.slow] if preset else [])
        for file, preset in SHIPPED
        if preset not in ("gpu", "demo", "smoke")
    ],
)
def test_init_and_step_have_equal_specs_at_full_size(file, preset):
    config = load(file, preset)
    config.validate()
    if preset or file not in (*PRETRAINING, "finetune_cases"):
        config.encoder.depth = 18  # ResNet-50 is traced once for each method
    before, after, metrics = step_specs(config)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(before.params))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(before.batch_stats))
    assert all(leaf.size for leaf in jax.tree.leaves(before)), "Orbax saves no empty arrays"
    assert metrics["loss"].shape == ()
    assert metrics["loss"].dtype == jnp.float32


def test_two_loads_share_nothing_that_a_flag_could_change():
    for file, preset in SHIPPED:
        one, other = load(file, preset), load(file, preset)
        one.data.path, one.method.view.size, one.intensity.channels = "elsewhere", 32, 7
        again = load(file, preset)
        assert to_json(other) == to_json(again), (file, preset)
        assert again.data.path != "elsewhere"


@pytest.mark.parametrize(("file", "preset"), SHIPPED)
def test_every_shipped_config_is_valid(file, preset):
    load(file, preset).validate()


def test_as_run_learning_rate_is_the_papers():
    assert load("spark", "as_run").optim.lr == pytest.approx(2.5e-5)
    assert load("spark", "as_run").encoder.depth == 50


def test_as_run_tasks_have_the_notebooks_quirks():
    for task in ("covid_ct", "hemorrhage"):
        config = load(f"finetune_{task}", "as_run")
        assert config.subset_by is SubsetBy.IMAGE_UNSTRATIFIED
        # A flip of the network's input from top to bottom is one of the image from left to right.
        assert config.data.transpose
        assert (config.method.view.hflip, config.method.view.vflip) == (0.0, 0.5)
        meant = load(f"finetune_{task}", "")
        assert not meant.data.transpose
        assert (meant.method.view.hflip, meant.method.view.vflip) == (0.5, 0.0)
    organs = load("finetune_organsmnist", "as_run")
    assert (organs.subset_by, organs.data.transpose) == (SubsetBy.FIRST, False)


def as_run_rates(file, epochs):
    """Learning rates at the beginning of epochs, at the paper's number of steps per epoch."""
    config = load(file, "as_run")
    steps = LIDC // config.batch_size
    schedule = lr_schedule(config.optim, steps, 800 * steps)
    return [float(schedule(round(epoch * steps))) for epoch in epochs]


def test_as_run_schedules_are_what_the_released_code_did():
    assert as_run_rates("moco", (0, 400, 799.99)) == pytest.approx([0.015, 0.0075, 0.0], abs=1e-6)
    byol = as_run_rates("byol", (0, 9, 10, 100, 190, 300))
    assert byol == pytest.approx([0, 1e-3, 1e-3, 0, 1e-3, 1.17e-4], abs=1e-6)
    config = load("swav", "as_run")
    schedule = lr_schedule(config.optim, 1910, 800 * 1910)
    found = [float(schedule(step)) for step in (0, 5, 10, 800, 1590, 2380, 3170)]
    assert found == pytest.approx([0, 0.075, 0.15, 0, 0.15, 0, 0.15], abs=1e-6)


def test_as_run_methods_are_what_the_released_code_had():
    moco, swav, byol = (load(file, "as_run").method for file in ("moco", "swav", "byol"))
    assert (moco.temperature, moco.hidden, moco.bn_groups, moco.mask_own) == (0.07, 0, 1, False)
    assert (swav.prototypes, swav.frozen_epochs, swav.queue_size) == (500, 313.0, 0)
    assert byol.tau_schedule.value == "two_epochs"
    assert byol.view == byol.other_view
    for file in ("moco", "swav", "byol"):
        config = load(file, "as_run")
        assert config.intensity.channels == 3
        config.method.validate_run(config.batch_size, LIDC)
    for file in PRETRAINING:
        config = load(file, "")
        config.method.validate_run(config.batch_size, LIDC)


@pytest.mark.parametrize("file", [*PRETRAINING, *FINETUNING, "ablation"])
def test_unknown_preset_names_the_known_ones(file):
    with pytest.raises(ConfigError, match=r"no preset :tiny; there is .*:demo"):
        load(file, "tiny")


def test_private_paths_stay_out_of_the_record():
    config = FinetuneConfig(encoder_run="/scans/DOE^JANE/run")
    config.data.path = "/scans/DOE^JANE"
    assert "DOE" not in str(config_record(config))


def test_hash_depends_on_every_value():
    records = [config_record(FinetuneConfig(seed=seed))["hash"] for seed in (0, 0, 1)]
    assert records[0] == records[1] != records[2]


def test_what_only_says_how_a_run_is_computed_may_change_between_its_parts():
    plain, other = PretrainConfig(), PretrainConfig(shard_state=True, hang_after_s=60.0)
    other.log_every, other.checkpoint_every, other.picture_every = 7, 50, 0
    other.keep_checkpoints, other.encoder.remat_stages = 1, 2
    other.method = SparK(sparse=SparseForm.ACTIVE)
    other.data.num_threads, other.data.prefetch = 1, 7
    ours, theirs = config_record(plain), config_record(other)
    assert (ours["hash"], ours["config"]) == (theirs["hash"], theirs["config"])
    assert theirs["elastic"] == {
        "shard_state": True,
        "hang_after_s": 60.0,
        "encoder": {"remat_stages": 2},
        "data": {"num_threads": 1, "prefetch": 7},
        "method": {"sparse": "active"},
        "probe": {"every": 0},
        "log_every": 7,
        "checkpoint_every": 50,
        "picture_every": 0,
        "keep_checkpoints": 1,
        "display_window_hu": [-1000.0, 500.0],
    }
    # Microbatches are another method: their statistics and negatives are their own.
    assert config_record(PretrainConfig(accumulate=2))["hash"] != ours["hash"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"count": -1}, "count=-1"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"patience": -1}, "patience=-1"),
        (
            {"balance_classes": True, "method": Supervised(class_weights=(1.0, 2.0))},
            "balance_classes=true and method.class_weights",
        ),
        ({"method": Supervised(class_weights=(1.0, 0.0))}, "method.class_weights="),
        ({"count": 5, "fraction": 0.5}, "count=5 and fraction=0.5: give one of them"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 5}, "freeze.epochs=10 does not end before epochs=5"),
        ({"val_split": "test"}, "must be three different splits"),
    ],
)
def test_finetune_values_that_do_not_fit_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        FinetuneConfig(**change).validate()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32, "accumulate": 3}, "batch_size=32 does not part into accumulate=3"),
        ({"accumulate": 0}, "accumulate=0: must be above 0"),
        ({"hang_after_s": -1.0}, "hang_after_s=-1.0: must be 0"),
        ({"encoder": EncoderConfig(remat_stages=5)}, "encoder.remat_stages=5: must be 0 to 4"),
    ],
)
def test_pretrain_values_that_do_not_fit_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        PretrainConfig(**change).validate()


def test_pretrain_warmup_must_end():
    config = PretrainConfig(epochs=10.0)
    with pytest.raises(ConfigError, match=r"optim.warmup_epochs=40.0 does not end"):
        config.validate()
    assert PretrainConfig(epochs=0.5, batch_size=4).total_steps(16) == 2


@pytest.mark.parametrize("file", PRETRAINING)
def test_another_batch_moves_the_learning_rate_in_proportion(file):
    usual = flags.parse(["main", f"--config={file}"]).config
    assert (usual.optim.lr, usual.optim.lr_batch) == (load(file).optim.lr, usual.batch_size)
    assert "batch" not in usual.rate_in_words()
    small = flags.parse(["main", f"--config={file}", "--config.batch_size=64"]).config
    assert small.optim.lr == pytest.approx(usual.optim.lr * 64 / usual.batch_size)
    told = f"{usual.optim.lr:.3g} of batch {usual.batch_size} times 64/{usual.batch_size}"
    assert small.rate_in_words() == f"learning rate {small.optim.lr:.3g}: {told}"
    own = ["--config.batch_size=64", "--config.optim.lr=0.5"]
    given = flags.parse(["main", f"--config={file}", *own]).config
    assert (given.optim.lr, given.rate_in_words()) == (0.5, "learning rate 0.5")


@pytest.mark.parametrize("file", PRETRAINING)
def test_the_presets_for_own_data_fit_a_few_thousand_slices(file):
    for preset, slices in (("laptop", 3000), ("gpu", 10_000)):
        config = load(file, preset)
        config.method.validate_run(config.microbatch, slices)
        assert config.optim.lr_batch == config.batch_size
        assert config.optim.warmup_epochs < config.epochs / 20
    gpu, full = load(file, "gpu"), load(file)
    assert gpu.optim.lr == pytest.approx(full.optim.lr * gpu.batch_size / full.batch_size)
    assert gpu.encoder == full.encoder


def test_an_own_study_goes_with_the_encoders_of_the_presets():
    for preset, of in (("mine", "gpu"), ("mine_laptop", "laptop")):
        base, encoder = ablation.get_config(preset).base, load("spark", of)
        assert base.encoder.depth == encoder.encoder.depth
        assert base.method.view.size == encoder.method.view.size
        assert base.intensity == encoder.intensity
