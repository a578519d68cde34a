"""Labels, patients and splits of files: from sub-folders or a CSV table."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ctssl_jax.errors import ConfigError, DataError
from data_prep.names import shown
from data_prep.readers.label_table import (
    NAME,
    SPLITS,
    Entry,
    LabelTable,
    ordered,
    read_label_table,
    require_one_spelling,
)
from data_prep.source import UNLABELLED, Item
from data_prep.spelling import key

NO_LABEL = (UNLABELLED, False)
NO_CLASS = ("in no class folder", False)
NOT_THERE = ("listed but not there", True)
EMPTY = ("listed, but no file is in it", True)
SPELLED_OTHERWISE = ("its identifier is spelled in another way in --labels", True)
MOST_TOLD = 4  # names of folders in a message
_SUFFIX = re.compile(r"(\.[A-Za-z][A-Za-z0-9]*){1,2}$")
_WORDS = "|".join(SPLITS)
_SPLIT = re.compile(rf"({_WORDS})(?:[\W_]*(?:set|data|images?))+")
_SPLIT_OR_NUMBER = re.compile(rf"({_WORDS})(?:[\W_]*(?:set|data|images?|\d+))*")
ELSEWHERE = ("listed but not there: a file of that name is in another folder of --source", True)
OTHER_SPELLING = ("listed, but spelled in another way in the files", True)


@dataclass(frozen=True)
class File:
    """What is known of a file before its labels.

    Attributes:
        path: Absolute, below the source.
        is_image: Whether it seems to be what is read: class folders without one are no classes.
        is_dicom: Whether it is a slice of a series.
        patient: "" for one whose header says it.
        patient_known: Whether that is more than its own name.
    """

    path: str
    is_image: bool = True
    is_dicom: bool = False
    patient: str = ""
    patient_known: bool = False


@dataclass(frozen=True)
class Labelled:
    """Files with what is known of them.

    Attributes:
        items: The files; their numbers are for others to give. One that is listed, but not there,
            has a flaw.
        classes: Names of the classes, in their one order.
        patients_known: Whether the patient of each is more than its file's name.
        notes: What a user of the dataset should know.
        by_table: Whether a table names the patient of each.
        by_file: Whether each row or class is one of a single file, not of a folder or an identifier
            that files share.
        column: Of the table, that says what its rows are about; "" without one.
        has_cases: Whether another column says which files are one case.
    """

    items: Sequence[Item]
    classes: Sequence[str] = ()
    patients_known: bool = True
    notes: Sequence[str] = field(default=())
    by_file: bool = True
    by_table: bool = False
    column: str = ""
    has_cases: bool = False


Describe = Callable[[str], File]
Identify = Callable[[str], Mapping[str, str]]


def label(
    files: Sequence[File], root: Path, labels: str, describe: Describe, identify: Identify
) -> Labelled:
    """Joins files with labels.

    Args:
        files: All that are listed below the source.
        root: Folder that they are in.
        labels: "" for none; "folder" for the class folders; else the path of a table, which
            `label_table` explains.
        describe: For a file that a row names and the listing does not: a hidden one, a link.
        identify: The identifiers of a DICOM file by the names of `label_table.KEYS`; none for what
            is damaged.

    Raises:
        DataError: If the table or the folders are not what they should be.
    """
    if labels == "folder":
        return _by_folder(files, root, identify)
    if not labels:
        items = [Item(0, file.path, file.patient) for file in files]
        return Labelled(items, patients_known=all(f.patient_known for f in files if f.is_image))
    table = read_label_table(Path(labels), root)
    if table.by == "file":
        return _by_file(table, files, root, describe)
    return _by_identifier(table, files, identify)


def with_positive(found: Labelled, positive: str) -> Labelled:
    """The same with that class of two as the last: what F1, AUC and the like are of.

    Raises:
        ConfigError: If there is no such class, or there are not two.
    """
    if not positive:
        return found
    classes = positive_last(found.classes, positive)
    if classes == list(found.classes):
        return found
    items = [replace(i, label=1 - i.label) if i.label >= 0 else i for i in found.items]
    return replace(found, items=items, classes=classes)


def positive_last(classes: Sequence[str], positive: str) -> list[str]:
    """Two classes with `positive` as the second; raises as `with_positive`."""
    told = ", ".join(map(shown, classes)) or "none"
    if len(classes) != 2:
        raise ConfigError(f"--positive={positive} is for two classes; here there are: {told}")
    if positive not in classes:
        raise ConfigError(f"--positive={positive} is no class; there are: {told}")
    return [name for name in classes if name != positive] + [positive]


def _by_folder(files: Sequence[File], root: Path, identify: Identify) -> Labelled:
    """Class folders, perhaps in folders of splits, or with these in them."""
    parts = {
        file.path: PurePosixPath(os.path.relpath(file.path, root)).parts[:-1] for file in files
    }
    homes = {parts[file.path][:2] for file in files if file.is_image and parts[file.path]}
    depth, split_depth = _layout(homes)
    images = [file for file in files if file.is_image and parts[file.path]]
    _require_classes({parts[file.path] for file in images}, depth, max(depth, split_depth) + 1)
    _require_no_patients([(parts[f.path][depth], f.path) for f in images if f.is_dicom], identify)
    names = {home[depth] for home in homes}
    require_one_spelling(names, lambda name: f"the folder {shown(name)}")
    classes = ordered(names)
    numbers = {name: number for number, name in enumerate(classes)}
    items = []
    for file in files:
        home = parts[file.path]
        name = home[depth] if len(home) > depth else ""
        split = SPLITS.get(home[split_depth].casefold(), "") if split_depth >= 0 and name else ""
        item = Item(0, file.path, file.patient, numbers.get(name, -1), split)
        # What is no image is looked at as ever, which says why it is left out.
        flaw = NO_CLASS if file.is_image and not name else None
        items.append(replace(item, flaw=flaw))
    others = {home[0] for home in parts.values() if home} - {home[0] for home in homes}
    notes = [f"{len(others)} folders without an image are no classes"] * bool(others)
    known = all(file.patient_known for file in files if file.is_image)
    return Labelled(items, [shown(name) for name in classes], known, notes)


def _layout(homes: set[tuple[str, ...]]) -> tuple[int, int]:
    """At which depth the classes are, and the splits; -1 for no splits.

    Raises:
        DataError: If there are no sub-folders, or only some of them are splits.
    """
    if not homes:
        raise DataError("--labels=folder: no image is in a sub-folder of --source, as a class is")
    first = Counter(home[0].casefold() in SPLITS for home in homes)
    if first[True] and first[False]:
        some = sorted({home[0] for home in homes if home[0].casefold() in SPLITS})
        raise DataError(
            f"--labels=folder: {', '.join(map(shown, some))} beside other folders: are these "
            "splits or classes? Put all classes into folders train, val and test, or into none"
        )
    second = [home[1].casefold() in SPLITS for home in homes if len(home) > 1]
    if first[True]:
        if len(second) < len(homes):
            raise DataError(
                "--labels=folder: folders of splits hold images themselves: put these into class "
                "folders, as train/CLASS"
            )
        if any(second):
            raise DataError("--labels=folder: folders of splits in folders of splits: which hold?")
        return 1, 0
    if any(second):
        if not all(second) or len(second) < len(homes):
            raise DataError(
                "--labels=folder: only some of the images of the classes are in folders train, val "
                "or test: put all into these, or none"
            )
        return 0, 1
    return 0, -1


def _require_classes(folders: Collection[tuple[str, ...]], depth: int, below: int) -> None:
    """Checks that folders are classes, not what they are in, splits, sites or patients.

    Args:
        folders: Of the images, from the source on.
        depth: At which the classes are.
        below: At which folders in classes, and in their splits, are.

    Raises:
        DataError: If they cannot be, with what to do.
    """
    inside: dict[str, set[str]] = defaultdict(set)  # "" for images in the class folder itself
    for folder in folders:
        inside[folder[depth]].add(folder[below] if len(folder) > below else "")
    within = set[str]().union(*inside.values())
    for names, pattern in ((set(inside), _SPLIT_OR_NUMBER), (within, _SPLIT)):
        found = {name: match for name in names if (match := pattern.fullmatch(name.casefold()))}
        if len({SPLITS[match[1]] for match in found.values()}) > 1:
            told = ", ".join(map(shown, sorted(found)[:MOST_TOLD]))
            raise DataError(
                f"--labels=folder: {told} look like splits, not classes: name these folders train, "
                "val and test"
            )
    sets = sorted(name for name in inside if _SPLIT.fullmatch(name.casefold()))
    if sets and len(sets) < len(inside):
        raise DataError(
            f"--labels=folder: {', '.join(map(shown, sets[:MOST_TOLD]))} beside other folders: it "
            "looks like a split, not a class: move it out of --source if its images have no "
            "labels, else put all classes into folders train, val and test"
        )
    if len(inside) == 1 and within != {""}:
        (name,) = inside
        raise DataError(
            f"--labels=folder: all images are in one folder, {shown(name)}, in sub-folders "
            f"({len(within - {''})}): if these are the classes or splits, give that folder as "
            "--source; if it is the only class, leave --labels out: one class teaches nothing"
        )
    homes = Counter(name for names in inside.values() for name in names)
    repeated = min(homes.values()) > 1 and len(homes) > 1  # not patients who are numbered in each
    named = not any(name == "" or any(map(str.isdigit, name)) for name in homes)
    everywhere = all(names == within for names in inside.values())
    if repeated and named and (everywhere or len(homes) < len(inside)):
        raise DataError(
            f"--labels=folder: the {len(inside)} folders that would be the classes have the same "
            f"{len(homes)} sub-folders: if those are sites or patients, and these the classes, put "
            "the classes first, as CLASS/SITE; if one holds masks, move it out; or give a table "
            "(--labels=labels.csv)"
        )


def _require_no_patients(slices: Sequence[tuple[str, str]], identify: Identify) -> None:
    """Raises DataError if each class has one PatientID of its own: then the folders are patients.

    Args:
        slices: Class and path of each.
        identify: The identifiers of one.
    """
    paths: dict[str, list[str]] = defaultdict(list)
    for name, path in slices:
        paths[name].append(path)
    found: dict[str, set[str]] = defaultdict(set)
    # Of most classes, the first and the last file are of two patients: few headers are read.
    for some in (lambda of: (of[0], of[-1]), lambda of: of[1:-1]):
        for name, of in paths.items():
            for path in some(of):
                found[name].add(identify(path).get("patient", ""))
                if len(found[name]) > 1:
                    return
    ids = {patient for of in found.values() for patient in of} - {""}
    if len(ids) == len(found) > 2:  # two may be the only ones
        raise DataError(
            f"--labels=folder: each of the {len(found)} folders that would be the classes holds "
            "one patient alone (PatientID): if they are patients, put the classes first, as "
            "CLASS/PATIENT, or give a table (--labels=labels.csv)"
        )


class _Join:
    """The items that the rows of a table make of files."""

    def __init__(self, table: LabelTable):
        self._table = table
        self._numbers = {name: number for number, name in enumerate(table.classes)}
        self.items = list[Item]()
        self.used = set[str]()
        self.unlisted = list[File]()
        self.known = True  # whether the patient of each is
        self.by_table = True  # and the table says it
        self._has_named = False  # of slices whose path names no patient
        self._blank = 0  # the line of one of these that names none

    def add(self, file: File, about: str, wanted: bool) -> None:
        """Adds a file that a row speaks of.

        Raises:
            DataError: If the row's patient is blank, others' are not, and nothing else says it.
        """
        entry = self._table.entries[about]
        says_itself = file.patient_known or file.is_dicom or not file.is_image
        if file.is_dicom and file.is_image and not file.patient:
            # Its PatientID is another name than the table has for the same person.
            if entry.patient:
                self._has_named = True
            elif not self._blank:
                self._blank = entry.line
            if self._has_named and self._blank:
                raise _blank_patient(self._blank, "the PatientID counts")
        if self._table.has_patients and not (entry.patient or says_itself):
            raise _blank_patient(entry.line, "each file counts as its own patient")
        self.used.add(about)
        self.known = self.known and bool(entry.patient or says_itself)
        self.by_table = self.by_table and bool(entry.patient)
        # A slice without a label is still needed to know its series whole: see `folder`.
        left_out = bool(self._table.classes) and not entry.label and not file.is_dicom
        flaw = NO_LABEL if left_out else None
        self._append(file.path, file.patient, entry, wanted, flaw, self._case(entry, about, wanted))

    def _case(self, entry: Entry, about: str, wanted: bool) -> str:
        """What names the case of a file, where its row speaks of more than that file."""
        if entry.case:
            return f"case {entry.case}"
        by = "folder" if self._table.by == "file" else self._table.by
        return "" if wanted else f"{by} {about}"

    def lose(self, about: str, path: str, flaw: tuple[str, bool]) -> None:
        """Adds a row that speaks of nothing that is there."""
        self._append(path, "", self._table.entries[about], True, flaw)

    def misspelled(self, file: File) -> None:
        """Adds a file whose identifier the table spells in another way."""
        self.items.append(Item(0, file.path, file.patient, flaw=SPELLED_OTHERWISE))

    def beside(self, files: Sequence[File]) -> None:
        """Adds slices without a row, of series that have some."""
        self.items += [Item(0, file.path, file.patient) for file in files]

    def labelled(self, by_file: bool) -> Labelled:
        """All that was added."""
        left_out = len({file.path for file in self.unlisted} - {i.path for i in self.items})
        without = self._table.unlabelled if self._table.classes else 0
        notes = [f"{left_out} files are not in --labels and were left out"] * bool(left_out)
        notes += [f"{without} rows of --labels give no label and were left out"] * bool(without)
        notes += self._table.notes
        classes = self._table.classes
        column, has_cases = self._table.by, self._table.has_cases
        return Labelled(
            self.items, classes, self.known, notes, by_file, self.by_table, column, has_cases
        )

    def _append(
        self,
        path: str,
        patient: str,
        entry: Entry,
        wanted: bool,
        flaw: tuple[str, bool] | None,
        case: str = "",
    ) -> None:
        number = self._numbers.get(entry.label, -1)
        patient = entry.patient or patient
        item = Item(0, path, patient, number, entry.split, None, entry.line, wanted, flaw)
        self.items.append(replace(item, case=case))


def _blank_patient(line: int, otherwise: str) -> DataError:
    return DataError(
        f"{NAME}, line {line}, column patient: it is empty: fill it, or leave the column out, and "
        f"{otherwise}"
    )


def _by_file(table: LabelTable, files: Sequence[File], root: Path, describe: Describe) -> Labelled:
    join = _Join(table)
    homes = set[str]()  # of slices that have rows of their own
    for file in files:
        relative = os.path.relpath(file.path, root)
        about = next((name for name in _names(relative) if name in table.entries), None)
        if about is None:
            join.unlisted.append(file)
            continue
        join.add(file, about, wanted=about == relative)
        if about == relative and file.is_dicom:
            homes.add(os.path.dirname(file.path))
    spellings = {
        spelling
        for file in join.unlisted
        for name in _names(os.path.relpath(file.path, root))
        for spelling in _spellings(name)
    }
    join.beside([f for f in join.unlisted if f.is_dicom and os.path.dirname(f.path) in homes])
    names = {os.path.basename(file.path) for file in join.unlisted}
    for about in table.entries:
        path = os.path.join(root, about)
        if about in join.used:
            continue
        if os.path.isfile(path):  # a hidden one, or a link
            join.add(describe(path), about, wanted=True)
        elif not os.path.exists(path):
            told = ELSEWHERE if os.path.basename(about) in names else NOT_THERE
            told = OTHER_SPELLING if spellings & _spellings(about) else told
            join.lose(about, path, told)
        elif not any(PurePosixPath(used).is_relative_to(about) for used in join.used):
            join.lose(about, path, EMPTY)
    return join.labelled(by_file=any(item.wanted for item in join.items))


def _by_identifier(table: LabelTable, files: Sequence[File], identify: Identify) -> Labelled:
    """Labels by SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID, AccessionNumber or patient.

    Raises:
        DataError: If no file can say which it is of.
    """
    join = _Join(table)
    if not any(file.is_dicom or (table.by == "patient" and file.patient_known) for file in files):
        mend = "say --patient_regex, or " if table.by == "patient" else ""
        raise DataError(
            f"{NAME}: its rows name each a {table.by}, and there is no DICOM in --source to say "
            f"which file is of which: {mend}name files, in a column file"
        )
    keys = {key(about) for about in table.entries}
    spellings, listed = set[str](), set[str]()
    beside: dict[str, list[File]] = defaultdict(list)
    for file in files:
        names = identify(file.path) if file.is_dicom else {}
        about = names.get(table.by, "")
        if table.by == "patient" and file.patient_known and file.patient:
            about = file.patient
        spellings.add(key(about))
        if about in table.entries:
            join.add(file, about, wanted=table.by == "sop")
            listed.add(names.get("series", ""))
            continue
        if about and key(about) in keys:
            join.misspelled(file)
            continue
        join.unlisted.append(file)
        if table.by == "sop" and about:
            beside[names.get("series", "")].append(file)
    for series in listed & set(beside):
        join.beside(beside[series])
    for about in table.entries:
        if about not in join.used:
            join.lose(about, "", OTHER_SPELLING if key(about) in spellings else NOT_THERE)
    return join.labelled(by_file=table.by == "sop")


def _spellings(name: str) -> set[str]:
    """What other spellings of a file's name share with it, among them those without a suffix."""
    return {key(name), key(_SUFFIX.sub("", name))}


def _names(relative: str) -> Iterator[str]:
    """A path, then the folders it is in, the nearest first."""
    path = PurePosixPath(relative)
    yield str(path)
    yield from map(str, path.parents)
