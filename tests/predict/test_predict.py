"""A fine-tuned network on scans that were never prepared, from the command line."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ctssl_jax import files
from ctssl_jax.predict.__main__ import main
from ctssl_jax.report import write_report


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def command(tuned, out, **flags):
    words = {"run": tuned.run, "out": out, **flags}
    return main([f"--{name}={value}" for name, value in words.items()])


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    """The DICOM of the test patients, as a hospital would export it, with a damaged scan."""
    source = tmp_path_factory.mktemp("export") / "in"
    for folder in tuned.folders("test"):
        shutil.copytree(folder, source / folder.name)
    broken = source / "broken"
    shutil.copytree(tuned.folders("val")[0], broken)
    for path in broken.glob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-99])
    return source


@pytest.fixture(scope="module")
def predicted(tuned, exported, tmp_path_factory):
    out = tmp_path_factory.mktemp("predicted") / "out"
    assert command(tuned, out, source=exported, key=tuned.key, workers=0, pictures=1) == 0
    return out


def test_new_scans_get_what_the_runs_own_test_gave_them(tuned, predicted):
    """Case for case, although four devices predict what one has tested."""
    expected, found = tuned.rows("test"), table(predicted / "cases.csv")
    assert {row["case"] for row in found} == set(expected)
    for row in found:
        theirs = expected[row["case"]]
        for column, name in (("score_0", "no lesion"), ("score_1", "lesion")):
            ours = float(row[f"probability_{name}"])
            assert ours == pytest.approx(float(theirs[column]), abs=2e-5)
        assert (row["patient"], row["slices"]) == (theirs["patient"], theirs["slices"])
        called = float(row["probability_lesion"]) >= float(row["threshold"])
        assert row["decision"] == ("lesion" if called else "no lesion")
        assert row["unlike"] in ("yes", "no")
        assert len(row["top_slices"].split()) == 5


def test_a_bad_scan_is_listed_and_the_rest_go_on(predicted):
    reasons = {row["reason"] for row in table(predicted / "dataset" / "rejected.csv")}
    assert reasons == {"cut off"}


def test_slices_add_up_to_their_case(predicted):
    slices = table(predicted / "slices.csv")
    for row in table(predicted / "cases.csv"):
        own = [each for each in slices if each["case"] == row["case"]]
        assert [int(each["slice"]) for each in own] == list(range(int(row["slices"])))
        assert sum(float(each["share"]) for each in own) == pytest.approx(1, abs=1e-4)
        p = float(row["probability_lesion"])
        drives = [float(each["drives"]) for each in own]
        assert sum(drives) == pytest.approx(np.log(p / (1 - p)), abs=1e-3)
        order = np.argsort(-np.array(drives), kind="stable")[:5]
        assert row["top_slices"] == " ".join(map(str, order))
        positions = [float(each["position_mm"]) for each in own]
        assert (np.diff(positions) > 0).all()


def test_a_picture_is_drawn_of_each_asked_case(predicted):
    (picture,) = (predicted / "pictures").iterdir()
    likeliest = max(
        table(predicted / "cases.csv"), key=lambda row: float(row["probability_lesion"])
    )
    assert picture.stem == likeliest["case"]
    image = np.asarray(Image.open(picture))
    assert image.shape == (2 * 192 + 2 * 2 + 48, 5 * 192 + 4 * 2, 3)
    assert (image[:192, ..., 0] == image[:192, ..., 2]).all()  # grey above the maps
    bars = image[-1].reshape(-1, 3)  # of six slices one is not shown
    warm = (bars[:, 0] > 200) & (bars[:, 2] < 50)
    assert warm.mean() == pytest.approx(5 / 6, abs=0.01)


def test_scans_are_not_taken_for_those_of_an_earlier_source(tuned, exported, predicted, capfd):
    flags = {"source": exported, "key": tuned.key, "workers": 0}
    assert command(tuned, predicted, **flags) == 2
    assert "dataset is there: give --data=" in capfd.readouterr().err
    before = table(predicted / "cases.csv")
    assert command(tuned, predicted, data=predicted / "dataset") == 0
    assert table(predicted / "cases.csv") == before


def test_nothing_written_leads_back_to_a_file_or_name(predicted):
    for path in predicted.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (b"patient00", b"phantom-0-", b"/in/", b"Phantom"):
                assert secret not in content, path.name


def test_show_paths_leads_back_on_the_screen_alone(tuned, exported, tmp_path, capfd):
    code = command(tuned, tmp_path / "o", source=exported, key=tuned.key, workers=0) or main(
        [
            f"--run={tuned.run}",
            f"--out={tmp_path / 'p'}",
            f"--source={exported}",
            f"--key={tuned.key}",
            "--workers=0",
            "--show_paths",
        ]
    )
    assert code == 0
    lines = [row for row in capfd.readouterr().out.splitlines() if row.startswith("case ")]
    shown = dict(line.removeprefix("case ").split(": ") for line in lines)
    assert shown.keys() == set(tuned.rows("test"))
    assert sorted(path[-10:] for path in shown.values()) == sorted(
        folder.name for folder in tuned.folders("test")
    )


def test_labelled_scans_are_an_external_test_that_the_report_reads(
    tuned, exported, tmp_path, capfd
):
    runs, labels = tmp_path / "runs", tmp_path / "labels.csv"
    rows = (tuned.dicom / "labels.csv").read_text().splitlines()
    known = {folder.name for folder in tuned.folders("test")}
    labels.write_text("\n".join(row for row in rows if row.split(",")[0] in {"folder", *known}))
    flags = {"source": exported, "key": tuned.key, "workers": 0, "labels": labels, "pictures": 1}
    assert command(tuned, runs / "external", **flags) == 0
    rows = table(runs / "external" / "cases.csv")
    assert {row["label"] for row in rows} == {"no lesion", "lesion"}
    results = json.loads((runs / "external" / "results.json").read_text())
    own = json.loads((tuned.run / "results.json").read_text())
    assert results["external"]
    assert results["case"] == "scan"
    assert results["test"]["auc"] == pytest.approx(own["test"]["auc"], abs=1e-6)
    estimate, low, high = results["intervals"]["auc"]
    assert low <= estimate <= high
    # The patients of its test were not learnt from.
    assert not any(results["learnt_from"].values())
    assert "external test: AUC" in capfd.readouterr().out
    shutil.copytree(tuned.run, runs / "own")
    write_report([runs], tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    assert "External test" in html
    (likeliest,) = (runs / "external" / "pictures").iterdir()
    (drawn,) = (row for row in rows if row["case"] == likeliest.stem)
    right = "right" if drawn["label"] == drawn["decision"] else "wrong"
    assert f"Called {drawn['decision']}, labelled {drawn['label']}: {right}" in html
    assert likeliest.stem not in html
    assert "annotated scans" in html


def test_nothing_of_an_earlier_prediction_stays_beside_a_new_one(
    tuned, predicted, tmp_path, monkeypatch
):
    labelled, other = tuned.data, predicted / "dataset"
    assert command(tuned, tmp_path, data=labelled, pictures=2) == 0
    assert (tmp_path / "results.json").exists()
    (tmp_path / "notes.txt").touch()
    assert command(tuned, tmp_path, data=labelled, pictures="none-such") == 2
    assert (tmp_path / "results.json").exists()  # of a call that wrote nothing
    assert command(tuned, tmp_path, data=other) == 0
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"cases.csv", "slices.csv", "notes.txt"}
    assert command(tuned, tmp_path, data=labelled, pictures=2) == 0
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("ctssl_jax.predict.tables.write_slices", full)
        assert command(tuned, tmp_path, data=other) != 0
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"cases.csv", "notes.txt"}


def test_results_are_not_written_over_those_of_a_run(tuned, tmp_path, capfd):
    shutil.copytree(tuned.run, tmp_path / "run")
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert command(tuned, tmp_path / "run", data=tuned.data) == 2
    assert "holds config.json, which no prediction wrote" in capfd.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_labels_of_one_class_are_told_and_nothing_is_scored(tuned, exported, tmp_path, capfd):
    labels = tmp_path / "labels.csv"
    names = [folder.name for folder in tuned.folders("test")]
    labels.write_text("\n".join(["folder,label", *(f"{name},lesion" for name in names)]))
    flags = {"source": exported, "key": tuned.key, "workers": 0, "labels": labels}
    assert command(tuned, tmp_path / "o", **flags) == 0
    assert "the labels are of a single class: nothing can be scored" in capfd.readouterr().out
    assert {row["label"] for row in table(tmp_path / "o" / "cases.csv")} == {"lesion"}
    labels.write_text(labels.read_text().replace("lesion", "tumour"))
    assert command(tuned, tmp_path / "p", **flags) == 3
    assert "its classes are tumour, those of the run no lesion, lesion" in capfd.readouterr().err


@pytest.mark.parametrize("flag", [[], ["--features"]])
def test_too_small_slices_are_prepared_again(tuned, tmp_path, capfd, flag):
    shutil.copytree(tuned.data, tmp_path / "data")
    manifest = tmp_path / "data" / "manifest.json"
    files.write_json(manifest, files.sealed(files.read_json(manifest) | {"canvas": 16}))
    words = [f"--run={tuned.run}", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'o'}", *flag]
    assert main(words) == 2
    error = capfd.readouterr().err
    assert "--config" not in error
    assert "prepare them with --canvas=" in error


def test_a_folder_of_predictions_is_no_run(tuned, tmp_path, capfd):
    assert command(tuned, tmp_path / "p", data=tuned.data) == 0
    words = [f"--run={tmp_path / 'p'}", f"--data={tuned.data}", f"--out={tmp_path / 'f'}"]
    assert main([*words, "--features"]) == 2
    assert "trained nothing: give the run whose network it applied" in capfd.readouterr().err


def test_what_was_learnt_from_is_told(tuned, tmp_path, capfd):
    assert command(tuned, tmp_path / "o", data=tuned.data) == 0
    said = capfd.readouterr().out
    assert "WARNING: the network has learnt from some of these" in said
    assert "test on the run's own dataset" in said
    assert len(table(tmp_path / "o" / "cases.csv")) == 10


def test_features_of_any_encoder_and_neighbours(tuned, tmp_path):
    words = [f"--run={tuned.run}", f"--data={tuned.data}", f"--out={tmp_path}", "--features"]
    case = next(iter(tuned.rows("test")))
    assert main([*words, f"--neighbours={case}"]) == 0
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["features"].shape == (10, 512)
        assert arrays["slice_features"].shape == (60, 512)
        of_case = arrays["slice_features"][arrays["slice_case"] == case]
        place = arrays["case"].tolist().index(case)
        np.testing.assert_allclose(of_case.mean(axis=0), arrays["features"][place], rtol=1e-5)
    nearest = table(tmp_path / "neighbours" / f"{case}.csv")
    assert nearest[0] == {"case": case, "distance": "0.000000"}
    assert len(nearest) == 6
    assert (tmp_path / "neighbours" / f"{case}.png").exists()


def test_where_a_case_is_not_there_no_features_are_written(tuned, tmp_path, capfd):
    words = [f"--run={tuned.run}", f"--data={tuned.data}", f"--out={tmp_path}", "--features"]
    assert main([*words, "--neighbours=abc"]) == 2
    assert "no case abc" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data=none"], 3, "none: no such dataset"),
        (["--source=none"], 3, "--source=none does not exist"),
        (["--data={data}", "--labels=x.csv"], 2, "--labels is of --source"),
        (["--data={data}", "--pictures=abc"], 2, "no case abc"),
        (["--data={data}", "--neighbours=abc"], 2, "--neighbours needs --features"),
        (["--data={data}", "--threshold_at=0"], 2, "--threshold_at=0.0: must be above 0"),
        (["--data={data}", "--slices=3"], 2, "--slices is of pictures"),
        (["--data={data}", "--features", "--threshold_at=0.5"], 2, "is of predictions"),
        (["--data={data}", "--run={data}"], 2, "--run is given twice"),
    ],
)
def test_what_cannot_be_is_one_line(tuned, tmp_path, capfd, words, code, said):
    flags = [word.format(data=tuned.data) for word in words]
    assert main([f"--run={tuned.run}", f"--out={tmp_path / 'o'}", *flags]) == code
    errors = capfd.readouterr().err.strip().splitlines()
    assert len([line for line in errors if line.startswith("ctssl_jax.predict: ")]) == 1
    assert said in errors[-1]


def test_results_go_into_no_dataset_and_no_run(tuned, capfd):
    for out in (tuned.data, tuned.run):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert command(tuned, out, data=tuned.data) == 2
        assert f"--out={out}" in capfd.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_grey_images_are_refused_by_a_network_of_hounsfield_units(tuned, tmp_path, capfd):
    for k in range(4):
        grey = np.random.default_rng(k).integers(0, 255, (32, 32), np.uint8)
        home = tmp_path / "in" / "scan"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).save(home / f"{k}.png")
    flags = {"source": tmp_path / "in", "key": tuned.key, "workers": 0}
    assert command(tuned, tmp_path / "o", **flags) == 3
    assert "its slices are grey8, those that the run learnt from hu" in capfd.readouterr().err
