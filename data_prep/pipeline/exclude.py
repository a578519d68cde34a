"""Patients of other datasets are left out: `--exclude_patients_of=DATASET[,DATASET...]`.

For pre-training on scans of a hospital whose labelled patients are to be tested on. A dataset holds
pseudonyms alone, so both must be prepared with one key. A name that is spelled otherwise has
another pseudonym: the usual spellings of each name are tried (`spelling.respelled`). What is under
another name is told by its pictures, as the audit tells it. All patients of the dataset are left
out, not those of its test split alone: so it may be split again.
"""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax.dataset.leaks import shared
from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.dataset.signatures import Signatures, load_signatures
from ctssl_jax.errors import DataError
from data_prep.patients import PatientBy
from data_prep.pipeline.records import key_mark, pseudonym
from data_prep.source import Source
from data_prep.spelling import respelled


@dataclasses.dataclass(frozen=True, eq=False)
class Excluded:
    """Who is left out.

    Attributes:
        datasets: Name and fingerprint of each dataset.
        signatures: Of all their slices.
        patients: The pseudonyms of their patients.
    """

    datasets: tuple[dict[str, str], ...]
    signatures: Signatures
    patients: frozenset[str]

    def alike(self, signatures: Signatures) -> frozenset[str]:
        """The pseudonyms of patients who have an equal or nearly equal slice in the datasets."""
        found = shared(self.signatures, signatures)
        rows = np.concatenate([found[check].right for check in ("series", "exact", "near")])
        return frozenset(name.decode() for name in np.unique(signatures.patient[rows]))

    def summary(self, by_name: int, by_content: int, otherwise: int = 0) -> dict[str, Any]:
        """What the manifest says of it; `otherwise` of those by name are spelled in another way."""
        spelled = {"patients_spelled_otherwise": otherwise} if otherwise else {}
        return {
            "datasets": list(self.datasets),
            "patients_by_name": by_name,
            **spelled,
            "patients_by_content": by_content,
        }


class ByName:
    """Tells who of a source is among the excluded, by the pseudonyms of their names.

    Args:
        excluded: Pseudonyms.
        key: Of the pseudonyms.
        source: Whose patients they are; where it does not know them, their names say nothing.
        patient_by: What counts as a patient; by `id`, another spelling is another patient.

    Attributes:
        found: The pseudonyms, in the source's spelling, of those that were.
    """

    def __init__(
        self,
        excluded: Collection[str],
        key: bytes,
        source: Source,
        patient_by: PatientBy = PatientBy.AUTO,
    ):
        self._excluded, self._key = frozenset(excluded), key
        facts = source.facts()
        known = facts["patients_known"] or facts.get("patients_from") == "header"
        self._any_spelling = known and patient_by in (PatientBy.AUTO, PatientBy.JOINED)
        self._known: dict[str, bool] = {}
        self.found = set[str]()

    def __contains__(self, patient: object) -> bool:
        assert isinstance(patient, str)
        if patient not in self._known:
            self._known[patient] = self._is_excluded(patient)
        return self._known[patient]

    @property
    def otherwise(self) -> int:
        """How many of them are spelled in another way than there."""
        return len(self.found - self._excluded)

    def _is_excluded(self, patient: str) -> bool:
        if not self._excluded:
            return False
        own = pseudonym(self._key, patient)
        others = respelled(patient) if self._any_spelling else ()
        is_one = own in self._excluded or any(
            pseudonym(self._key, other) in self._excluded for other in others
        )
        if is_one:
            self.found.add(own)
        return is_one


def load_excluded(folders: Sequence[Path], key: bytes) -> Excluded:
    """Reads who is to be left out.

    Args:
        folders: The datasets.
        key: Of the pseudonyms of the set that is prepared.

    Raises:
        DataError: If a dataset cannot be read, or its pseudonyms are of another key.
    """
    datasets, signatures = [], []
    for folder in folders:
        manifest = read_manifest(folder)
        mark = manifest.get("key")
        if mark != key_mark(key):
            why = (
                "does not say with which key it was prepared"
                if mark is None
                else ("was prepared with another key")
            )
            raise DataError(
                f"--exclude_patients_of={folder}: it {why}, so that its patients cannot be told: "
                "give both the same --key, and prepare that one again"
            )
        for split, content in manifest["splits"].items():
            if content["slices"]:
                signatures.append(load_signatures(folder, split))
        datasets.append({key: manifest[key] for key in ("name", "fingerprint")})
    every = Signatures.concatenate(signatures)
    patients = frozenset(name.decode() for name in np.unique(every.patient))
    return Excluded(tuple(datasets), every, patients)
