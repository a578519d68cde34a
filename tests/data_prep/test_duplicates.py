"""Which slices are kept for pre-training."""

import json
import shutil

import numpy as np
import pytest
from memory import write_slices

from ctssl_jax.dataset.signatures import DTYPES, SIDE, Signatures, load_signatures
from data_prep import duplicates
from data_prep.duplicates import choose, keep_greedily, like_features, like_hash, volumes
from data_prep.source import Slice


def signatures(series, slice_index, patient=None, dhash=None):
    count = len(series)
    patient = series if patient is None else patient
    zeros = np.zeros(count)
    columns = {
        "digest": zeros,
        "dhash": zeros if dhash is None else dhash,
        "thumbnail": np.zeros((count, SIDE, SIDE)),
        "patient": patient,
        "series": series,
        "slice_index": slice_index,
        "label": zeros,
    }
    return Signatures(**{name: np.asarray(columns[name]).astype(DTYPES[name]) for name in DTYPES})


def greedy_by_hand(hashes, threshold):
    """The loop of the paper's code, a pair at a time, in Python's integers."""
    remaining, kept = list(range(len(hashes))), []
    while remaining:
        reference = remaining[0]
        kept.append(reference)
        remaining = [
            row
            for row in remaining
            if row != reference
            and bin(int(hashes[row]) ^ int(hashes[reference])).count("1") > threshold
        ]
    return kept


@pytest.mark.parametrize("threshold", [0, 6, 12, 64])
def test_greedy_choice_equals_one_by_hand(threshold):
    rng = np.random.default_rng(threshold)
    for count in (1, 2, 60):
        # A walk that turns a few bits at a time, as neighbouring slices do.
        hashes, state = [], int(rng.integers(2**63))
        for _ in range(count):
            state ^= sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 5), replace=False))
            hashes.append(state)
        hashes = np.array(hashes, np.uint64)
        kept = keep_greedily(np.arange(count), like_hash(hashes, threshold))
        assert kept.tolist() == greedy_by_hand(hashes, threshold)
        if count == 60:
            assert {0: 40, 6: 10, 12: 3, 64: 0}[threshold] < len(kept) <= 60
    assert len(keep_greedily(np.arange(60), like_hash(hashes, 64))) == 1


def test_a_hash_at_the_threshold_is_dropped_and_one_beyond_is_kept():
    hashes = np.array([0, 2**6 - 1, 2**7 - 1], np.uint64)
    assert keep_greedily(np.arange(3), like_hash(hashes, 6)).tolist() == [0, 2]


def test_dropped_slices_drop_no_others():
    """The second is like the first, the third like the second alone: it stays."""
    hashes = np.array([0, 0b11111, 0b1111111111], np.uint64)
    assert keep_greedily(np.arange(3), like_hash(hashes, 6)).tolist() == [0, 2]


def test_volumes_are_in_the_order_of_slices_wherever_the_rows_are():
    found = signatures(
        [b"b", b"a", b"b", b"a", b"c"], [1, 7, 0, 3, 0], [b"p", b"q", b"p", b"q", b"p"]
    )
    assert [rows.tolist() for rows in volumes(found)] == [[3, 1], [2, 0], [4]]
    assert [rows.tolist() for rows in volumes(found, "patient")] == [[2, 0, 4], [3, 1]]


def test_each_volume_is_thinned_by_itself():
    same = signatures([b"a", b"a", b"b", b"b"], [0, 1, 0, 1], [b"p"] * 4)
    like = like_hash(same.dhash, 6)
    rows, counts = choose(same, "series", like)
    assert rows.tolist() == [0, 2]
    assert counts.tolist() == [[2, 1], [2, 1]]
    assert choose(same, "patient", like)[0].tolist() == [0]


def test_every_nth_slice_of_each_volume():
    found = signatures([b"a"] * 5 + [b"b"] * 3, [4, 3, 2, 1, 0, 0, 1, 2])
    rows, counts = choose(found, "series", None, 2)
    assert rows.tolist() == [0, 2, 4, 5, 7]
    assert counts.tolist() == [[5, 3], [3, 2]]


def test_features_are_compared_by_their_angle():
    angles = np.radians([0, 10, 30, 35])
    features = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [20], [3], [0.1]]
    like = like_features(features, np.cos(np.radians(11)))
    assert keep_greedily(np.arange(4), like).tolist() == [0, 2]
    assert len(keep_greedily(np.arange(2), like_features(np.zeros((2, 3)), 0.5))) == 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two series of six slices: each slice twice, then another."""
    rng = np.random.default_rng(0)
    slices = []
    for series in "ab":
        for n in range(6):
            if n % 2 == 0:
                image = rng.integers(0, 256, (32, 32)).astype(np.int16)
            slices.append(Slice(image, f"patient {series}", f"series {series}", n))
    return write_slices(
        tmp_path_factory.mktemp("set") / "set", {"train": slices, "val": slices[:1]}, classes=()
    )


def command(dataset, out, *more):
    return duplicates.main([f"--data={dataset}", f"--out={out}", *more])


def test_the_command_writes_what_it_kept(dataset, tmp_path, capsys):
    out = tmp_path / "filter.json"
    assert command(dataset, out) == 0
    found = json.loads(out.read_text())
    manifest = json.loads((dataset / "manifest.json").read_text())
    rows = load_signatures(dataset, "train")
    kept = sorted(
        zip(rows.series[found["rows"]], rows.slice_index[found["rows"]].tolist(), strict=True)
    )
    assert [index for _, index in kept] == [0, 2, 4, 0, 2, 4]
    assert (found["slices"], found["kept"], found["volumes"]) == (12, 6, 2)
    assert found["parameters"] == {"volume": "series", "threshold": 6}
    assert (found["method"], found["split"]) == ("dhash", "train")
    assert found["fingerprint"] == manifest["fingerprint"]
    assert found["kept_per_volume"] == {"least": 3, "median": 3, "most": 3}
    printed = capsys.readouterr().out
    assert "12         6  (50.0%)" in printed
    assert "patient" not in out.read_text()


def test_the_command_takes_features_of_this_split(dataset, tmp_path, capsys):
    rows, run = load_signatures(dataset, "train"), tmp_path / "run"
    run.mkdir()
    angle = np.radians(rows.slice_index * 5.0)
    features = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(12)
    arguments = ("--method=embedding", f"--embeddings={run}/embeddings.npz", "--cosine=0.99")
    fingerprint = json.loads((dataset / "manifest.json").read_text())["fingerprint"]

    def write(keep=12, fingerprint=fingerprint):
        arrays = {"train_features": features[order][:keep], "train_record": order[:keep]}
        np.savez(run / "embeddings.npz", **arrays)
        (run / "results.json").write_text(json.dumps({"data_fingerprint": fingerprint}))

    write()
    assert command(dataset, tmp_path / "filter.json", *arguments) == 0
    found = json.loads((tmp_path / "filter.json").read_text())["rows"]
    assert sorted(rows.slice_index[found].tolist()) == [0, 0, 2, 2, 4, 4]  # 8.1 degrees apart
    write(keep=11)
    assert command(dataset, tmp_path / "other.json", *arguments) == 3
    assert "11 features for 12 slices" in capsys.readouterr().err
    write(fingerprint="of another")
    assert command(dataset, tmp_path / "other.json", *arguments) == 3
    assert "of another dataset" in capsys.readouterr().err
    assert command(dataset, tmp_path / "other.json", *arguments, "--split=val") == 3
    assert "no features of split 'val'" in capsys.readouterr().err
    assert not (tmp_path / "other.json").exists()


SET = {"threshold": "3", "n": "3", "embeddings": "x.npz", "cosine": "0.9"}


@pytest.mark.parametrize("method", duplicates.SETTINGS)
def test_a_flag_of_another_method_is_refused(dataset, tmp_path, capsys, method):
    assert {name for of in duplicates.SETTINGS.values() for name in of} == SET.keys()
    for name in SET.keys() - duplicates.SETTINGS[method].keys():
        words = [f"--method={method}", f"--{name}={SET[name]}"]
        assert command(dataset, tmp_path / "filter.json", *words) == 2
        assert f"--{name} is of --method=" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_nth_by_the_command(dataset, tmp_path):
    for words, n in (([], 10), (["--n=3"], 3)):
        assert command(dataset, tmp_path / "filter.json", "--method=every_n", *words) == 0
        found = json.loads((tmp_path / "filter.json").read_text())
        assert found["parameters"] == {"volume": "series", "n": n}
        assert found["kept"] == 2 * -(-6 // n)


def test_no_file_but_a_filter_is_written_over(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "set")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for path in [*before, tmp_path / "set"]:
        assert command(tmp_path / "set", path) == 2
        error = capsys.readouterr().err
        assert f"--out={path}: is " in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for out in (tmp_path / "filter.json", tmp_path / "filter.json", tmp_path / "set" / "new.json"):
        assert command(tmp_path / "set", out) == 0


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--threshold=65"], 2, "--threshold=65: must be 0 to 64"),
        (["--n=0", "--method=every_n"], 2, "--n=0"),
        (["--method=embedding"], 2, "needs --embeddings"),
        (["--split=test"], 3, "no split 'test'"),
    ],
)
def test_wrong_use_is_said(dataset, tmp_path, capsys, more, code, said):
    assert command(dataset, tmp_path / "filter.json", *more) == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
