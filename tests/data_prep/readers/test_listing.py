"""All that is in a folder is read or counted: links, loops, pipes, what cannot be opened."""

import os

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import DataError
from data_prep import folder, show_pairs
from data_prep.dicom import DicomSource
from data_prep.folder import make_source
from data_prep.pipeline.prepare import prepare
from data_prep.readers import listing
from data_prep.readers.listing import DANGLING, HIDDEN, LOOP, OWN, SPECIAL, TWICE, UNREADABLE
from data_prep.volumes import VolumeSource

KEY = b"0123456789abcdef"


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def found(root):
    """What the listing says, by path relative to the folder, in its order."""
    start = f"{root.resolve()}/"
    return {entry.path.removeprefix(start): entry.flaw for entry in listing.entries(root)}


def test_files_are_in_natural_order_and_links_come_last(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    for name in ("b/2.png", "b/10.png", "a.png", ".hidden.png", ".git/x.png"):
        touch(root / name)
    touch(outside / "p/1.png")
    touch(tmp_path / "lone.png")
    (root / "lone.png").symlink_to(tmp_path / "lone.png")
    (root / "linked").symlink_to(outside)
    own = [".git", ".hidden.png", "a.png", "b/2.png", "b/10.png"]
    assert list(found(root)) == [*own, "linked/p/1.png", "lone.png"]
    assert list(listing.files(root / "a.png")) == [str((root / "a.png").resolve())]


def test_nothing_is_read_twice_and_no_loop_is_entered(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    touch(root / "p1" / "1.png")
    touch(outside / "p2" / "2.png")
    (root / "again").symlink_to(root / "p1")
    (root / "again.png").symlink_to(root / "p1" / "1.png")
    (root / "one").symlink_to(outside / "p2")
    (root / "two").symlink_to(outside)
    (root / "up").symlink_to(tmp_path)
    (root / "p1" / "self").symlink_to(root)
    (outside / "back").symlink_to(root / "p1")
    (root / "round").symlink_to(root / "round")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert found(root) == {
        "p1/1.png": None,
        "one/2.png": None,
        "again": TWICE,
        "again.png": TWICE,
        "two/p2": TWICE,
        "two/back": TWICE,
        "up": LOOP,
        "p1/self": LOOP,
        "round": DANGLING,
        "gone": DANGLING,
    }


def test_a_link_into_a_hidden_folder_is_followed(tmp_path):
    touch(tmp_path / ".git" / "annex" / "1.png")
    (tmp_path / "1.png").symlink_to(".git/annex/1.png")
    assert found(tmp_path) == {".git": HIDDEN, "1.png": None}


def test_a_pipe_is_not_opened_and_a_folder_that_cannot_be_read_is_a_fault(tmp_path, monkeypatch):
    touch(tmp_path / "a.png")
    touch(tmp_path / "locked" / "b.png")
    os.mkfifo(tmp_path / "pipe")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found(tmp_path) == {"a.png": None, "pipe": SPECIAL, "locked": UNREADABLE}


def test_a_folder_without_files_is_an_error(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no files"):
        list(listing.entries(tmp_path))


def test_what_is_no_file_is_in_the_table_with_its_reason(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for i in range(4):
        Image.fromarray(np.full((5, 5), i, np.uint8)).save(root / f"{i}.png")
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "again.png").symlink_to("1.png")
    manifest = prepare(make_source(root), tmp_path / "o", key=KEY, fractions={"train": 1.0})
    assert manifest["rejected"] == {DANGLING[0]: 1}
    assert manifest["left_out"] == {SPECIAL[0]: 1, TWICE[0]: 1}
    text = (tmp_path / "o" / "quality.txt").read_text()
    assert all(reason in text for reason, _ in (DANGLING, SPECIAL, TWICE))


def write_ours(root, monkeypatch):
    """All that a preparation of a folder of images may leave in it; returns the folders."""
    made = tmp_source(root / "away")
    key = root / "key"
    key.write_bytes(KEY * 2)
    flags = [f"--source={made}", f"--key={key}", "--workers=0", "--val_fraction=0.5"]
    flags.append("--test_fraction=0")
    (made / "bad.png").write_bytes(b"")
    out = root / "in" / "ds"
    assert folder.main([*flags, f"--out={out}", "--max_rejected=0"]) == 3
    assert folder.main([*flags, f"--out={out}x", "--max_rejected=0.5"]) == 0
    assert folder.main([*flags, f"--out={out}y", "--max_rejected=0.5"]) == 0
    for name in ("quality.txt", "rejected.csv", "findings.csv"):  # the manifest is enough
        (root / "in" / "dsy" / name).unlink()
    (root / "in" / "dsx" / "manifest.json").write_text("{")  # the report is enough
    image = np.zeros((4, 4), np.int16)
    monkeypatch.setattr(show_pairs, "_image", lambda *_: (image, "grey8"))
    place = (root / "in" / "dsy", "train")
    pair = show_pairs.Shown((1, 2), "near", (place, place), (0, 1))
    show_pairs.write_pairs(root / "in" / "pairs", [pair])
    return {"ds.rejected", "dsx", "dsy", "pairs"}


def tmp_source(root):
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9), dtype=np.uint8)
        path = root / "c" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def test_what_a_preparation_wrote_into_the_source_is_left_out_and_told(tmp_path, monkeypatch):
    ours = write_ours(tmp_path, monkeypatch)
    root = tmp_source(tmp_path / "in")
    own = {name: flaw for name, flaw in found(root).items() if flaw is not None}
    assert own == dict.fromkeys(ours, OWN) | {".ds.work": HIDDEN}
    source = make_source(root, "folder")
    assert source.classes == ["c"]
    manifest = prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0})
    assert manifest["left_out"] == {OWN[0]: 4, HIDDEN[0]: 1}
    assert manifest["splits"]["train"]["slices"] == 6
    for source in (DicomSource(root), VolumeSource(root)):
        assert sum(item.flaw == OWN for item in source.items()) == 4
    for name in ours:
        with pytest.raises(DataError, match="--source is a folder that data_prep wrote"):
            list(listing.entries(root / name))


def test_files_of_others_with_such_names_are_read(tmp_path):
    for name in ("quality.txt", "rejected.csv", "pairs.csv", "pairs.png", "manifest.json"):
        touch(tmp_path / "scans" / name)
    assert set(found(tmp_path).values()) == {None}
