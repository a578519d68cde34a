import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import ConfigError, DataError
from data_prep import covid_ct, folder, hemorrhage, organsmnist
from data_prep.pipeline.prepare import prepare
from data_prep.readers import npz
from data_prep.source import Item, Unusable

KEY = b"0123456789abcdef"
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def run(source, out, fractions=FRACTIONS):
    return prepare(source, out, key=KEY, fractions=fractions)


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
    manifest = run(covid_ct.make_source(tmp_path / "in"), tmp_path / "o")
    assert manifest["classes"] == ["COVID", "NonCOVID"]
    assert {s: n["labels"] for s, n in manifest["splits"].items()} == {
        "train": [2, 2],
        "val": [2, 1],
    }
    assert manifest["rejected"] == {"listed but not there": 1}
    assert manifest["note"] == (
        "no list testCT_COVID.txt; no list testCT_NonCOVID.txt; "
        "1 images are in no list and were left out; "
        "official split: 2 publications have images in more than one split"
    )
    assert len({r["patient"] for r in read(tmp_path / "o", "train")}) == 4


def test_covid_test_list_is_used_if_there(tmp_path):
    tests = {("COVID", "test"): ["x%1.png"], ("NonCOVID", "test"): ["y.png", "z.png"]}
    covid_folder(tmp_path / "in", COVID | tests)
    manifest = run(covid_ct.make_source(tmp_path / "in"), tmp_path / "o")
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
    manifest = run(covid_ct.make_source(tmp_path / "in", "patient"), tmp_path / "o")
    assert set(manifest["splits"]) == {"train", "val", "test"}
    assert sum(n["patients"] for n in manifest["splits"].values()) == 12
    patients = [{r["patient"] for r in read(tmp_path / "o", s)} for s in manifest["splits"]]
    assert len(set.union(*patients)) == 12


def test_covid_needs_its_folders(tmp_path):
    with pytest.raises(DataError, match="no folder CT_COVID"):
        covid_ct.make_source(tmp_path)


def test_covid_real(tmp_path, shared):
    source = shared("covid-ct")
    manifest = run(covid_ct.make_source(source), tmp_path / "o")
    assert manifest["splits"]["train"]["labels"] == [191, 234]
    assert manifest["splits"]["val"]["labels"] == [60, 58]
    assert manifest["rejected"] == {}


def test_covid_an_image_that_a_list_names_twice_is_there_once(tmp_path):
    names = {key: [*listed, listed[0]] for key, listed in COVID.items()}
    for split_by in ("official", "patient"):
        covid_folder(tmp_path / "in", COVID)
        once = covid_ct.make_source(tmp_path / "in", split_by)
        covid_folder(tmp_path / "in", names)
        source = covid_ct.make_source(tmp_path / "in", split_by)
        assert list(source.items()) == list(once.items())
        assert len(list(source.items())) == 8
        assert "4 lines of the lists repeat one of the same list" in "; ".join(source.notes())


@pytest.mark.parametrize("home", ["", "head_ct/head_ct"])
def test_hemorrhage(tmp_path, read, home):
    source = tmp_path / "in"
    rows = ["id, hemorrhage"]
    for i in range(20):
        png(source / home / f"{i:03d}.png", 100 + i)
        rows.append(f"{i},{int(i < 10)}")
    (source / "labels.csv").write_text("\n".join([*rows, "20,1"]))
    manifest = run(hemorrhage.make_source(source), tmp_path / "o")
    counts = {s: n["labels"] for s, n in manifest["splits"].items()}
    assert counts == {"train": [6, 6], "val": [2, 2], "test": [2, 2]}
    assert manifest["rejected"] == {"listed but not there": 1}
    for record in read(tmp_path / "o"):
        assert record["label"] == int(record["image"][0, 0] < 110)


@pytest.mark.parametrize("home", ["", "head_ct"])
def test_hemorrhage_counts_the_images_without_a_row(tmp_path, home):
    source = tmp_path / "in"
    for i in range(12):
        png(source / home / f"{i:03d}.png", 100 + i)
    rows = [f"{i},{i % 2}" for i in range(9)]
    (source / "labels.csv").write_text("\n".join(["id, hemorrhage", *rows]))
    notes = hemorrhage.make_source(source).notes()
    assert notes[1:] == ["3 images are not in labels.csv and were left out"]


def test_hemorrhage_names_what_is_wrong(tmp_path):
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n1,maybe\n")
    with pytest.raises(DataError, match="hemorrhage 0 or 1"):
        hemorrhage.make_source(tmp_path)
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n1,1\n01,0\n")
    with pytest.raises(DataError, match="the same id twice"):
        hemorrhage.make_source(tmp_path)
    (tmp_path / "labels.csv").write_text("id,hemorrhage\n1,1\n")
    with pytest.raises(DataError, match=r"no images named like 000\.png"):
        hemorrhage.make_source(tmp_path)


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
    manifest = run(organsmnist.make_source(tmp_path / "o.npz"), tmp_path / "out")
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


def test_medmnist_tells_of_images_that_are_of_no_split(tmp_path):
    medmnist(tmp_path / "o.npz", 3, holdout_images=np.zeros((4, 9, 9), np.uint8))
    notes = organsmnist.make_source(tmp_path / "o.npz").notes()
    assert any(note.startswith("1 arrays of images are of no split") for note in notes)


def test_medmnist_split_by_patient(tmp_path, read):
    file, out = tmp_path / "o.npz", tmp_path / "out"
    medmnist(file, 3, patients=True)
    manifest = run(organsmnist.make_source(file, "patient"), out)
    assert manifest["classes"] == ["organ_0", "organ_1", "organ_2"]
    patients = [{r["patient"] for r in read(out, split)} for split in manifest["splits"]]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 17
    official = run(organsmnist.make_source(file), tmp_path / "out2")
    assert official["note"] == "official split: 1 patients are in more than one split"
    medmnist(file, 3)
    with pytest.raises(DataError, match="has no train_patient"):
        organsmnist.make_source(file, "patient")


def test_medmnist_in_folds_is_split_by_patient_or_not_at_all(tmp_path, capsys, read):
    file, key, out = tmp_path / "o.npz", tmp_path / "key", tmp_path / "out"
    medmnist(file, 3, patients=True)
    key.write_text("0123456789abcdef")
    flags = [f"--source={file}", f"--out={out}", f"--key={key}", "--folds=5", "--workers=0"]
    assert organsmnist.main(flags) == 2
    message = "--folds=5: the source has splits of its own: give --split_by=patient"
    assert capsys.readouterr().err == f"data_prep.organsmnist: {message}\n"
    assert organsmnist.main([*flags, "--split_by=patient"]) == 0
    patients = [{r["patient"] for r in read(out, f"fold{fold}")} for fold in range(5)]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 17


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
            organsmnist.make_source(file)
    file.write_text("no zip")
    with pytest.raises(DataError, match="not a readable npz"):
        organsmnist.make_source(file)


def test_organ_proxy(tmp_path, shared):
    file = shared("organs-sagittal-proxy/okbp_organs_sagittal_28_trainval.npz")
    manifest = run(organsmnist.make_source(file), tmp_path / "o")
    assert {s: n["slices"] for s, n in manifest["splits"].items()} == {"train": 6249, "val": 1264}
    assert len(manifest["classes"]) == 7
    assert manifest["note"] == "no test images in the file"


def test_medmnist_parts_and_running_numbers(tmp_path, read, monkeypatch):
    monkeypatch.setattr(organsmnist, "UNIT", 7)
    arrays = medmnist(tmp_path / "a.npz", 3, patients=True)
    source = organsmnist.make_source(tmp_path / "a.npz")
    assert [item.part for item in source.items()][:2] == [("train", 0, 7), ("train", 7, 14)]
    run(source, tmp_path / "o")
    for split, patients in (("train", arrays["train_patient"]), ("val", arrays["val_patient"])):
        records = read(tmp_path / "o", split)
        assert len(records) == len(patients)
        by_image = {r["image"].astype(np.uint8).tobytes(): r for r in records}
        seen = {12: 0} if split == "train" else {}
        for i, patient in enumerate(patients.tolist()):
            record = by_image[arrays[f"{split}_images"][i].tobytes()]
            assert record["slice_index"] == seen.get(patient, 0)
            assert record["label"] == arrays[f"{split}_labels"][i, 0]
            seen[patient] = seen.get(patient, 0) + 1


def test_a_patient_in_two_splits_is_numbered_on(tmp_path, read):
    shared = {"val_patient": np.zeros(20, int)}
    medmnist(tmp_path / "a.npz", 3, patients=True, **shared)
    run(organsmnist.make_source(tmp_path / "a.npz"), tmp_path / "o")
    # Five of patient 0 are in train.
    assert [r["slice_index"] for r in read(tmp_path / "o", "val")] == list(range(5, 25))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_only_the_part_is_read(tmp_path, save):
    images = np.arange(1000 * 4, dtype=np.uint32).astype(np.uint8).reshape(1000, 2, 2)
    save(tmp_path / "a.npz", train_images=images)
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        for start, stop in ((0, 3), (500, 501), (990, 1000)):
            part = npz.images(file, "train", start, stop)
            np.testing.assert_array_equal(part, images[start:stop])


def test_md5_is_checked_where_it_is_known(tmp_path, monkeypatch):
    for name in ("organsmnist.npz", "organsmnist_224.npz"):
        medmnist(tmp_path / name, 11)
        with pytest.raises(DataError, match="download it again") as raised:
            organsmnist.make_source(tmp_path / name)
        assert str(tmp_path) not in str(raised.value)
        organsmnist.make_source(tmp_path / name, md5="skip")
    file = tmp_path / "organsmnist.npz"
    import hashlib

    found = hashlib.md5(file.read_bytes()).hexdigest()
    assert organsmnist.make_source(file, md5=found.upper()).classes[0] == "bladder"
    monkeypatch.setitem(organsmnist.MD5, "organsmnist.npz", (organsmnist.VERSION_2, found))
    assert "version 3 of medmnist" in organsmnist.make_source(file).notes()[0]
    monkeypatch.setattr(organsmnist, "VERSION_2", found)
    assert "version 2 of medmnist" in organsmnist.make_source(file).notes()[0]
    medmnist(tmp_path / "mine.npz", 3)
    organsmnist.make_source(tmp_path / "mine.npz")
    with pytest.raises(DataError, match="MD5"):
        organsmnist.make_source(tmp_path / "mine.npz", md5=organsmnist.VERSION_2)
    with pytest.raises(ConfigError, match="--md5=no"):
        organsmnist.make_source(tmp_path / "mine.npz", md5="no")


def test_checksums_are_those_of_medmnist():
    # medmnist/info.py of medmnist 2.1.0 and 3.0.2.
    assert organsmnist.MD5 == {
        "organsmnist.npz": ("e5c39f1af030238290b9557d9503af9d", "9ab87b696fb54e2a387ebe992d6ed5f1"),
        "organsmnist_64.npz": ("53a6d115339d874c25e309a994ff46d3",),
        "organsmnist_128.npz": ("ded0c5fa01a95dc4978b956f613e9b8e",),
        "organsmnist_224.npz": ("b354719e553fbbb2513d5533f52a4cb1",),
    }


def test_zip_bombs_are_refused(tmp_path):
    file = tmp_path / "a.npz"

    def write(name, header, size):
        medmnist(file, 3, **{name: None})
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.npy", stream.getvalue() + bytes(size))

    images = {"descr": "|u1", "fortran_order": False, "shape": (60, 2**16, 2**16)}
    write("train_images", images, 100)
    with pytest.raises(DataError, match="train_images is too large"):
        organsmnist.make_source(file)
    labels = {"descr": "|u1", "fortran_order": False, "shape": (2**28 + 1,)}
    write("train_labels", labels, 2**28 + 1)
    with pytest.raises(DataError, match="train_labels is too large"):
        organsmnist.make_source(file)


def test_a_damaged_npz_is_rejected_while_it_is_read(tmp_path):
    medmnist(tmp_path / "a.npz", 3)
    source = organsmnist.make_source(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:3000])
    with pytest.raises(Unusable, match="cut off or damaged"):
        list(source.read(list(source.items())[:1]))


def test_covid_lists_hold_file_names_only(tmp_path):
    covid_folder(tmp_path / "in", COVID)
    with open(tmp_path / "in/Data-split/COVID/trainCT_COVID.txt", "a") as stream:
        stream.write("../secret.png\n")
    with pytest.raises(DataError, match="no file names"):
        covid_ct.make_source(tmp_path / "in")


@pytest.mark.parametrize("module", [covid_ct, hemorrhage, organsmnist])
def test_help_states_origin(module, capsys):
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in (module.CITATION, module.LICENCE):
        assert "".join(text.split()) in "".join(shown.split())
    assert module.DOWNLOAD.startswith("https://")


def test_origins_belong_to_the_sources(tmp_path):
    covid_folder(tmp_path / "in", COVID)
    assert covid_ct.make_source(tmp_path / "in").origin is covid_ct.ORIGIN
    medmnist(tmp_path / "a.npz", 3)
    assert organsmnist.make_source(tmp_path / "a.npz").origin is organsmnist.ORIGIN


def test_head_ct_real(tmp_path, shared):
    manifest = run(hemorrhage.make_source(shared("head-ct")), tmp_path / "o")
    assert np.sum([n["labels"] for n in manifest["splits"].values()], 0).tolist() == [50, 50]
    assert manifest["rejected"] == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels", "regex", "slices", "patients", "classes"),
    [
        ("mednist-ct", "folder", "", 1875, 1875, 3),
        ("lidc128", "", r"^(LIDC-IDRI-\d{4})_", 3448, 176, 0),
        ("luna512", "", r"^([0-9.]+)\.mhd", 92, 92, 0),
    ],
)
def test_real_folders(tmp_path, shared, name, labels, regex, slices, patients, classes):
    manifest = run(folder.make_source(shared(name), labels, regex), tmp_path / "o")
    splits = manifest["splits"].values()
    assert sum(n["slices"] for n in splits) == slices
    assert sum(n["patients"] for n in splits) == patients
    assert len(manifest["classes"]) == classes
    assert manifest["rejected"] == {}
    assert manifest["intensity"] == "grey8"


def test_organ_proxy_by_patient(tmp_path, shared):
    file = shared("organs-sagittal-proxy/okbp_organs_sagittal_28_trainval.npz")
    source = organsmnist.make_source(file, "patient")
    items = list(source.items())
    assert sum(item.part[2] - item.part[1] for item in items) == 6249 + 1264
    places = {source.place(item) for item in items}
    assert all(place.unit == place.patient for place in places)
    assert isinstance(items[0], Item)
