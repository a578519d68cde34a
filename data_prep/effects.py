"""Which flags have an effect on which sources: one that would do nothing is an error.

Who gives a flag counts on it. Each flag of the commands has its line in `EFFECTS`.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ctssl_jax.errors import ConfigError
from data_prep.patients import PatientBy
from data_prep.source import Source


@dataclass(frozen=True)
class Situation:
    """What a flag's effect depends on.

    Attributes:
        source: As the flags made it.
        args: All flags.
        fractions: Share of the patients of each split.
    """

    source: Source
    args: argparse.Namespace
    fractions: Mapping[str, float]

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What is in the source: "dicom", "volume", "image", "npz", "phantom"."""
        return frozenset(self.source.kind.split("+"))

    @cached_property
    def has_splits(self) -> bool:
        """Whether the source itself says what is train, val or test."""
        return any(item.split for item in self.source.items())

    @property
    def is_split(self) -> bool:
        """Whether there is more than one split to assign patients to."""
        return sum(share > 0 for share in self.fractions.values()) > 1


Effect = Callable[[Situation], str]  # why there is none; "" if there is one


def _always(_: Situation) -> str:
    return ""


def _of(*kinds: str) -> Effect:
    """An effect on these kinds of source alone."""

    def effect(now: Situation) -> str:
        if now.kinds & set(kinds):
            return ""
        return f"no effect, since there is no {' or '.join(kinds)} in the source: leave it out"

    return effect


def _on_splits(now: Situation) -> str:
    if not now.has_splits:
        return ""
    if "split_by" in now.args:
        return "the source has splits of its own: give --split_by=patient"
    column = getattr(now.args, "labels", "") != "folder"
    mend = "leave the column `split` out of --labels" if column else "take its folders apart"
    return f"the source has splits of its own: {mend}"


def _on_several_splits(now: Situation) -> str:
    if found := _on_splits(now):
        return found
    return "" if now.is_split else "no effect, since all patients go into one split: leave it out"


def _seed(now: Situation) -> str:
    return "" if "phantom" in now.kinds else _on_several_splits(now)


def _values(now: Situation) -> str:
    if getattr(now.args, "hu_offset", None) is not None:
        return _of("dicom", "volume", "image")(now)
    if "image" in now.kinds and not now.kinds & {"dicom", "volume"}:
        return "images are HU with --hu_offset alone: leave it out"
    return _of("dicom", "volume")(now)


def _exclude(now: Situation) -> str:
    named = any(name for name in now.args.exclude_patients_of.split(","))
    return "" if named else "it names no dataset: leave it out"


def _patient_by(now: Situation) -> str:
    by = PatientBy(now.args.patient_by)
    if by is PatientBy.STUDY:
        if getattr(now.args, "patient_regex", ""):
            return "no effect, since --patient_regex says who is a patient: leave one of them out"
        return _of("dicom")(now)
    known = "dicom" in now.kinds or now.source.facts()["patients_known"]
    if known or by is PatientBy.AUTO:
        return ""
    return "no effect, since the source names no patients: leave it out"


EFFECTS: Mapping[str, Effect] = {
    "beam": _always,
    "canvas": _always,
    "case": _always,  # `cases.require_possible` sees to it
    "case_name": _always,
    "dicom": _always,  # of data_prep.phantom
    "dry_run": _always,
    "exclude_patients_of": _exclude,
    "folds": _on_splits,
    "format": _always,
    "irregular": _of("dicom", "volume"),
    "join_duplicates": _on_several_splits,
    "hu_offset": _of("image"),
    "key": _always,
    "labels": _always,
    "lesion_slices": _always,
    "max_rejected": _always,
    "md5": _always,
    "nodules": _always,  # `phantom.source.make_source` sees to it
    "not_duplicates": _always,
    "out": _always,
    "patient_by": _patient_by,
    "patient_regex": _always,  # `PatientFinder.require_clear` and `folder` see to it
    "patients": _always,
    "positive": _always,  # `labels.with_positive` sees to it
    "seed": _seed,
    "series": _always,
    "show_cases": _always,
    "show_pairs": _always,
    "show_paths": _always,
    "size": _always,
    "slice_labels": _always,  # `slice_labels.join` sees to it
    "slices": _always,
    "source": _always,
    "split_by": _always,
    "test_fraction": _on_splits,
    "val_fraction": _on_splits,
    "values": _values,
    "workers": _always,
}


def require_effects(argv: Iterable[str], now: Situation) -> None:
    """Raises ConfigError for the first flag on the command line that would have no effect."""
    for word in argv:
        name = word.removeprefix("--").partition("=")[0]
        effect = EFFECTS.get(name, _always)  # a test sees to it that all are there
        if word.startswith("--") and (why := effect(now)):
            raise ConfigError(f"{word}: {why}")
