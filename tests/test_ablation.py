"""The grid: which runs, with which names."""

import dataclasses
import json

import pytest

from configs import ablation
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.config import EvaluateConfig, FeatureKind, FinetuneConfig
from ctssl_jax.errors import ConfigError, DataError

PRESETS = ("covid_ct", "covid_ct_as_run", "organsmnist", "hemorrhage", "demo", "smoke")


@pytest.fixture
def runs(tmp_path):
    """The folders of two pre-trainings, as far as a grid looks at them."""
    for method in ("SparK", "MoCo"):
        (tmp_path / method).mkdir()
        record = {"config": {"method": {"type": method}}, "hash": method}
        (tmp_path / method / "config.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("preset", PRESETS)
def test_arms_of_a_grid_differ_by_their_encoder_alone(preset, runs):
    config = ablation.get_config(preset)
    config.encoders = (f"{runs}/SparK", f"mine={runs}/MoCo")
    config.validate()
    cells = list(config.cells())
    assert len({cell.name for cell in cells}) == len(cells)
    assert len(cells) == 3 * len(config.counts or config.fractions) * len(config.seeds)
    for scratch, spark, mine in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        assert [cell.config.arm for cell in (scratch, spark, mine)] == ["scratch", "spark", "mine"]
        assert spark.config.encoder_run == f"{runs}/SparK"
        assert mine.config.encoder_run == f"{runs}/MoCo"
        for cell in (spark, mine):
            assert dataclasses.replace(cell.config, arm="scratch", encoder_run="") == scratch.config


def test_each_seed_draws_a_subset_unless_told_otherwise():
    config = AblationConfig(FinetuneConfig(subset_seed=7), "", fractions=(0.5,), seeds=(3, 4))
    assert [cell.config.subset_seed for cell in config.cells()] == [3, 4]
    config.subset_per_seed = False
    assert [cell.config.subset_seed for cell in config.cells()] == [7, 7]
    assert [cell.config.seed for cell in config.cells()] == [3, 4]
    assert not ablation.get_config("covid_ct_as_run").subset_per_seed


def test_counts_take_the_place_of_fractions():
    config = AblationConfig(FinetuneConfig(fraction=0.1), "", counts=(100, 50), seeds=(0,))
    found = [(cell.name, cell.config.count, cell.config.fraction) for cell in config.cells()]
    assert found == [("task-scratch-n50-seed0", 50, 1.0), ("task-scratch-n100-seed0", 100, 1.0)]


def test_frozen_features_are_of_the_same_encoder_and_slices(runs):
    base = ablation.get_config("demo").base
    base.select_by, base.data.accept_leakage = type(base.select_by).ACCURACY, True
    config = AblationConfig(base, "", (f"{runs}/SparK",), frozen=True, counts=(9,), seeds=(2,))
    config.validate()
    cells = list(config.cells())
    assert [cell.config.arm for cell in cells] == ["scratch", "random", "spark", "spark"]
    assert len({cell.name for cell in cells}) == 4
    for tuned, frozen in ((cells[0].config, cells[1].config), (cells[2].config, cells[3].config)):
        assert isinstance(frozen, EvaluateConfig)
        shared = {field.name for field in dataclasses.fields(frozen)} - {"arm", "size"}
        for name in shared & {field.name for field in dataclasses.fields(tuned)}:
            assert getattr(frozen, name) == getattr(tuned, name), name
        assert frozen.size == tuned.method.view.size


def test_frozen_features_and_radiomics_stand_alone_if_asked(runs):
    base = ablation.get_config("demo").base
    asked = {"counts": (9, 20), "seeds": (2, 3), "finetuned": False}
    both = AblationConfig(base, "", (f"{runs}/SparK",), frozen=True, radiomics=True, **asked)
    both.validate()
    cells = list(both.cells())
    assert [cell.config.arm for cell in cells] == ["random", "spark", "radiomics"] * 4
    assert all(isinstance(cell.config, EvaluateConfig) for cell in cells)
    assert [cell.config.pictures for cell in cells] == [False] * 6 + [True] * 3 + [False] * 3
    made_up = cells[2].config
    assert (made_up.features, made_up.encoder_run) == (FeatureKind.RADIOMICS, "")
    alone = AblationConfig(base, "", scratch=False, radiomics=True, **asked)
    alone.validate()
    assert [cell.name for cell in alone.cells()] == [cell.name for cell in cells[2::3]]


def test_folds_take_turns_and_all_arms_of_one_share_its_splits(runs):
    config = AblationConfig(
        FinetuneConfig(),
        *("", (f"{runs}/SparK",)),
        **{"frozen": True, "fractions": (0.5,), "seeds": (3, 4), "folds": 4},
    )
    config.validate()
    cells = list(config.cells())
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 4 * 4
    splits = [
        (cell.config.test_split, cell.config.val_split, cell.config.data.split) for cell in cells
    ]
    turns = [
        ("fold0", "fold1", "fold2+fold3"),
        ("fold1", "fold2", "fold0+fold3"),
        ("fold2", "fold3", "fold0+fold1"),
        ("fold3", "fold0", "fold1+fold2"),
    ]
    assert splits == [turn for turn in turns for _ in range(4)] * 2
    assert [cell.config.subset_seed for cell in cells] == [3] * 16 + [4] * 16
    assert [cell.name for cell in cells[4:8]] == [
        "task-scratch-0.5-seed3-fold1",
        "task-random-frozen-0.5-seed3-fold1",
        "task-spark-0.5-seed3-fold1",
        "task-spark-frozen-0.5-seed3-fold1",
    ]
    assert config.base.data.split == "train"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": ()}, "seeds="),
        ({"seeds": (1, 1)}, "seeds="),
        ({"fractions": ()}, "fractions="),
        ({"fractions": (0.5, 0.5000001, 1.0)}, "fractions=.*different values, in six digits"),
        ({"fractions": (1.0, 1.0)}, "fractions=.*different"),
        ({"counts": (5, 5)}, "counts="),
        ({"counts": (0, 5)}, "counts="),
        ({"fractions": (1.5,)}, "fraction=1.5"),
        ({"scratch": False}, "no arm"),
        ({"finetuned": False}, "finetuned, frozen and radiomics are all false"),
        ({"folds": 2}, "folds=2: must be 3 or more"),
        ({"folds": -5}, "folds=-5: must be 3 or more"),
    ],
)
def test_axis_that_will_not_do_is_named(change, named):
    with pytest.raises(ConfigError, match=named):
        AblationConfig(FinetuneConfig(), "", **change).validate()


def held(config):
    """What holds the fields of `base` that a name with a dot is of."""
    return {"data": config.base.data, "": config.base}


CHANGES = {
    "encoder_run": ("runs/spark", "give encoders"),
    "arm": ("mine", "give encoders, as ARM=RUN"),
    "seed": (7, "give seeds"),
    "subset_seed": (7, "give seeds, or subset_per_seed=false"),
    "fraction": (0.7, "give fractions"),
    "count": (7, "give counts"),
    "tuned_lrs": ((1e-3, 1e-4), "give lrs"),
    "tuned_seeds": ((7, 8), "give tuning_seeds"),
    "data.split": ("val", "give folds"),
    "val_split": ("train", "give folds"),
    "test_split": ("train", "give folds"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("preset", [*PRESETS, "cases", "mine"])
def test_what_the_grid_sets_itself_is_no_field_to_change(preset, name):
    value, named = CHANGES[name]
    config = ablation.get_config(preset)
    config.subset_per_seed, config.folds = True, 3
    config.validate()
    part, _, field = name.rpartition(".")
    setattr(held(config)[part], field, value)
    with pytest.raises(ConfigError, match=rf"^base\.{name}=.* has no effect in a sweep: {named}"):
        config.validate()


def test_a_rate_beside_those_to_choose_from_is_refused():
    config = ablation.get_config("cases")
    config.lrs, config.tuning_seeds = (1e-3, 1e-4), (100,)
    config.validate()
    config.base.optim.lr = 0.5
    with pytest.raises(ConfigError, match=r"^base\.optim\.lr=0\.5 has no effect .* give lrs"):
        config.validate()
    config.lrs, config.tuning_seeds = (), ()
    config.validate()


def test_every_field_that_a_grid_sets_is_refused():
    config = AblationConfig(FinetuneConfig(), "", seeds=(5,), fractions=(0.5,), folds=3)
    config.lrs, config.tuning_seeds = (1e-3, 1e-4), (6,)
    kept = {"optim", "read_test"}  # `optim` has other fields
    for cell in config.cells():
        for field in dataclasses.fields(cell.config):
            name, ours = field.name, getattr(cell.config, field.name)
            if ours != getattr(config.base, name) and name not in kept:
                assert any(changed.partition(".")[0] == name for changed in CHANGES), name


def test_what_the_grid_leaves_alone_may_be_changed():
    config = ablation.get_config("covid_ct_as_run")  # one subset for all seeds, no folds
    config.base.subset_seed, config.base.val_split = 7, "train2"
    config.base.epochs, config.base.fraction = 80, 1.0  # its value
    config.validate()


def test_encoders_of_a_sweep_that_uses_none_are_refused(runs):
    asked = {"radiomics": True, "finetuned": False}
    config = AblationConfig(FinetuneConfig(), "", (f"{runs}/SparK",), **asked)
    with pytest.raises(ConfigError, match=r"encoders=.* radiomics alone, which has none"):
        config.validate()
    config.frozen = True
    config.validate()


@pytest.fixture
def repeats(tmp_path):
    """Three pre-trainings of SparK that differ by their seed, and one of another learning rate."""
    for name, seed, lr in (("s0", 0, 1.0), ("s1", 1, 1.0), ("s2", 2, 1.0), ("other", 3, 2.0)):
        (tmp_path / name).mkdir()
        config = {"method": {"type": "SparK"}, "seed": seed, "optim": {"lr": lr}}
        record = {"type": "PretrainConfig", "config": config, "hash": f"{name}-hash"}
        (tmp_path / name / "config.json").write_text(json.dumps(record))
        data = {"fingerprint": "same", "filter": None, "encoder_run": None}
        (tmp_path / name / "data.json").write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize("named", ["", "mine="])
def test_several_runs_of_a_method_are_pretrainings_of_one_arm(repeats, named):
    entries = tuple(f"{named}{repeats}/{run}" for run in ("s0", "s1", "s2"))
    config = AblationConfig(
        FinetuneConfig(), "", entries, frozen=True, fractions=(0.5,), seeds=(3, 4)
    )
    config.validate()
    cells = list(config.cells())
    arm = named.rstrip("=") or "spark"
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 2 * (1 + 3)
    tuned = [c for c in cells if isinstance(c.config, FinetuneConfig) and c.config.encoder_run]
    assert {cell.config.arm for cell in tuned} == {arm}
    assert [cell.config.encoder_run for cell in tuned[:3]] == [f"{repeats}/s{i}" for i in range(3)]
    assert tuned[0].name == f"task-{arm}@s0-has-0.5-seed3"
    config.encoders = entries[::-1]
    assert {cell.name for cell in config.cells()} == {cell.name for cell in cells}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        (("s0", "s0"), "are one run of spark: give it once"),
        (("s0", "other"), "two arms are spark, .*recipe.config.optim.lr is 1.0 there and 2.0 here"),
        (("a=s0", "a=other"), "two arms are a, .*differ by their seed alone"),
        (("scratch=s0",), "scratch is the arm without pre-training"),
        (("random=s0",), "random is the arm without pre-training"),
    ],
)
def test_runs_that_are_no_repeats_of_one_recipe_are_refused(repeats, entries, named):
    given = tuple(
        f"{arm}{equals}{repeats}/{run}" for arm, equals, run in (e.rpartition("=") for e in entries)
    )
    with pytest.raises(ConfigError, match=named):
        AblationConfig(FinetuneConfig(), "", given).validate()


def test_runs_on_other_data_are_no_repeats(repeats):
    (repeats / "s1" / "data.json").write_text(json.dumps({"fingerprint": "another"}))
    with pytest.raises(ConfigError, match=r"recipe\.data"):
        AblationConfig(FinetuneConfig(), "", (f"{repeats}/s0", f"{repeats}/s1")).validate()


def test_learning_rates_are_tried_first_on_seeds_of_their_own_without_the_test(repeats):
    config = AblationConfig(
        FinetuneConfig(),
        *("", (f"{repeats}/s0", f"{repeats}/s1")),
        **{"fractions": (0.5, 1.0), "seeds": (0, 1), "folds": 3, "frozen": True},
        **{"lrs": (1e-4, 3e-4), "tuning_seeds": (7, 8, 9)},
    )
    config.validate()
    cells = list(config.cells())
    tries = [cell for cell in cells if cell.tries]
    assert cells[: len(tries)] == tries
    assert len(tries) == 2 * 3 * 2 * 2 * 3  # sizes, folds, arms, rates, seeds
    assert {(cell.config.seed, cell.config.subset_seed) for cell in tries} == {
        (seed, seed) for seed in (7, 8, 9)
    }
    by_name = {cell.name: cell for cell in cells}
    assert len(by_name) == len(cells)
    for cell in cells[len(tries) :]:
        if not isinstance(cell.config, FinetuneConfig):
            assert not cell.tuning
            continue
        assert cell.config.tuned_lrs == tuple(cell.tuning) == (1e-4, 3e-4)
        assert cell.config.tuned_seeds == (7, 8, 9)
        for lr, names in cell.tuning.items():
            for name in names:
                tried = by_name[name].config
                assert tried.optim.lr == lr
                same = ("arm", "fraction", "test_split", "val_split", "data")
                assert all(getattr(tried, f) == getattr(cell.config, f) for f in same)
    spark = [c.config.encoder_run[-2:] for c in tries if c.config.arm == "spark"]
    assert spark[:3] == ["s0", "s1", "s0"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lrs": (1e-3, 1e-4)}, "give both or none"),
        (
            {"lrs": (1e-3, 1e-4), "tuning_seeds": (5,), "finetuned": False, "frozen": True},
            "frozen features have no rate",
        ),
        ({"tuning_seeds": (5,)}, "give both or none"),
        ({"lrs": (1e-3,), "tuning_seeds": (5,)}, "lrs=.*give two or more"),
        ({"lrs": (1e-3, 1e-3), "tuning_seeds": (5,)}, "lrs=.*different"),
        ({"lrs": (1e-3, 1.0000001e-3), "tuning_seeds": (5,)}, "lrs=.*different"),
        ({"lrs": (1e-3, 1e-4), "tuning_seeds": (5, 5)}, "tuning_seeds=.*different"),
        ({"lrs": (1e-3, 1e-4), "tuning_seeds": (4, 5)}, "4 is one of seeds"),
    ],
)
def test_learning_rates_and_seeds_that_will_not_do_are_named(change, named):
    with pytest.raises(ConfigError, match=named):
        AblationConfig(FinetuneConfig(), "", **change).validate()


def test_arms_that_give_two_cells_one_name_are_refused(runs):
    entries = (f"a={runs}/SparK", f"a-frozen={runs}/MoCo")
    with pytest.raises(ConfigError, match=r"two cells are named task-a-frozen-0\.5-seed0"):
        AblationConfig(
            FinetuneConfig(), "", entries, frozen=True, fractions=(0.5,), seeds=(0,)
        ).validate()


def test_entries_in_one_flag_are_named(runs):
    with pytest.raises(ConfigError, match=r"give each run a flag --config.encoders of its own"):
        AblationConfig(FinetuneConfig(), "", (f"{runs}/SparK, {runs}/MoCo",)).validate()


def test_a_folder_that_is_no_run_is_named(runs):
    with pytest.raises(DataError, match=f"no run at {runs}/a=b"):
        AblationConfig(FinetuneConfig(), "", (f"{runs}/a=b",)).validate()
