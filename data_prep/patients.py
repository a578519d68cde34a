"""Who is a patient: from the path of a file, and whether what the files say can be true.

The split is by patient, so that a person who has two names may be in train and in test. What makes
that likely is refused, in one line, until `--patient_by` says what is meant.
"""

import enum
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ctssl_jax.errors import ConfigError, DataError
from data_prep import spelling

# What anonymisers and consoles write where a PatientID was.
# fmt: off
_NOBODY = {
    "anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "removed", "unknown",
    "none", "nobody", "noname", "noid", "patient", "default", "dummy", "test", "xxx", "xxxx",
}
# fmt: on
NO_MATCH = "no patient: --patient_regex does not match"
MOST = 0.5  # share of the studies under one PatientID, beyond which it is no person's
FEW = 4  # studies, among which that says nothing


class PatientBy(enum.Enum):
    """What counts as a patient.

    Attributes:
        AUTO: The PatientID, or what the table or `--patient_regex` says; refused if that cannot be.
        ID: The same as it stands, whatever speaks against it.
        STUDY: Each StudyInstanceUID of DICOM.
        JOINED: As ID, but identifiers that share a study, or differ in spelling, count as one.
    """

    AUTO = "auto"
    ID = "id"
    STUDY = "study"
    JOINED = "joined"


@dataclass(frozen=True)
class PatientFinder:
    """Finds the patient of a file in its path.

    Attributes:
        regex: Searched in the file name and, where it is not found there, in the path relative to
            the source with "/" between folders; the first group is the patient.
        root: The source.
    """

    regex: str
    root: Path

    @classmethod
    def of(cls, regex: str, root: Path) -> "PatientFinder":
        """The finder; raises ConfigError if the expression is not one with a group."""
        try:
            groups = re.compile(regex).groups
        except re.error as error:
            raise ConfigError(f"--patient_regex {regex!r}: {error}") from error
        if regex and not groups:
            raise ConfigError(
                f"--patient_regex {regex!r} has no group; put the patient in brackets"
            )
        return cls(regex, root)

    def own_name(self, path: str) -> str:
        """What stands for the patient of a file where nobody is known: its name."""
        return PurePosixPath(os.path.relpath(path, self.root)).with_suffix("").as_posix()

    def find(self, path: str) -> str:
        """The patient in a path; "" if there is none."""
        in_name, in_path = self._both(path)
        return in_name or in_path

    def require_clear(self, paths: Collection[str]) -> Sequence[str]:
        """Returns what to note about how it finds patients in these paths.

        Raises:
            ConfigError: If it finds none, or one in a file name and another in the folders.
        """
        if not self.regex:
            return []
        found = [self._both(path) for path in paths]
        if found and not any(name or path for name, path in found):
            raise ConfigError(
                f"--patient_regex {self.regex!r} matches no file, neither its name nor its path "
                "relative to --source"
            )
        differing = sum(bool(name and path) and name != path for name, path in found)
        if differing and not self.regex.startswith("^"):
            raise ConfigError(
                f"--patient_regex {self.regex!r} finds one patient in the name and another in the "
                f"folders of {differing} files: say which, as with '^...' for the name or '.../' "
                "for a folder"
            )
        told = f"--patient_regex found the patient in the file name, not the folder, of {differing}"
        notes = [f"{told} files"] if differing else []
        cut = sum(map(self._cuts_number, paths))
        # Numbers that are all cut may have a fixed place for the patient: 00170001.
        if 0 < cut < sum(bool(name or path) for name, path in found):
            notes.append(
                f"--patient_regex takes a part of a number for the patient in {cut} files and the "
                "whole in others, as p1 of p10 and of p1, which are then one: end it with what "
                "follows the number, or ask for all digits by +"
            )
        return notes

    def _both(self, path: str) -> tuple[str, str]:
        name, whole = ((match and match.group(1)) or "" for match in self._matches(path))
        return name, whole

    def _matches(self, path: str) -> list[re.Match[str] | None]:
        """What it finds in the file name, and in the path."""
        relative = PurePosixPath(os.path.relpath(path, self.root)).as_posix()
        texts = (os.path.basename(relative), relative)
        return [re.search(self.regex, text) if self.regex else None for text in texts]

    def _cuts_number(self, path: str) -> bool:
        """Whether the patient that it finds ends with a digit, and another digit follows."""
        match = next((found for found in self._matches(path) if found and found.group(1)), None)
        if match is None:
            return False
        after = match.string[match.end(1) : match.end(1) + 1]
        return match.group(1)[-1].isdecimal() and after.isdecimal()


class Study(NamedTuple):
    """How many files of a study name a patient, and which PatientID they have; "" for none."""

    study: str
    patient: str
    files: int
    patient_id: str = ""


def require_people(
    studies: Sequence[Study], patients: Iterable[str], in_header: bool = True
) -> None:
    """Checks that identifiers can be people, one each.

    Args:
        studies: What files say of their studies; empty if they say nothing.
        patients: All identifiers.
        in_header: Whether they are PatientIDs, and not what the user says.

    Raises:
        DataError: With numbers and what to do, never with an identifier.
    """
    mend = "mend it at the source, or say --patient_by="
    of_study = _of_study(studies)
    several = sum(len(names) > 1 for names in of_study.values())
    if several:
        raise DataError(
            f"{several} of {len(of_study)} studies (StudyInstanceUID) have more than one "
            f"patient: {mend}joined (these are one), study (each study is a patient) or id (as "
            "it stands)"
        )
    shared = _shared(of_study)
    if shared and in_header:
        raise DataError(
            f"{max(shared.values())} of {len(of_study)} studies have the same PatientID: are they "
            "one person? Then say --patient_by=id. Else say --patient_by=study (each study is a "
            "patient) or, with patients in the paths, --patient_regex"
        )
    if parted := _parted(studies):
        raise DataError(
            f"{len(parted)} PatientIDs are each said to be several patients by --labels or "
            f"--patient_regex (one is {max(parted.values())}): leave the column patient, or the "
            "expression, out, and the PatientID counts; or say --patient_by=joined (these are one) "
            "or id (as it stands)"
        )
    if groups := spelling.alike(patients):
        raise DataError(
            f"{len(groups)} patients are named in more than one spelling (case, spaces, hyphens or "
            f"leading zeros): {mend}joined (these are one) or id (as it stands)"
        )


def joined(studies: Sequence[Study], patients: Mapping[str, str]) -> dict[str, str]:
    """Gives identifiers that share a study or PatientID or differ in spelling the first of them.

    Args:
        studies: What files say of their studies.
        patients: Identifier by pseudonym.
    """
    first: dict[str, str] = {}

    def top(name: str) -> str:
        while first.get(name, name) != name:
            name = first[name]
        return name

    groups = [
        *_of_study(studies).values(),
        *_of_patient_id(studies).values(),
        *map(set, spelling.alike(patients.values())),
    ]
    for group in groups:
        tops = sorted({top(name) for name in group})
        first.update(dict.fromkeys(tops, tops[0]))
    return {pseudonym: top(name) for pseudonym, name in patients.items()}


def one_person_with(
    some: Collection[str], studies: Sequence[Study], patients: Mapping[str, str]
) -> frozenset[str]:
    """The pseudonyms of the others who are, `joined`, one person with some.

    Args:
        some: Pseudonyms.
        studies: What files say of their studies.
        patients: Identifier by pseudonym, of all.
    """
    person = joined(studies, patients)
    people = {person[one] for one in some if one in person}
    return frozenset(one for one, name in person.items() if name in people) - frozenset(some)


def _of_study(studies: Sequence[Study]) -> dict[str, set[str]]:
    patients: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        patients[study.study].add(study.patient)
    return patients


def _of_patient_id(studies: Sequence[Study]) -> dict[str, set[str]]:
    """The patients of each PatientID that can be a person's; an anonymiser's word says nothing."""
    ids: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for study in studies:
        if study.patient_id:
            ids[study.study].add(study.patient_id)
            patients[study.patient_id].add(study.patient)
    shared = _shared(ids)
    return {name: names for name, names in patients.items() if name not in shared}


def _parted(studies: Sequence[Study]) -> dict[str, int]:
    """How many patients are made of one PatientID, of each that is more than one."""
    counts = {name: len(names) for name, names in _of_patient_id(studies).items()}
    return {name: number for name, number in counts.items() if number > 1}


def _shared(of_study: Mapping[str, Collection[str]]) -> dict[str, int]:
    """How many studies have a name, of each that more have than can be one person's."""
    counts = Counter(name for names in of_study.values() for name in names)
    few, nobody = max(FEW, MOST * len(of_study)), nobodies(counts)
    return {
        name: number
        for name, number in counts.items()
        if number > few or (number > 2 and len(counts) == 1) or (number > 1 and name in nobody)
    }


def nobodies(names: Iterable[str]) -> frozenset[str]:
    """The names that are nobody's: a word for none, no letter or digit, or zeros alone.

    Where others are small numbers, patients are numbered from 0.
    """
    keys = {name: spelling.key(name) for name in names}
    numbered = any(re.fullmatch(r"[1-9]\d{0,2}", plain) for plain in keys.values())
    empty = _NOBODY if numbered else _NOBODY | {"0"}
    return frozenset(
        name
        for name, plain in keys.items()
        if plain in empty or spelling.is_missing(name) or not any(map(str.isalnum, plain))
    )
