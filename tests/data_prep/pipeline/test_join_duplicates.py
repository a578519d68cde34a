"""Patients who share a picture are split as one."""

import dataclasses
import json

import numpy as np
import pytest
from memory import KEY, MemorySource
from PIL import Image
from toy import write_toy

from ctssl_jax.dataset.signatures import load_signatures
from data_prep import covid_ct
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.split import fold_fractions
from data_prep.source import Slice

PATIENTS = 12
HALVES = {"train": 0.5, "test": 0.5}
THIRDS = {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}


def picture(seed):
    """An 8-bit picture like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def source():
    """Patient 1 has a picture of patient 0, brighter; 2 one of 1, mirrored; 5 one of 4, equal."""
    images = {name: [picture(10 * name), picture(10 * name + 1)] for name in range(PATIENTS)}
    images[1].append(np.clip(images[0][0].astype(int) + 20, 0, 255))
    images[2].append(images[1][0][:, ::-1])
    images[5].append(images[4][1])
    series = {
        f"p{name:02}": [
            Slice(image.astype(np.int16), f"p{name:02}", f"p{name:02}", index, label=name % 2)
            for index, image in enumerate(mine)
        ]
        for name, mine in images.items()
    }
    return MemorySource(series)


def verdict(out):
    return json.loads((out / "audit.json").read_text())["verdict"]


def splits_of(out, manifest, key=KEY):
    names = {pseudonym(key, f"p{n:02}"): n for n in range(PATIENTS)}
    return {
        names[patient.decode()]: split
        for split in manifest["splits"]
        for patient in load_signatures(out, split).patient
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fractions", [THIRDS, fold_fractions(5)], ids=["thirds", "folds"])
def test_no_split_comes_between_copies(tmp_path, fractions, seed):
    manifest = prepare(
        source(), tmp_path / "set", key=KEY, fractions=fractions, seed=seed, join=True
    )
    split = splits_of(tmp_path / "set", manifest)
    assert split[0] == split[1] == split[2]
    assert split[4] == split[5]
    assert set(split) == set(range(PATIENTS))
    assert list(manifest["splits"]) == list(fractions)
    assert verdict(tmp_path / "set") == "pass"
    # Copies that were in one split from the first need not be told of.
    assert manifest["note"] in [f"12 patients, {n} of them told apart" for n in (9, 10, 11)]


def test_without_it_the_audit_fails(tmp_path):
    manifest = prepare(source(), tmp_path / "set", key=KEY, fractions=THIRDS)
    assert verdict(tmp_path / "set") == "fail"
    assert "note" not in manifest


def test_another_key_gives_the_same_splits(tmp_path):
    found = []
    for key in (KEY, KEY[::-1]):
        out = tmp_path / key.decode()
        manifest = prepare(source(), out, key=key, fractions=THIRDS, join=True)
        found.append(splits_of(out, manifest, key))
    assert found[0] == found[1]


def test_where_nothing_is_shared_nothing_changes(tmp_path):
    apart = source()
    apart = dataclasses.replace(apart, series={n: s[:2] for n, s in apart.series.items()})
    prints = [
        prepare(apart, tmp_path / str(join), key=KEY, fractions=THIRDS, join=join)["fingerprint"]
        for join in (False, True)
    ]
    assert prints[0] == prints[1]


def test_a_file_that_cannot_be_read_is_no_hindrance(tmp_path):
    files = {f"p{n}": {"slices": 2} for n in range(4)} | {"q": {"read": "unusable"}}
    source = write_toy(tmp_path / "in", files)
    halves = {"train": 0.5, "test": 0.5}
    manifest = prepare(source, tmp_path / "set", key=KEY, fractions=halves, join=True)
    assert sum(split["slices"] for split in manifest["splits"].values()) == 8


def test_splits_of_the_source_leave_no_room(tmp_path, capsys):
    folder = tmp_path / "in"
    for kind in ("COVID", "NonCOVID"):
        lists = folder / "Data-split" / kind
        lists.mkdir(parents=True)
        (folder / f"CT_{kind}").mkdir()
        for split in ("train", "val", "test"):
            name = f"{kind}-{split}.png"
            Image.fromarray(picture(len(name))).save(folder / f"CT_{kind}" / name)
            (lists / f"{split}CT_{kind}.txt").write_text(name + "\n")
    flags = [f"--source={folder}", f"--out={tmp_path / 'set'}", "--workers=0", "--join_duplicates"]
    assert covid_ct.main(flags) == 2
    err = capsys.readouterr().err
    assert "--join_duplicates: the source has splits of its own: give --split_by=patient" in err
    assert not (tmp_path / "set").exists()


def test_who_shares_a_series_is_joined_too(tmp_path):
    """The audit fails on a series in two splits as well."""
    every = {f"p{name:02}": [picture(10 * name + k) for k in range(2)] for name in range(PATIENTS)}
    slices = {
        name: [
            Slice(image.astype(np.int16), name, f"common series {number % 3}", index, label=0)
            for index, image in enumerate(mine)
        ]
        for number, (name, mine) in enumerate(every.items())
    }
    for seed in range(2):
        out = tmp_path / str(seed)
        prepare(MemorySource(slices), out, key=KEY, fractions=HALVES, seed=seed, join=True)
        assert verdict(out) == "pass"
