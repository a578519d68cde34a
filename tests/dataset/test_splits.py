"""Folds and sums of splits: made by patient, read in order, refused where they make no sense."""

import json
from collections import Counter

import numpy as np
import pytest
from memory import KEY, MemorySource, write_slices

from ctssl_jax.augment import Intensity, Standardise
from ctssl_jax.config import EvaluateConfig, FinetuneConfig
from ctssl_jax.data import DataConfig, evaluation_batches, open_dataset, read_labels, require_labels
from ctssl_jax.dataset.histogram import Tally
from ctssl_jax.dataset.signatures import load_signatures, save_signatures
from ctssl_jax.dataset.splits import fold_number, folds_of, parts
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.run.leakage import require_unseen
from ctssl_jax.run.standardise import resolve
from data_prep import audit, folder
from data_prep.phantom import source as phantom
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.split import fold_fractions, split_by_patient
from data_prep.source import Slice

FOLDS = 4
SUM = "fold2+fold0"  # not in the order of their numbers


def slices(patient: int):
    """Each slice has a value of its own, which says where it comes from."""
    rng = np.random.default_rng(patient)
    for index in range(1 + patient % 3):
        image = rng.integers(0, 200, (32, 32)).astype(np.int16)
        image[0, 0] = 10 * patient + index
        yield Slice(image, f"p{patient}", f"s{patient}", index, label=int(patient < 8))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "folds"
    series = {str(patient): list(slices(patient)) for patient in range(20)}
    prepare(MemorySource(series), out, key=KEY, fractions=fold_fractions(FOLDS))
    return open_dataset(out)


def rows(dataset, split):
    source = dataset.source(split)
    return [int(source[row]["image"][0, 0]) for row in range(len(source))]


@pytest.mark.parametrize("count", [3, 5, 12])
def test_folds_part_the_patients_equally_and_by_class(count):
    labels = {f"p{i}": int(i < 24) for i in range(84)}
    folds = split_by_patient(labels, fold_fractions(count), labels=labels)
    assert folds.keys() == labels.keys()
    assert set(folds.values()) == {f"fold{i}" for i in range(count)}
    for label, total in ((0, 60), (1, 24)):
        sizes = Counter(folds[patient] for patient in labels if labels[patient] == label)
        assert max(sizes.values()) - min(sizes.values()) <= 1
        assert sizes.total() == total


def test_dataset_of_folds_has_each_patient_once_and_passes_its_audit(dataset):
    splits = dataset.manifest["splits"]
    assert list(splits) == [f"fold{i}" for i in range(FOLDS)]
    patients = [set(read_labels(dataset, split)[1]) for split in splits]
    assert [len(own) for own in patients] == [5] * FOLDS
    assert len(set.union(*patients)) == 20
    verdict = json.loads((dataset.path / "audit.json").read_text())
    assert (verdict["verdict"], list(verdict["splits"])) == ("pass", list(splits))


def test_folds_are_in_the_order_of_their_numbers(tmp_path):
    series = {str(patient): list(slices(patient)) for patient in range(11)}
    manifest = prepare(
        MemorySource(series), tmp_path / "set", key=KEY, fractions=fold_fractions(11)
    )
    assert list(manifest["splits"])[-2:] == ["fold9", "fold10"]
    assert folds_of(sorted(manifest["splits"])) == list(manifest["splits"])


def test_a_sum_is_its_splits_one_after_the_other(dataset):
    first, second = "fold2", "fold0"
    assert rows(dataset, SUM) == rows(dataset, first) + rows(dataset, second)
    for ours, *theirs in zip(*(read_labels(dataset, s) for s in (SUM, first, second)), strict=True):
        np.testing.assert_array_equal(ours, np.concatenate(theirs))
    batches = list(evaluation_batches(dataset, DataConfig(canvas=32), split=SUM, batch_size=4))
    stream = np.concatenate([batch["image"][batch["valid"], 0, 0] for batch in batches])
    assert stream.tolist() == rows(dataset, SUM)
    signatures = load_signatures(dataset.path, SUM)
    assert len(signatures) == len(stream)
    one = [load_signatures(dataset.path, part).digest for part in (first, second)]
    np.testing.assert_array_equal(signatures.digest, np.concatenate(one))
    require_labels(dataset, SUM, "fold1")


def test_standardisation_is_over_all_parts(dataset):
    config = FinetuneConfig(intensity=Intensity(standardise=Standardise.DATASET))
    config.data.split = SUM
    source = dataset.source(SUM)
    images = [source[row]["image"] for row in range(len(source))]
    tally = sum((Tally.of(image, "grey8") for image in images[1:]), Tally.of(images[0], "grey8"))
    mean, std = tally.mean_std(*config.intensity.bounds("grey8"))
    found = resolve(config, dataset).intensity
    assert (found.mean[0], found.std[0]) == pytest.approx((mean, std), abs=1e-6)


def test_unknown_and_unlabelled_parts_are_named(dataset, tmp_path):
    with pytest.raises(DataError, match="no split 'fold9'; there is fold0, fold1, fold2, fold3"):
        dataset.source("fold1+fold9")
    for split in ("fold1+", "fold1+fold1", ""):
        with pytest.raises(ConfigError, match="different ones joined by"):
            dataset.source(split)
    images = [Slice(next(slices(i)).image, f"p{i}", f"p{i}", 0, label=i - 1) for i in range(3)]
    write_slices(tmp_path / "set", {"a": images[:1], "b": images[1:]})
    with pytest.raises(DataError, match=r"1 of 3 records of split 'a\+b' have no label"):
        require_labels(open_dataset(tmp_path / "set"), "a+b")


@pytest.mark.parametrize("kind", [FinetuneConfig, EvaluateConfig])
def test_train_val_and_test_share_no_part(kind):
    config = kind(val_split="fold1", test_split="fold0")
    config.data.split = "fold2+fold3"
    config.validate()
    for split in ("fold2+fold1", "fold0", "fold0+fold3"):
        config.data.split = split
        with pytest.raises(ConfigError, match="no part in common"):
            config.validate()


def test_what_an_encoder_saw_of_a_sum_or_of_any_fold_is_found(dataset, tmp_path, capsys):
    seen = load_signatures(dataset.path, "fold3")
    save_signatures(tmp_path / "seen.npy", [seen])
    found = require_unseen(dataset, ("fold0+fold3", "fold1"), str(tmp_path), accept=True)
    assert (found["patients"], found["exact"]) == (5, len(seen))
    series = {str(patient): list(slices(patient)) for patient in range(3)}
    prepare(MemorySource(series), tmp_path / "scans", key=KEY, fractions={"train": 1.0})
    overlap = audit.audit(dataset.path, [tmp_path / "scans"]).overlap
    assert sum(row.count for row in overlap if row.check == "patients") == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds=2"], "--folds=2: must be 3 or more"),
        (["--folds=5", "--val_fraction=0.2"], "--folds=5 and --val_fraction=0.2: give one"),
        (["--folds=5", "--test_fraction=0"], "--folds=5 and --test_fraction=0: give one"),
    ],
)
def test_flags_that_do_not_agree_are_refused(tmp_path, capsys, flags, message):
    assert phantom.main([f"--out={tmp_path / 'set'}", *flags]) == ConfigError.exit_code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_more_folds_than_patients_are_refused(tmp_path, capsys):
    flags = ["--patients=3", "--slices=1", "--size=32", "--workers=0"]
    assert phantom.main([f"--out={tmp_path / 'set'}", *flags, "--folds=4"]) == DataError.exit_code
    assert "--folds=4: there are 3 patients to be told apart" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert phantom.main([f"--out={tmp_path / 'set'}", *flags, "--folds=3"]) == 0


def test_a_source_with_splits_of_its_own_is_refused(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "in").mkdir()
    table = ["file,label,split"]
    for number in range(6):
        Image.fromarray(next(slices(number)).image.astype(np.uint8)).save(
            tmp_path / "in" / f"{number}.png"
        )
        table.append(f"{number}.png,{'ab'[number % 2]},{('train', 'test')[number == 5]}")
    (tmp_path / "labels.csv").write_text("\n".join(table) + "\n")
    flags = [f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 'labels.csv'}", "--folds=3"]
    assert folder.main([*flags, f"--out={tmp_path / 'set'}", "--workers=0"]) == 2
    assert "leave the column `split` out of --labels" in capsys.readouterr().err


def test_names_of_folds():
    assert [fold_number(name) for name in ("fold0", "fold12", "fold01", "fold", "train")] == [
        *(0, 12, None, None, None)
    ]
    assert parts("fold1+fold2") == ("fold1", "fold2")
