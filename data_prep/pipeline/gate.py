"""What must be true of what was read before it becomes a dataset.

Patients that can be people; slices, and some of each class; no more lost than the user allows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep import patients
from data_prep.patients import PatientBy, Study
from data_prep.pipeline import losses
from data_prep.pipeline.index import Index
from data_prep.pipeline.quality import Quality
from data_prep.pipeline.work import Part
from data_prep.readers.dicom_file import NOT_DICOM
from data_prep.readers.volume_header import NO_VOLUME
from data_prep.source import COPY_OF_OTHER_LABEL, Source


def require_people(
    source: Source, found: Sequence[Study], names: Iterable[str], by: PatientBy
) -> tuple[bool, list[str]]:
    """Whether the patients are known, and what to note; raises as `patients.require_people`.

    Args:
        source: What the patients are of.
        found: What files say of their studies.
        names: All patients, as in the source.
        by: What counts as a patient.
    """
    facts = source.facts()
    known = bool(facts["patients_known"])
    in_header = facts.get("patients_from") == "header"  # of DICOM, if not of all that is there
    if by is PatientBy.AUTO and (known or in_header):
        people = names if known else {study.patient for study in found}
        patients.require_people(found, people, in_header)
    if by is PatientBy.STUDY:
        return False, ["each study counts as a patient (--patient_by=study)"]
    nameless = len({study.study for study in found if study.study == study.patient})
    if not nameless:
        return known, []
    return False, [f"{nameless} studies have no PatientID: each counts as a patient"]


def labels_of(source: Source, parts: Iterable[tuple[str, Part]]) -> str:
    """Whether labels are of a "scan" or of a "slice"; "" without labels."""
    if not source.classes:
        return ""
    told = source.facts().get("labels_of")
    if told is None:
        differ = any(len(group.labels) > 1 for _, part in parts for group in part.groups)
        told = "slice" if differ else "scan"
    return str(told)


def measure(
    source: Source, parts: Iterable[tuple[str, Part]], index: Index, limit: float
) -> Quality:
    """Counts what was kept, rejected and lost; `limit` is what the user allows, as a fraction."""
    quality = Quality(limit)
    for rejected in index.rejected():
        quality.reject(rejected)
    for _, part in parts:
        quality.add(part)
    if source.classes:
        known = bool(source.facts()["patients_known"])
        quality.losses = losses.count(index, parts, source.kind, known)
    return quality


def nothing_found(reasons: Counter[str]) -> str:
    """The line for a source without a slice; `reasons` are why its files were left out."""
    worst = reasons.most_common(5)
    why = "; ".join(f"{count:,} x {reason}" for reason, count in worst) or "it holds no files"
    other = reasons.keys() & {NOT_DICOM, NO_VOLUME}
    mend = ": `python -m data_prep.folder` reads images too, and DICOM beside volumes"
    return f"no CT slices found in --source ({why}){mend if other else ''}"


def refusal(quality: Quality, source: Source, folder: Path) -> str:
    """Why there is no dataset, in one line; "" if there is one.

    Args:
        quality: Of what was read.
        source: Of what it was read.
        folder: Where the report will be.
    """
    if why := contradictions(quality.faults):
        return f"{why} (see {folder})"
    if not quality.kept:
        return nothing_found(quality.faults + quality.unwanted)
    worst = ", ".join(
        f"{count} x {reason}"
        for reason, count in (quality.faults or quality.unwanted).most_common(3)
    )
    beyond = (
        f"({worst}), more than --max_rejected={quality.limit:g}: see {folder}, and repeat the "
        "command with a higher limit if that is right"
    )
    if quality.share > quality.limit:
        return f"{quality.share:.1%} of the images were rejected {beyond}"
    if over := quality.losses.over(quality.limit):
        return f"nothing is left of {over} {beyond}"
    if why := empty_classes(source, map(int, quality.labels)):
        return f"{why} (see {folder})"
    return ""


def contradictions(faults: Counter[str]) -> str:
    """How many files have two labels, as copies do in two classes; "" if none. No limit helps."""
    number = faults[COPY_OF_OTHER_LABEL]
    if not number:
        return ""
    return (
        f"{number} files are copies of others that have another label: leave one of each two out "
        "(--show_paths prints where they are)"
    )


def empty_classes(source: Source, labels: Iterable[int]) -> str:
    """Which classes have no slice, in one line; "" if each has one.

    Args:
        source: Of which a part may lack a class where it has classes of its own, which is no fault.
        labels: Those of the slices, -1 for none.
    """
    found = set(labels) - {-1}
    empty = [repr(name) for number, name in enumerate(source.classes) if number not in found]
    if source.name != "folder" or not empty or not found:
        return ""
    return (
        f"no slice is left of the class {' and '.join(empty)}: leave what is no class out of "
        "--source or --labels"
    )
