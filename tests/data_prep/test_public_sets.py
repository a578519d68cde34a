import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import DataError
from data_prep import covid_ct, hemorrhage, organsmnist

KEY = b"0123456789abcdef"
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def png(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def covid_folder(source, lists):
    """Makes the layout of COVID-CT; `lists` maps (kind, split) to names."""
    for (kind, split), names in lists.items():
        folder = source / "Data-split" / kind
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}CT_{kind}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            png(source / f"CT_{kind}" / name)


COVID = {
    ("COVID", "train"): ["2020.01.24.919183-p27-132.png", "2020.02.10.20021584-p6-52%0.png"],
    ("COVID", "val"): ["2020.02.10.20021584-p7-52%1.png", "PIIS01%3.png"],
    ("NonCOVID", "train"): ["14.png", "30%0.jpg"],
    ("NonCOVID", "val"): ["30%1.jpg", "15.png"],
}


def test_covid_official_lists(tmp_path, read):
    covid_folder(tmp_path / "in", COVID)
    png(tmp_path / "in" / "CT_COVID" / "unlisted.png")
    (tmp_path / "in" / "CT_NonCOVID" / "15.png").unlink()
    manifest = covid_ct.prepare(tmp_path / "in", tmp_path / "o", key=KEY, fractions=FRACTIONS)
    assert manifest["classes"] == ["COVID", "NonCOVID"]
    assert {s: n["labels"] for s, n in manifest["splits"].items()} == {
        "train": [2, 2],
        "val": [2, 1],
    }
    assert manifest["rejected"] == {"listed but not there": 1, "in no list": 1}
    assert manifest["note"] == (
        "no list testCT_COVID.txt; no list testCT_NonCOVID.txt; "
        "official split: 2 publications have images in more than one split"
    )
    assert len({r["patient"] for r in read(tmp_path / "o", "train")}) == 4


def test_covid_test_list_is_used_if_there(tmp_path):
    tests = {("COVID", "test"): ["x%1.png"], ("NonCOVID", "test"): ["y.png", "z.png"]}
    covid_folder(tmp_path / "in", COVID | tests)
    manifest = covid_ct.prepare(tmp_path / "in", tmp_path / "o", key=KEY, fractions=FRACTIONS)
    assert manifest["splits"]["test"]["labels"] == [1, 2]
    assert "no list" not in manifest["note"]


def test_covid_split_by_patient_keeps_publications_together(tmp_path, read):
    names = [f"2020.0{p}-p{k}-{k}%{i}.png" for p in range(6) for k in (1, 2) for i in (0, 1)]
    other = [f"{p}%{i}.jpg" for p in range(6) for i in range(3)]
    covid_folder(
        tmp_path / "in",
        {
            ("COVID", "train"): names[::2],
            ("COVID", "val"): names[1::2],
            ("NonCOVID", "train"): other,
        },
    )
    manifest = covid_ct.prepare(
        tmp_path / "in", tmp_path / "o", key=KEY, fractions=FRACTIONS, split_by="patient"
    )
    assert set(manifest["splits"]) == {"train", "val", "test"}
    assert sum(n["patients"] for n in manifest["splits"].values()) == 12
    patients = [{r["patient"] for r in read(tmp_path / "o", s)} for s in manifest["splits"]]
    assert len(set.union(*patients)) == 12


def test_covid_needs_its_folders(tmp_path):
    with pytest.raises(DataError, match="no folder CT_COVID"):
        covid_ct.prepare(tmp_path, tmp_path / "o", key=KEY, fractions=FRACTIONS)


def test_covid_real(tmp_path, shared):
    source = shared("covid-ct")
    manifest = covid_ct.prepare(source, tmp_path / "o", key=KEY, fractions=FRACTIONS)
    assert manifest["splits"]["train"]["labels"] == [191, 234]
    assert manifest["splits"]["val"]["labels"] == [60, 58]
    assert manifest["rejected"] == {}


@pytest.mark.parametrize("home", ["", "head_ct/head_ct"])
def test_hemorrhage(tmp_path, read, home):
    source = tmp_path / "in"
    rows = ["id, hemorrhage"]
    for i in range(20):
        png(source / home / f"{i:03d}.png", 100 + i)
        rows.append(f"{i},{int(i < 10)}")
    (source / "labels.csv").write_text("\n".join([*rows, "20,1"]))
    manifest = hemorrhage.prepare(source, tmp_path / "o", key=KEY, fractions=FRACTIONS)
    counts = {s: n["labels"] for s, n in manifest["splits"].items()}
    assert counts == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    assert manifest["rejected"] == {"listed but not there": 1}
    for record in read(tmp_path / "o"):
        assert record["label"] == int(record["image"][0, 0] < 110)


def test_hemorrhage_names_what_is_wrong(tmp_path):
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n1,maybe\n")
    with pytest.raises(DataError, match="hemorrhage 0 or 1"):
        hemorrhage.prepare(tmp_path, tmp_path / "o", key=KEY, fractions=FRACTIONS)
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n1,1\n")
    with pytest.raises(DataError, match=r"no images named like 000\.png"):
        hemorrhage.prepare(tmp_path, tmp_path / "o", key=KEY, fractions=FRACTIONS)


def medmnist(path, classes, patients=False, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 60), ("val", 20), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 9, 9), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n)[:, None] % classes).astype(np.uint8)
        if patients:
            arrays[f"{split}_patient"] = (
                np.arange(n) // 5 + {"train": 0, "val": 12, "test": 15}[split]
            )
    arrays |= changes
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return arrays


def test_medmnist_layout(tmp_path, read):
    arrays = medmnist(tmp_path / "o.npz", 11)
    manifest = organsmnist.prepare(
        tmp_path / "o.npz", tmp_path / "out", key=KEY, fractions=FRACTIONS
    )
    assert manifest["classes"][0] == "bladder"
    assert manifest["classes"][10] == "spleen"
    assert manifest["intensity"] == "grey8"
    assert {s: n["slices"] for s, n in manifest["splits"].items()} == {
        "train": 60,
        "val": 20,
        "test": 10,
    }
    assert "each image counts as its own patient" in manifest["note"]
    stored = sorted((r["label"], r["image"].tobytes()) for r in read(tmp_path / "out", "val"))
    images, labels = arrays["val_images"].astype(np.int16), arrays["val_labels"][:, 0]
    assert stored == sorted((y, x.tobytes()) for x, y in zip(images, labels, strict=True))


def test_medmnist_split_by_patient(tmp_path, read):
    file, out = tmp_path / "o.npz", tmp_path / "out"
    medmnist(file, 3, patients=True)
    manifest = organsmnist.prepare(file, out, key=KEY, fractions=FRACTIONS, split_by="patient")
    assert manifest["classes"] == ["organ_0", "organ_1", "organ_2"]
    patients = [{r["patient"] for r in read(out, split)} for split in manifest["splits"]]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 17
    official = organsmnist.prepare(file, tmp_path / "out2", key=KEY, fractions=FRACTIONS)
    assert official["note"] == "official split: 1 patients are in more than one split"
    medmnist(file, 3)
    with pytest.raises(DataError, match="has no train_patient"):
        organsmnist.prepare(file, tmp_path / "o3", key=KEY, fractions=FRACTIONS, split_by="patient")


def test_medmnist_refuses_other_layouts(tmp_path):
    file = tmp_path / "o.npz"
    cases = {
        "not uint8": {"val_images": np.zeros((20, 9, 9, 3), np.uint8)},
        "different lengths": {"val_labels": np.zeros((19, 1), np.uint8)},
        "has no val_labels": {"val_labels": None},
        "not a readable npz": {"val_labels": np.array([{}] * 20)},
    }
    for message, change in cases.items():
        medmnist(file, 3, **change)
        with pytest.raises(DataError, match=message):
            organsmnist.prepare(file, tmp_path / "o", key=KEY, fractions=FRACTIONS)
    file.write_text("no zip")
    with pytest.raises(DataError, match="not a readable npz"):
        organsmnist.prepare(file, tmp_path / "o", key=KEY, fractions=FRACTIONS)


def test_organ_proxy(tmp_path, shared):
    file = shared("organs-sagittal-proxy/okbp_organs_sagittal_28_trainval.npz")
    manifest = organsmnist.prepare(file, tmp_path / "o", key=KEY, fractions=FRACTIONS)
    assert {s: n["slices"] for s, n in manifest["splits"].items()} == {"train": 6249, "val": 1264}
    assert len(manifest["classes"]) == 7
    assert manifest["note"] == "no test images in the file"
