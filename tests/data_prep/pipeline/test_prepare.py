"""The engine of data preparation: parts, restart, processes, Beam, quality, splits."""

import csv
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy import ToySource, reads, write_toy

from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import read_json
from data_prep.pipeline import plan, records
from data_prep.pipeline import prepare as preparation
from data_prep.pipeline import work as parts
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.runners import Beam, GaveUp, Inline, Pool

KEY = b"0123456789abcdef"
HALVES = {"train": 0.5, "test": 0.5}
FOUR = {f"p{i}": {"label": i % 2, "slices": 2 + i} for i in range(4)}


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(source: ToySource, out: Path, **options):
    return prepare(source, out, **{"key": KEY, "fractions": HALVES, **options})


def test_dataset_holds_every_slice_with_pseudonyms(tmp_path, read):
    source = write_toy(tmp_path / "in", FOUR)
    manifest = run(source, tmp_path / "out")
    assert {s: n["patients"] for s, n in manifest["splits"].items()} == {"train": 2, "test": 2}
    assert sum(n["slices"] for n in manifest["splits"].values()) == 14
    found = [record for split in manifest["splits"] for record in read(tmp_path / "out", split)]
    by_patient: dict[str, list] = {}
    for record in found:
        by_patient.setdefault(record["patient"].decode(), []).append(record)
    assert set(by_patient) == {pseudonym(KEY, name) for name in FOUR}
    for number, (name, file) in enumerate(FOUR.items()):
        mine = by_patient[pseudonym(KEY, name)]
        rng = np.random.default_rng(number)
        assert [r["slice_index"] for r in mine] == list(range(file["slices"]))
        for index, record in enumerate(mine):
            expected = rng.integers(-1024, 2000, (24, 32)).astype(np.int16)
            np.testing.assert_array_equal(record["image"], expected)
            assert record["label"] == file["label"]
            assert record["position_mm"] == 2.5 * index
            np.testing.assert_array_equal(record["spacing_mm"], [2.5, 0.5, 0.75])
            assert record["thickness_mm"] == 3.0
            assert record["series"] == pseudonym(KEY, source.root / f"{name}.json").encode()
            assert record["source_kind"] == b"image"


def test_records_of_a_series_stand_together_in_order(tmp_path):
    source = write_toy(tmp_path / "in", {f"p{i}": {"slices": 4} for i in range(5)})
    run(source, tmp_path / "out", fractions={"train": 1.0})
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(tmp_path / "out/ct_slices/1.0.0")
    rows = [(r["series"], int(r["slice_index"])) for r in builder.as_data_source(split="train")]
    assert rows == sorted(rows)
    assert len(set(rows)) == 20


def test_counts_of_the_manifest(tmp_path):
    files = {**FOUR, "again": {"patient": "p3", "slices": 1, "label": 1}}
    manifest = run(write_toy(tmp_path / "in", files), tmp_path / "out")
    splits = manifest["splits"]
    assert sum(n["patients"] for n in splits.values()) == 4
    assert sum(n["series"] for n in splits.values()) == 5
    assert np.sum([n["labels"] for n in splits.values()], 0).tolist() == [2 + 4, 3 + 5 + 1]
    assert manifest["note"] == "a toy"
    assert manifest == read_json(tmp_path / "out/manifest.json")


def test_split_of_the_source_is_kept_and_the_rest_is_by_patient(tmp_path, read):
    files = {"a": {"split": "val"}, "b": {"split": "val"}, "c": {}, "d": {}}
    manifest = run(write_toy(tmp_path / "in", files), tmp_path / "out")
    assert list(manifest["splits"]) == ["train", "val", "test"]
    val = {record["patient"].decode() for record in read(tmp_path / "out", "val")}
    assert val == {pseudonym(KEY, "a"), pseudonym(KEY, "b")}


def test_split_is_the_same_with_another_key(tmp_path, read):
    source = write_toy(tmp_path / "in", {f"p{i}": {} for i in range(8)})
    members = []
    for key in (KEY, b"another key, sixteen"):
        out = tmp_path / key.decode()
        run(source, out, key=key)
        names = {pseudonym(key, f"p{i}"): f"p{i}" for i in range(8)}
        members.append({names[r["patient"].decode()] for r in read(out, "test")})
    assert members[0] == members[1]


def test_fingerprint_knows_pixels_labels_and_splits(tmp_path):
    seen = set()
    for number, (change, fractions) in enumerate(
        [({}, HALVES), ({"seed": 77}, HALVES), ({"label": 1}, HALVES), ({}, {"train": 1.0})]
    ):
        source = write_toy(tmp_path / "in", {**FOUR, "p0": {**FOUR["p0"], **change}})
        manifest = run(source, tmp_path / f"out{number}", fractions=fractions)
        seen.add(manifest["fingerprint"])
    assert len(seen) == 4


def test_processes_write_the_same_bytes(tmp_path):
    source = write_toy(tmp_path / "in", {f"p{i}": {"slices": i + 1} for i in range(9)})
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="no Apache Beam")
def test_beam_writes_the_same_bytes(tmp_path):
    source = write_toy(tmp_path / "in", {f"p{i}": {"slices": i + 1} for i in range(5)})
    run(source, tmp_path / "one")
    code = (
        "from pathlib import Path; from toy import ToySource;"
        "from data_prep.pipeline.prepare import *;"
        f"prepare(ToySource(Path({str(source.root)!r})), {str(tmp_path / 'two')!r}, key={KEY!r},"
        f" fractions={HALVES!r}, beam='--runner=DirectRunner')"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd()])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_finished_units_are_not_read_again(tmp_path):
    files = {f"p{i}": {"broken": int(i == 4)} for i in range(5)}
    source = write_toy(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"6\.2% of the images were rejected \(1 x cut off\)"):
        run(source, tmp_path / "out", max_rejected=0.05)
    assert not (tmp_path / "out").exists()
    assert reads(source) == sorted(files)
    run(source, tmp_path / "out", max_rejected=0.07)
    assert reads(source) == []
    run(source, tmp_path / "whole")
    first, second = tree(tmp_path / "out"), tree(tmp_path / "whole")
    # The limit is told in the table.
    assert {k: v for k, v in first.items() if k != "quality.txt"} == {
        k: v for k, v in second.items() if k != "quality.txt"
    }


def test_a_changed_file_is_read_again_and_no_other(tmp_path, monkeypatch):
    files = {f"p{i}": {} for i in range(4)}
    source = write_toy(tmp_path / "in", files)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "make_plan", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out")
    assert reads(source) == sorted(files)
    (source.root / "p2.json").write_text(json.dumps({"patient": "p2", "slices": 5, "seed": 9}))
    manifest = run(source, tmp_path / "out")
    assert reads(source) == ["p2"]
    assert sum(n["slices"] for n in manifest["splits"].values()) == 3 * 3 + 5


def _interrupt(*_):
    raise KeyboardInterrupt


def test_what_is_interrupted_while_shards_are_written_goes_on(tmp_path, monkeypatch):
    source = write_toy(tmp_path / "in", {f"p{i}": {} for i in range(6)})
    monkeypatch.setattr(plan, "SHARD_BYTES", 3000)
    run(source, tmp_path / "whole", fractions={"train": 1.0})
    reads(source)
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_report", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "out", fractions={"train": 1.0})
    assert reads(source)
    run(source, tmp_path / "out", fractions={"train": 1.0})
    assert reads(source) == []
    assert tree(tmp_path / "whole") == tree(tmp_path / "out")
    assert len(list((tmp_path / "out/ct_slices/1.0.0").glob("*array_record*"))) > 1
    assert list(tmp_path.glob(".*")) == []


def test_a_shard_that_is_there_is_not_written_again(tmp_path):
    source = write_toy(tmp_path / "in", {"a": {}})
    context = parts.Context(source, KEY, tmp_path)
    for folder in (context.parts, context.shards):
        folder.mkdir()
    parts.read_unit(context, parts.Unit("name", tuple(source.items())))
    shard = parts.Shard((("name", 0, 3),), 1)
    assert parts.write_shard(context, shard) == 3
    (context.parts / "name.array_record").unlink()
    assert parts.write_shard(context, shard) == 3


def test_shards_are_cut_at_their_size_and_hold_all(tmp_path, monkeypatch, read):
    source = write_toy(tmp_path / "in", {f"p{i}": {} for i in range(6)})
    monkeypatch.setattr(plan, "SHARD_BYTES", 2 * 3 * 1536)
    run(source, tmp_path / "out", fractions={"train": 1.0})
    shards = sorted((tmp_path / "out/ct_slices/1.0.0").glob("*array_record*"))
    assert [shard.name for shard in shards] == [
        f"ct_slices-train.array_record-0000{i}-of-00003" for i in range(3)
    ]
    assert len(read(tmp_path / "out")) == 18


@pytest.mark.parametrize("trouble", ["unusable", "raise"])
def test_a_unit_that_cannot_be_read_is_rejected_whole(tmp_path, trouble):
    files = {"bad": {"read": trouble}, "good": {}}
    manifest = run(write_toy(tmp_path / "in", files), tmp_path / "out", fractions={"train": 1.0})
    reason = {"unusable": "cut off", "raise": "the reader failed (ValueError)"}[trouble]
    assert manifest["rejected"] == {reason: 1}
    assert manifest["splits"]["train"]["slices"] == 3
    assert b"Doe" not in b"".join(p.read_bytes() for p in tmp_path.rglob("out/**/*") if p.is_file())


@pytest.mark.parametrize("where", ["place", "read"])
def test_a_process_that_crashes_hangs_or_eats_memory_takes_only_its_file(
    tmp_path, where, monkeypatch
):
    limits = {"seconds": 3.0, "memory": 4 * 2**30}
    monkeypatch.setattr(preparation, "Pool", lambda workers: Pool(workers, **limits))
    kinds = {
        "crash": "the reader crashed",
        "hang": "the reader took too long",
        "memory": "the reader failed (MemoryError)",
        "raise": "the reader failed (ValueError)",
    }
    files = {kind: {where: kind} for kind in kinds} | {f"p{i}": {} for i in range(5)}
    source = write_toy(tmp_path / "in", files)
    manifest = run(source, tmp_path / "out", fractions={"train": 1.0}, workers=2)
    assert manifest["splits"]["train"]["slices"] == 15
    assert dict(manifest["rejected"]) == dict.fromkeys(kinds.values(), 1)


def test_left_out_by_design_does_not_count_for_the_limit(tmp_path):
    files = {"a": {"place": "unwanted"}, "b": {"place": "unusable"}, **FOUR}
    source = write_toy(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"6\.7% of the images"):  # 1 of 15
        run(source, tmp_path / "out", max_rejected=0.06)
    manifest = run(source, tmp_path / "out", max_rejected=0.07)
    assert manifest["rejected"] == {"cut off": 1}
    assert manifest["left_out"] == {"localizer": 1}
    assert manifest["rejected_share"] == pytest.approx(1 / 15, abs=1e-6)


def test_report_of_a_refused_preparation_stays_until_one_succeeds(tmp_path):
    files = {"a": {"broken": 30}, "b": {"tilt": True}, "c": {"place": "unwanted"}}
    source = write_toy(tmp_path / "in", files)
    with pytest.raises(DataError, match=r"--max_rejected=0\.5"):
        run(source, tmp_path / "out", max_rejected=0.5)
    report = tmp_path / "out.rejected"
    assert set(p.name for p in report.iterdir()) == {
        "quality.txt",
        "quality.png",
        "rejected.csv",
        "findings.csv",
    }
    with open(report / "rejected.csv") as stream:
        assert list(csv.reader(stream)) == [
            ["item", "reason", "images", "fault"],
            ["file 3", "localizer", "1", "0"],
            ["file 1", "cut off", "30", "1"],
        ]
    with open(report / "findings.csv") as stream:
        series = pseudonym(KEY, source.root / "b.json")
        assert list(csv.reader(stream))[1] == [series, "gantry tilt", "18.5 degrees", "3", "1"]
    assert "rejected: 30 of 36 (83.3%, limit 50.0%)" in (report / "quality.txt").read_text()
    run(source, tmp_path / "out")
    assert not report.exists()
    assert (tmp_path / "out/rejected.csv").is_file()


def test_no_slices_is_an_error_that_says_why(tmp_path):
    source = write_toy(tmp_path / "in", {"a": {"place": "unwanted"}, "b": {"place": "unusable"}})
    with pytest.raises(DataError, match=r"no CT slices .*1 x cut off; 1 x localizer"):
        run(source, tmp_path / "out")
    with pytest.raises(DataError, match="it holds no files"):
        run(write_toy(tmp_path / "none", {}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_paths_are_shown_when_asked_for_only(tmp_path, capsys):
    source = write_toy(tmp_path / "in", {"secret": {"place": "unusable"}, "b": {}, "c": {}})
    run(source, tmp_path / "out")
    captured = capsys.readouterr()
    assert "secret" not in captured.out + captured.err
    run(source, tmp_path / "again", show_paths=True)
    assert "file 3: cut off: " in capsys.readouterr().out


def test_out_that_is_taken_is_refused(tmp_path):
    source = write_toy(tmp_path / "in", {"a": {}})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/note.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out/note.txt").read_text() == "mine"


def test_two_preparations_of_one_dataset_exclude_each_other(tmp_path):
    source = write_toy(tmp_path / "in", {"a": {}})
    with (
        preparation._work_folder(tmp_path / "out"),
        pytest.raises(DataError, match="another preparation is writing it"),
    ):
        run(source, tmp_path / "out")


def test_full_disk_is_a_storage_error_and_leaves_no_dataset(tmp_path):
    source = write_toy(tmp_path / "in", {f"p{i}": {"slices": 200} for i in range(3)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(StorageError):
            run(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
    run(source, tmp_path / "out")


def test_runners_do_all_tasks():
    for runner in (Inline(), Pool(2)):
        done = sorted(runner.run(_square, 10, range(20)))
        assert done == [(i, 10 + i * i) for i in range(20)]


def test_pool_names_what_it_gave_up():
    results = dict(Pool(1, seconds=60.0).run(_exit_on_three, None, range(6)))
    assert results.pop(3) == GaveUp("the reader crashed")
    assert results == {i: i for i in (0, 1, 2, 4, 5)}


def _square(context: int, task: int) -> int:
    return context + task * task


def _exit_on_three(context: None, task: int) -> int:
    if task == 3:
        os._exit(1)
    return task


def test_beam_without_apache_beam_is_a_usage_error(monkeypatch):
    from ctssl_jax.errors import ConfigError

    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ConfigError, match="ctssl_jax\\[beam\\]"):
        list(Beam("").run(_square, 1, [1]))


def test_part_is_unfinished_until_its_summary_is_there(tmp_path):
    source = write_toy(tmp_path / "in", {"a": {"slices": 2, "label": 1}})
    context = parts.Context(source, KEY, tmp_path)
    (tmp_path / "parts").mkdir()
    unit = parts.Unit("name", tuple(source.items()))
    assert parts.finished(context, "name") is None
    assert parts.read_unit(context, unit) == 2
    part = parts.finished(context, "name")
    assert part is not None
    (group,) = part.groups
    assert (group.patient, group.slices, group.labels) == (pseudonym(KEY, "a"), 2, {"1": 2})
    assert len(list(records.read(tmp_path / "parts/name.array_record", 0, 2))) == 2


def test_preparation_imports_neither_jax_nor_tensorflow():
    program = """
import importlib, pkgutil, sys, data_prep
for module in pkgutil.walk_packages(data_prep.__path__, "data_prep."):
    importlib.import_module(module.name)
print({"jax", "tensorflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
