"""From a source to a dataset folder, on any number of cores, and again after a kill.

1. scan    each item's unit and patient, from its header            -> an index that leaves no trace
2. read    each unit's slices                                       -> parts (`parts`)
3. plan    patients to splits, parts to shards
4. write   shards, signatures, statistics, quality report, manifest -> the dataset folder

Steps 2 and 4 are done by a runner (`runners`). What is finished stays in a work folder beside the
dataset, `.NAME.work`, until the dataset is complete: the same command goes on where an earlier one
was killed, and the result is the same, byte for byte. The dataset folder is whole or absent.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ctssl_jax.dataset.matching import Name
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import sealed, write_json
from data_prep import audit, names
from data_prep.cases import Case, CaseOf
from data_prep.patients import PatientBy, joined, one_person_with
from data_prep.pipeline import gate
from data_prep.pipeline.assemble import Manifest, assemble, write
from data_prep.pipeline.exclude import ByName, Excluded
from data_prep.pipeline.index import Index
from data_prep.pipeline.join_duplicates import join_duplicates
from data_prep.pipeline.parts import Parts, units
from data_prep.pipeline.plan import make_plan
from data_prep.pipeline.progress import Progress
from data_prep.pipeline.quality import Quality, write_report
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.runners import Beam, GaveUp, Inline, Pool, Runner
from data_prep.pipeline.scan import scan
from data_prep.pipeline.work import (
    Context,
    Unit,
    finished,
    read_unit,
    reject_unit,
)
from data_prep.source import (
    Rejected,
    Source,
    Unusable,
)


def prepare(
    source: Source,
    out: str | Path,
    *,
    key: bytes,
    fractions: Mapping[str, float],
    seed: int = 0,
    canvas: int = 0,
    join: bool = False,
    workers: int = 0,
    max_rejected: float = 1.0,
    beam: str | None = None,
    show_paths: bool = False,
    show_cases: bool = False,
    excluded: Excluded | None = None,
    not_duplicates: Collection[Name] = (),
    patient_by: PatientBy = PatientBy.AUTO,
) -> Manifest:
    """Writes one dataset folder and returns its manifest.

    Args:
        source: What to read.
        out: The folder to make; it must not exist or must be empty.
        key: Secret key of the pseudonyms.
        fractions: Share of the patients of each split, for what the source leaves open.
        seed: Of that split.
        canvas: Pixels a side to which larger slices are reduced; 0: stored as they are.
        join: Whether patients who share equal or nearly equal slices count as one for the split.
        workers: Number of processes; 0: this one.
        max_rejected: Largest share of images that may be damaged or irregular, as a fraction.
        beam: Options of an Apache Beam pipeline that does the work of steps 2 and 4.
        show_paths: Whether to print the paths of what was rejected.
        show_cases: Whether to print where each case is.
        excluded: Whose patients are left out.
        not_duplicates: Pairs of slices that the audit is not to count; see `not_duplicates`.
        patient_by: What counts as a patient.

    Raises:
        DataError: If `out` is taken, there is no slice, a class or split would be empty, patients
            cannot be what they are said to be, or too much was rejected; then the quality report
            is in the folder `OUT.rejected`.
        StorageError: If the disk refuses.
    """
    out = Path(out)
    refuse_taken(out)
    local: Runner = Pool(workers) if workers else Inline()
    runner = Beam(beam) if beam is not None else local
    with _work_folder(out) as work, closing(Index()) as index:
        context = Context(source, key, work, canvas)
        named = ByName(excluded.patients if excluded else (), key, source, patient_by)
        scan(context, local, index, named)
        known, told = gate.require_people(source, index.studies(), index.everyone(), patient_by)
        _read(context, runner, index)
        parts = Parts(context, index)
        alike, known_as = frozenset[str](), frozenset[str]()
        if excluded:
            alike = excluded.alike(parts.signatures()) if parts.slices else alike
            if patient_by is PatientBy.JOINED:
                everyone = {pseudonym(key, name): name for name in index.everyone()}
                known_as = one_person_with(named.found | alike, index.studies(), everyone)
            parts.leave_out(alike | known_as)
        quality = _require_quality(context, parts, index, out, max_rejected, show_paths)
        if show_cases:
            for case, path in parts.places():
                print(f"case {case}: {names.shown(path)}")
        patients = index.patients(key)
        if patient_by is PatientBy.JOINED:
            patients = joined(index.studies(), patients)
        if join:
            patients = join_duplicates(
                parts.signatures(), parts, patients, fractions, seed, not_duplicates
            )
        if join or patient_by is PatientBy.JOINED:
            apart = len(set(patients.values()))
            told.append(f"{len(patients)} patients, {apart} of them told apart")
        plan = make_plan(parts, patients, fractions, seed)
        write(context, runner, plan)
        folder = work / "dataset"
        manifest = assemble(context, plan, folder)
        manifest.update(quality.summary(), split={"fractions": dict(fractions), "seed": seed})
        manifest.update(
            {"case": Case(CaseOf.SERIES if manifest["cases"] else CaseOf.SLICE).told()}
            | dict(source.facts()),
            patients_known=known,
            labels_of=gate.labels_of(source, parts),
            options=dict(source.options()),
        )
        if excluded:
            manifest["excluded_patients"] = excluded.summary(
                len(named.found) + len(known_as), len(alike), named.otherwise
            )
        if notes := [*source.notes(), *told]:
            manifest["note"] = "; ".join(notes)
        write_json(folder / "manifest.json", sealed(manifest))
        _report(folder, quality, parts, index)
        audit.audit(folder, apart=not_duplicates)
        shutil.rmtree(_refused(out), ignore_errors=True)
        # The name comes last: whoever is killed before has no dataset, and begins again.
        os.replace(folder, _beside(out, "ready"))
        os.replace(work, _beside(out, "old"))
        shutil.rmtree(_beside(out, "old"))
        os.replace(_beside(out, "ready"), out)
    return manifest


def _refused(out: Path) -> Path:
    """Where the quality report of a refused preparation is."""
    return out.absolute().parent / f"{out.name}.rejected"


def refuse_taken(out: Path, flag: str = "--out") -> None:
    """Raises DataError if `out` is there already and holds anything."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        # Left by a try that was killed just after the dataset was complete.
        shutil.rmtree(_work(out), ignore_errors=True)
        raise DataError(f"{flag} {out} exists and is not empty: delete it or choose another")


def _work(out: Path) -> Path:
    return _beside(out, "work")


def _beside(out: Path, what: str) -> Path:
    return out.absolute().parent / f".{out.name}.{what}"


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """The folder of what is finished; one process at a time works in it."""
    work = _work(out)
    try:
        for folder in (work, work / "parts", work / "shards"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"--out {out}: another preparation is writing it") from error
            for leftover in work.rglob("*.tmp"):
                leftover.unlink()
            for killed in ("ready", "old"):
                shutil.rmtree(_beside(out, killed), ignore_errors=True)
            yield work
    except OSError as error:
        raise StorageError(f"cannot write --out {out}: {error.strerror or 'I/O error'}") from error


def _read(context: Context, runner: Runner, index: Index) -> None:
    """Makes the parts that are not finished."""
    progress = Progress("files", index.items)

    def missing() -> Iterator[Unit]:
        for unit in units(context, index):
            if finished(context, unit.part) is None:
                yield unit
            else:
                progress.skip(len(unit.items))

    for unit, slices in runner.run(read_unit, context, missing()):
        if isinstance(slices, GaveUp):
            reject_unit(context, unit, Unusable(slices.reason))
            slices = 0
        progress.step(len(unit.items), slices or 0)


def _require_quality(
    context: Context, parts: Parts, index: Index, out: Path, limit: float, show_paths: bool
) -> Quality:
    """The quality of what was read.

    Raises:
        DataError: If there is no slice, or of a class none, or more than the limit is rejected; the
            report is written.
    """
    quality = gate.measure(context.source, parts, index, limit)
    if show_paths:
        for rejected in _rejected(parts, index):
            path = names.shown(index.path(rejected.number))
            print(f"file {rejected.number}: {rejected.reason}: {path}")
    if why := gate.refusal(quality, context.source, _refused(out)):
        _refused(out).mkdir(exist_ok=True)
        _report(_refused(out), quality, parts, index)
        raise DataError(why)
    return quality


def _report(folder: Path, quality: Quality, parts: Parts, index: Index) -> None:
    write_report(folder, quality, _rejected(parts, index), parts.tiles(quality.findings))


def _rejected(parts: Parts, index: Index) -> Iterator[Rejected]:
    yield from index.rejected()
    for _, part in parts:
        yield from part.rejected
