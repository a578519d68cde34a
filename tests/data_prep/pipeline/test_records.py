import hashlib
import hmac
import stat
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ctssl_jax.errors import ConfigError, DataError
from data_prep.pipeline import records
from data_prep.pipeline.records import (
    Writer,
    decode,
    encode,
    load_key,
    pseudonym,
    shard_name,
    to_hu,
    write_metadata,
)
from data_prep.pipeline.split import split_by_patient, split_fractions
from data_prep.source import Slice

THIRDS = {"train": 0.6, "val": 0.2, "test": 0.2}


def test_record_comes_back_as_it_went_in(tmp_path):
    image = np.random.default_rng(0).integers(-1024, 3000, (6, 5)).astype(np.int16)
    item = Slice(image, "Jane", "1.2.3", 7, -3.5, (2.5, 0.5, 0.75), 3.0, label=1, split="val")
    item = replace(item, case="a scan", slice_label=0)
    fields = decode(encode(item, "p", "s", "dicom", "c"))
    np.testing.assert_array_equal(fields.pop("image"), image)
    np.testing.assert_array_equal(fields.pop("spacing_mm"), [2.5, 0.5, 0.75])
    assert fields == {
        "patient": b"p",
        "series": b"s",
        "slice_index": 7,
        "position_mm": -3.5,
        "thickness_mm": 3.0,
        "label": 1,
        "case": b"c",
        "slice_label": 0,
        "source_kind": b"dicom",
    }


def test_unknown_geometry_is_nan():
    fields = decode(encode(Slice(np.zeros((2, 2), np.int16), "", "", 0), "p", "s", "image"))
    assert np.isnan([fields["position_mm"], fields["thickness_mm"], *fields["spacing_mm"]]).all()


@pytest.mark.parametrize("compressed", [True, False])
def test_written_file_is_whole_and_read_in_part(tmp_path, compressed):
    path = tmp_path / "x.array_record"
    writer = Writer(path, compressed=compressed)
    texts = [f"record {i}".encode() for i in range(40)]
    for text in texts:
        writer.write(text)
    assert not path.exists()
    writer.close()
    assert list(records.read(path, 0, 40)) == texts
    assert list(records.read(path, 3, 37)) == texts[3:37]
    assert [p.name for p in tmp_path.iterdir()] == ["x.array_record"]


def test_tfds_reads_the_shards(tmp_path):
    items = [Slice(np.full((2, 3), i, np.int16), "", "", i) for i in range(5)]
    encoded = [encode(item, "p", "s", "image") for item in items]
    shards = {"train": [encoded[:3], encoded[3:4]], "test": [encoded[4:]]}
    for split, parts in shards.items():
        for number, part in enumerate(parts):
            writer = Writer(tmp_path / shard_name(split, number, len(parts)), compressed=True)
            for record in part:
                writer.write(record)
            writer.close()
    sizes = {s: [(len(p), sum(map(len, p))) for p in parts] for s, parts in shards.items()}
    write_metadata(tmp_path, sizes)
    builder = tfds.builder_from_directory(tmp_path)
    train = builder.as_data_source(split="train")
    assert [int(train[i]["slice_index"]) for i in range(4)] == [0, 1, 2, 3]
    assert builder.info.splits["test"].num_examples == 1
    assert builder.info.splits["train"].num_bytes == sum(map(len, encoded[:4]))


def test_hu_are_rounded_clipped_and_padding_is_air():
    values = np.array([-3024, -1024.4, -999.5, 0.49, 40.6, 40000, np.nan, -np.inf, np.inf])
    expected = [-1024, -1024, -1000, 0, 41, 32767, -1024, -1024, -1024]
    np.testing.assert_array_equal(to_hu(values), np.array(expected, np.int16))


def test_pseudonym_is_hmac_sha256():
    expected = hmac.new(b"k" * 16, b"LIDC-IDRI-0001", hashlib.sha256).hexdigest()[:16]
    assert pseudonym(b"k" * 16, " LIDC-IDRI-0001 ") == expected


def test_key_is_made_once_and_private(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "DEFAULT_KEY_FILE", tmp_path / "deep" / "pseudonym.key")
    key = load_key()
    assert len(key) == 64
    assert load_key() == key
    assert stat.S_IMODE((tmp_path / "deep" / "pseudonym.key").stat().st_mode) == 0o600
    with pytest.raises(DataError, match="no such file"):
        load_key(tmp_path / "none.key")
    (tmp_path / "short.key").write_text("abc")
    with pytest.raises(DataError, match="at least 16"):
        load_key(tmp_path / "short.key")


def test_split_depends_on_the_set_and_the_seed_only():
    patients = [f"p{i}" for i in range(50)]
    split = split_by_patient(patients, THIRDS, seed=1)
    assert split == split_by_patient(reversed(patients * 2), THIRDS, seed=1)
    assert split != split_by_patient(patients, THIRDS, seed=2)
    assert [list(split.values()).count(s) for s in THIRDS] == [30, 10, 10]


@pytest.mark.parametrize("n", [3, 4, 7])
def test_every_split_gets_a_patient_if_there_are_enough(n):
    split = split_by_patient(map(str, range(n)), {"train": 0.9, "val": 0.05, "test": 0.05})
    assert set(split.values()) == {"train", "val", "test"}
    assert set(split_by_patient(["a"], THIRDS).values()) == {"train"}


def test_split_is_stratified_by_label():
    labels = {f"p{i}": int(i < 10) for i in range(60)} | {"odd": 7, "other": 8}
    split = split_by_patient(labels, THIRDS, labels=labels)
    for label, total in ((0, 50), (1, 10)):
        counts = [sum(split[p] == s for p in labels if labels[p] == label) for s in THIRDS]
        assert counts == [0.6 * total, 0.2 * total, 0.2 * total]
    assert len(split) == 62


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.2), (0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_no_train_are_refused(val, test):
    with pytest.raises(ConfigError, match=f"--val_fraction={val} and --test_fraction={test}"):
        split_fractions(val, test)
