"""Who is a patient: identifiers that cannot be people are refused or told, never split."""

import numpy as np
import pytest
from PIL import Image
from toy import write_toy

from ctssl_jax.errors import ConfigError, DataError
from data_prep import dicom, folder, volumes
from data_prep.dicom import DicomSource
from data_prep.folder import make_source
from data_prep.patients import PatientBy, PatientFinder, Study, joined, require_people
from data_prep.pipeline.dry_run import dry_run
from data_prep.pipeline.prepare import prepare

KEY = b"0123456789abcdef"
THIRDS = {"train": 0.4, "val": 0.3, "test": 0.3}
TRAIN = {"train": 1.0}


def people(*studies):
    """Studies from pairs of study and patient."""
    return [Study(study, patient, 1) for study, patient in studies]


@pytest.fixture
def export(tmp_path, write_ct):
    """Writes series of two slices each, given (folder, study, patient) of each."""

    def write(*series):
        for number, (home, study, patient) in enumerate(series):
            for k in range(2):
                stored = np.random.default_rng([number, k]).integers(0, 2000, (16, 16))
                tags = {"StudyInstanceUID": study, "PatientID": patient, "z": 2.0 * k}
                path = tmp_path / "in" / home / f"{k}.dcm"
                write_ct(path, stored.astype(np.uint16), SeriesInstanceUID=f"1.9.{number}", **tags)
        return tmp_path / "in"

    return write


REFUSED = {
    "one PatientID for all": ([(f"1.{i}", "P1") for i in range(3)], "3 of 3 studies have the same"),
    "nobody twice": ([("1.1", "ANON"), ("1.2", "ANON"), ("1.3", "P1")], "2 of 3 studies have the"),
    "zeros twice": (
        [("1.1", "00000000"), ("1.2", "00000000"), ("1.3", "12345678")],
        "2 of 3 studies have the",
    ),
    "a sign twice": ([("1.1", "--"), ("1.2", "--"), ("1.3", "P1")], "2 of 3 studies have the"),
    "most of them": (
        [*((f"1.{i}", "P1") for i in range(6)), ("1.8", "P2"), ("1.9", "P3")],
        "6 of 8 studies have the same",
    ),
    "one study of two": ([("1.1", "P1"), ("1.1", "P2")], r"1 of 1 studies .* more than one"),
    "zeros": ([("1.1", "17"), ("1.2", "017")], "1 patients are named in more than one spelling"),
    "case and blanks": ([("1.1", "Lung 1"), ("1.2", "LUNG_1")], "more than one spelling"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_identifiers_that_cannot_be_people_are_refused(kind):
    studies, message = REFUSED[kind]
    with pytest.raises(DataError, match=message) as raised:
        require_people(people(*studies), [patient for _, patient in studies])
    assert "--patient_by=" in str(raised.value)
    assert not any(f" {patient} " in str(raised.value) for _, patient in studies)


def test_people_are_accepted():
    follow_ups = [(f"1.{i}", f"P{i // 3}") for i in range(9)]
    require_people(people(*follow_ups), [patient for _, patient in follow_ups])
    require_people(people(("1.1", "P1")), ["P1"])
    require_people(people(("1.1", "00"), ("1.2", "00"), ("1.3", "02")), ["00", "02"])
    require_people([], ["a1", "b1", "a11"])


def test_joined_identifiers_are_one():
    studies = people(("1.1", "a"), ("1.1", "b"), ("1.2", "b"), ("1.2", "c"), ("1.3", "x"))
    names = {"A": "a", "B": "b", "C": "c", "X": "x", "Y": "X "}
    assert joined(studies, names) == {"A": "a", "B": "a", "C": "a", "X": "X ", "Y": "X "}


def test_dicom_of_one_patient_is_refused_until_it_is_said_what_is_meant(tmp_path, export):
    root = export(*((f"s{i}", f"1.2.{i}", "ANON") for i in range(4)))

    def run(name, by, regex=""):
        source = DicomSource(root, patient_regex=regex, patient_by=by)
        out = tmp_path / name
        return prepare(source, out, key=KEY, fractions=THIRDS, patient_by=by)

    with pytest.raises(DataError, match="4 of 4 studies have the same PatientID"):
        run("refused", PatientBy.AUTO)
    with pytest.raises(DataError, match="the split val and test would get no patient: there is 1"):
        run("one", PatientBy.ID)
    manifest = run("study", PatientBy.STUDY)
    assert sum(split["patients"] for split in manifest["splits"].values()) == 4
    assert manifest["patients_known"] is False
    assert "each study counts as a patient" in manifest["note"]
    manifest = run("regex", PatientBy.AUTO, "(s[0-9])/")
    assert sum(split["patients"] for split in manifest["splits"].values()) == 4
    assert manifest["patients_known"] is True


def test_a_study_under_two_identifiers_is_never_in_two_splits(tmp_path, export, read):
    rows = [(f"s{i}{j}", f"1.2.{i}", f"p{i}{'ab'[j]}") for i in range(5) for j in (0, 1)]
    root = export(*rows)
    for make in (DicomSource, make_source):
        with pytest.raises(DataError, match="5 of 5 studies"):
            prepare(make(root), tmp_path / "x", key=KEY, fractions=THIRDS)
    by = PatientBy.JOINED
    manifest = prepare(DicomSource(root), tmp_path / "o", key=KEY, fractions=THIRDS, patient_by=by)
    assert manifest["note"] == "10 patients, 5 of them told apart"
    # The two of a study are together: each split has an even number.
    assert all(split["patients"] % 2 == 0 for split in manifest["splits"].values())
    assert len(manifest["splits"]) == 3


def test_without_a_patient_id_the_study_counts_and_that_is_said(tmp_path, export):
    root = export(("a", "1.2.1", ""), ("b", "1.2.1", ""), ("c", "1.2.2", "P1"))
    manifest = prepare(DicomSource(root), tmp_path / "o", key=KEY, fractions=TRAIN)
    assert manifest["splits"]["train"]["patients"] == 2
    assert manifest["patients_known"] is False
    assert manifest["note"] == "1 studies have no PatientID: each counts as a patient"


def image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def patients(source):
    return [item.patient for item in source.items()]


@pytest.mark.parametrize(
    ("regex", "expected"),
    [
        ("", ["ill/p1/a", "ill/p2/b", "well/q3/c"]),
        ("([pq][0-9])/", ["p1", "p2", "q3"]),
        ("^[^/]+/([^/]+)/", ["p1", "p2", "q3"]),
        (r"([^/]+)/[^/]+$", ["p1", "p2", "q3"]),
        ("([pq][0-9])", ["p1", "p2", "q3"]),
        (r"^(.)\.png", ["a", "b", "c"]),
    ],
)
def test_the_patient_is_found_in_the_path_or_the_name(tmp_path, regex, expected):
    for number, name in enumerate(("ill/p1/a", "ill/p2/b", "well/q3/c")):
        image(tmp_path / f"{name}.png", number)
    source = make_source(tmp_path, "folder", regex)
    assert patients(source) == expected
    assert source.facts()["patients_known"] is bool(regex)
    told = "patients are not known: each image counts as its own patient"
    assert (told in source.notes()) is not bool(regex)


def test_a_regex_that_finds_two_patients_or_none_is_refused(tmp_path):
    image(tmp_path / "12" / "3.png", 1)
    image(tmp_path / "12" / "4.png", 2)
    with pytest.raises(ConfigError, match="one patient in the name and another in the folders"):
        make_source(tmp_path, patient_regex="([0-9]+)")
    with pytest.raises(ConfigError, match="matches no file"):
        make_source(tmp_path, patient_regex="(p[0-9]+)")
    source = make_source(tmp_path, patient_regex="^([0-9]+)")
    assert patients(source) == ["3", "4"]
    assert any("in the file name, not the folder, of 2 files" in note for note in source.notes())


@pytest.mark.parametrize(
    ("regex", "files", "cut"),
    [
        ("(p[0-9])", ("p1_0", "p2_0", "p10_0", "p11_0"), 2),
        ("(p[0-9])", ("p1/7_0", "p10/7_0"), 1),
        ("(p[0-9]+)", ("p1_0", "p2_0", "p10_0"), 0),
        ("^([0-9]{4})", ("00010001", "00010002", "00020001"), 0),
        ("^(.)", ("a1", "b10"), 0),
        ("(q[0-9])", ("q1", "p10"), 0),
    ],
)
def test_a_regex_that_cuts_some_numbers_is_told(tmp_path, regex, files, cut):
    paths = [str(tmp_path / f"{name}.png") for name in files]
    notes = PatientFinder.of(regex, tmp_path).require_clear(paths)
    assert [f"in {cut} files" in note for note in notes] == [True] * bool(cut)


def test_what_is_told_of_a_regex_is_told_of_dicom_and_volumes(
    tmp_path, export, key_file, capsys, write_volume
):
    root = export(("p1/a", "1.2.1", "X"))
    write_volume(tmp_path / "volumes" / "p1" / "a.nii.gz")
    for command, source in ((dicom, root), (volumes, tmp_path / "volumes")):
        flags = ["--val_fraction=0", "--test_fraction=0", f"--key={key_file}", "--dry_run"]
        words = [f"--source={source}", f"--out={tmp_path / 'o'}", "--patient_regex=^(.)"]
        command.main([*words, *flags])
        assert "in the file name, not the folder, of" in capsys.readouterr().out


def test_a_regex_holds_for_dicom_and_volumes(tmp_path, export, key_file, capsys, write_volume):
    root = export(("p1/a", "1.2.1", "X"), ("p1/b", "1.2.2", "X"), ("p2/c", "1.2.3", "X"))
    flags = [f"--key={key_file}", "--workers=0", "--val_fraction=0", "--test_fraction=0"]

    def prepared(command, source, regex):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        words = [f"--source={source}", f"--out={out}", f"--patient_regex={regex}", *flags]
        code = command.main(words)
        shown = capsys.readouterr()
        rows = [line.split()[1:5] for line in shown.out.splitlines() if line.startswith("train")]
        return code, rows, shown.out + shown.err

    for command in (dicom, folder):
        code, rows, shown = prepared(command, root, "(p[0-9])/")
        assert (code, rows) == (0, [["3", "6", "2", "3"]]), shown
        code, _, shown = prepared(command, root, "^(q)")
        assert (code, "matches no file" in shown) == (2, True), shown
        code, _, shown = prepared(command, root, "(p1)/")
        assert (code, "2 x no patient: --patient_regex does not match" in shown) == (3, True), shown
    for name in ("p1/a", "p1/b", "p2/c"):
        write_volume(tmp_path / "volumes" / f"{name}.nii.gz")
    code, rows, shown = prepared(volumes, tmp_path / "volumes", "(p[0-9])/")
    assert (code, rows) == (0, [["3", "12", "2", "3"]]), shown


def test_blank_patients_of_a_table_are_refused(tmp_path):
    for number, name in enumerate("abc"):
        image(tmp_path / "in" / f"{name}.png", number)
    table = tmp_path / "labels.csv"
    table.write_text("file,label,patient\na.png,x,p\nb.png,y,\nc.png,x,nan\n")
    with pytest.raises(DataError, match="line 3, column patient: it is empty"):
        make_source(tmp_path / "in", str(table))
    assert patients(make_source(tmp_path / "in", str(table), r"^(.)\.")) == ["p", "b", "c"]
    table.write_text("file,label,patient\na.png,x,\nb.png,y,NA\n")
    source = make_source(tmp_path / "in", str(table))
    assert source.facts()["patients_known"] is False


def test_a_blank_patient_among_others_is_refused_for_dicom_too(tmp_path, export):
    """Its PatientID would be another name of one person."""
    root = export(*((f"s{i}", f"1.2.{i}", f"HOSP-{i // 2}") for i in range(4)))
    table = tmp_path / "labels.csv"
    for filled in ("ps", "sp"):
        names = [f"p{i // 2}" if "ps"[i % 2] == filled[0] else "" for i in range(4)]
        table.write_text(
            "file,label,patient\n" + "".join(f"s{i},x,{n}\n" for i, n in enumerate(names))
        )
        line = 2 + names.index("")
        with pytest.raises(
            DataError, match=f"line {line}, column patient: .* the PatientID counts"
        ):
            make_source(root, str(table))
    table.write_text("file,label,patient\n" + "".join(f"s{i},x,\n" for i in range(4)))
    assert make_source(root, str(table)).facts()["patients_from"] == "header"


@pytest.mark.parametrize("said", ["table", "regex"])
def test_one_patient_id_is_not_several_patients(tmp_path, export, said):
    root = export(*((f"s{i}", f"1.2.{i}", f"HOSP-{i // 2}") for i in range(8)))
    table = tmp_path / "labels.csv"
    table.write_text("file,label,patient\n" + "".join(f"s{i},x,v{i}\n" for i in range(8)))
    source = make_source(root, str(table))
    if said == "regex":
        source = DicomSource(root, patient_regex="(s[0-9])/")
    for refused in (
        lambda: prepare(source, tmp_path / "x", key=KEY, fractions=THIRDS),
        lambda: dry_run(source, KEY, THIRDS),
    ):
        with pytest.raises(DataError, match=r"4 PatientIDs .* several patients .*\(one is 2\)"):
            refused()
    stands = prepare(source, tmp_path / "i", key=KEY, fractions=THIRDS, patient_by=PatientBy.ID)
    assert "note" not in stands
    by = PatientBy.JOINED
    manifest = prepare(source, tmp_path / "j", key=KEY, fractions=THIRDS, patient_by=by)
    assert manifest["note"] == "8 patients, 4 of them told apart"


@pytest.mark.parametrize("patient_id", ["", "X", "ANON"])
def test_a_patient_id_that_is_nobodys_says_nothing_of_a_table(tmp_path, export, patient_id):
    """Patients in a table or path are the cure for it."""
    own = ["P8", "P9"] if patient_id == "ANON" else []
    ids = [*own, *[patient_id] * (6 - len(own))]
    root = export(*((f"s{i}", f"1.2.{i}", name) for i, name in enumerate(ids)))
    source = DicomSource(root, patient_regex="(s[0-9])/")
    manifest = prepare(source, tmp_path / "x", key=KEY, fractions=THIRDS)
    assert sum(split["patients"] for split in manifest["splits"].values()) == 6


def test_patients_of_a_table_in_two_spellings_are_refused(tmp_path):
    rows = "file,label,patient\n"
    for number, patient in enumerate(("P 17", "p017", "p18")):
        image(tmp_path / "in" / f"{number}.png", number)
        rows += f"{number}.png,{number % 2},{patient}\n"
    (tmp_path / "labels.csv").write_text(rows)
    source = make_source(tmp_path / "in", str(tmp_path / "labels.csv"))
    with pytest.raises(DataError, match="1 patients are named in more than one spelling"):
        prepare(source, tmp_path / "o", key=KEY, fractions=TRAIN)


@pytest.mark.parametrize(("count", "empty"), [(1, "val and test"), (2, "test"), (3, "")])
def test_a_split_without_a_patient_is_an_error(tmp_path, count, empty):
    source = write_toy(tmp_path / "in", {f"p{i}": {} for i in range(count)})
    if not empty:
        manifest = prepare(source, tmp_path / "o", key=KEY, fractions=THIRDS)
        assert list(manifest["splits"]) == ["train", "val", "test"]
        return
    with pytest.raises(DataError, match=f"the split {empty} would get no patient") as raised:
        prepare(source, tmp_path / "o", key=KEY, fractions=THIRDS)
    assert "--test_fraction=0" in str(raised.value)
    prepare(source, tmp_path / "o", key=KEY, fractions={"train": 1.0, "val": 0.0})


def test_a_finder_wants_a_group(tmp_path):
    for regex in ("(", "p[0-9]"):
        with pytest.raises(ConfigError, match="--patient_regex"):
            PatientFinder.of(regex, tmp_path)
