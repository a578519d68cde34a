"""A plan from flags to files: curves of probes and of fine-tunings, their page, JSON and CSV."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax import data
from ctssl_jax.dataset.cases import SLICE, case_word, plural
from ctssl_jax.errors import DataError, StorageError
from ctssl_jax.files import make_private, sealed, write_json, write_text
from ctssl_jax.frozen import nested
from ctssl_jax.log import duration
from ctssl_jax.report import require_installed
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.plan import write_plan
from ctssl_jax.report.runs import find_runs
from ctssl_jax.report.sections.annotations import (
    Annotations,
    Start,
    lead_sentence,
    needed_words,
    of_task,
    planned,
    table,
)
from ctssl_jax.report.words import section_titles
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage
from ctssl_jax.statistics.learning_curve import Curve
from launch.plan.starts import ACCEPT_LEAKAGE, case_features, fold_of_cases, starts_of

FEATURES = "features"


def plan(flags: argparse.Namespace) -> None:
    """Makes the plan that the flags of the command ask for.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    require_installed()
    plans, facts = list[Annotations](), list[tuple[str, str]]()
    if flags.data:
        found, told = of_probes(flags)
        plans.append(found)
        facts += told
    if flags.sweeps:
        plans += of_sweeps(flags.sweeps, flags.target)
    if all(start.refused for found in plans for start in found.starts):
        raise DataError(f"nothing is foretold: {plans[0].starts[0].refused}")
    for found in plans:
        marked = [f"MARKED: {found.warning}"] if found.warning else []
        for said in (*marked, lead_sentence(found), *found.sentences(), *_needs(found)):
            print(f"{found.title}: {said}", flush=True)
    write(plans, facts, flags.workdir)
    print(f"{flags.workdir}/plan.html")


def of_probes(flags: argparse.Namespace) -> tuple[Annotations, list[tuple[str, str]]]:
    """The curves of probes of every encoder, and how they were made."""
    began, dataset = time.monotonic(), data.open_dataset(flags.data)
    audit = leakage.require_audit(dataset, flags.accept_leakage, ACCEPT_LEAKAGE)
    starts = starts_of(
        dataset, flags.encoders, flags.size, flags.accept_leakage, flags.accept_unfinished
    )
    data.require_labels(dataset, *starts[0].config.data.split.split("+"))
    folds, arms = fold_of_cases(dataset), dict[str, list[Curve]]()
    make_private(flags.workdir)
    for start in starts:
        features = case_features(start, dataset, flags.workdir / FEATURES)
        nested.require_enough(features, dataset.classes)
        sizes = nested.sizes_of(features, folds)
        curve = nested.probe_curve(
            features, folds, sizes, len(dataset.classes), flags.orders, flags.seed
        )
        arms.setdefault(start.arm, []).append(curve)
        shown = ", ".join(
            f"{mean:.3f} with {size:.0f}"
            for size, mean in zip(curve.sizes, curve.values.mean(axis=0), strict=True)
        )
        print(f"{start.arm}: AUC {shown} patients", flush=True)
    word, cases = case_word(dataset.manifest), len(features.labels)
    patients = len(np.unique(features.patients))
    alone = word != SLICE and cases == patients
    each = "" if alone or cases == patients else f"{cases / patients:.1f} {plural(word)} each"
    unit = plural(word) if alone else "patients"
    found = planned(flags.name or dataset.name, unit, each, arms, flags.target)
    marks = ["the splits leak"] if audit["verdict"] == "fail" else []
    marks += [start.warning for start in starts if start.warning]
    found = dataclasses.replace(found, warning="; ".join(dict.fromkeys(marks)))
    facts = [
        ("Probes", f"logistic regression, C = {nested.PENALTY:g}, on whole slices"),
        ("Training sizes", ", ".join(map(str, sizes))),
        ("Orders of the patients", str(flags.orders)),
        ("Seed", str(flags.seed)),
        ("Data", dataset.fingerprint[:12]),
        ("Code", run_folder.code_commit() or "not known"),
        ("Took", duration(time.monotonic() - began)),
    ]
    return found, facts


def of_sweeps(places: Sequence[str], targets: Sequence[float]) -> list[Annotations]:
    """The curves of finished fine-tunings, one section for each task; `targets` are AUC to reach.

    Raises:
      DataError: there is no run, or no task with three training sizes of known patients.
    """
    tasks = compare(find_runs(places)).tasks
    titles = section_titles(tasks)
    found = [
        of
        for place, (task, title) in enumerate(zip(tasks, titles, strict=True), start=1)
        if (of := of_task(task, title, place, targets))
    ]
    if not found:
        raise DataError(
            f"--sweeps={','.join(places)}: no start has finished runs at three training sizes of a "
            "split whose patients data.json counts: sweep more, as with --config.counts=8,16,32"
        )
    return found


def _needs(found: Annotations) -> list[str]:
    """What every target wants of every start."""
    return [
        f"AUC {answer.target:g} from {start.name}: {needed_words(found, answer)}"
        for start in found.starts
        for answer in start.needed
    ]


def write(plans: Sequence[Annotations], facts: Sequence[tuple[str, str]], out: Path) -> None:
    """Writes the plan's files.

    Raises:
      ConfigError: another process writes there.
      StorageError: they cannot be written.
    """
    write_plan(plans, facts, out)
    try:
        write_json(out / "plan.json", sealed({"plans": [record(found) for found in plans]}))
        lines = [table(found.starts).splitlines() for found in plans]
        text = [f"task,{lines[0][0]}"]
        for number, own in enumerate(lines, start=1):
            text += [f"{number},{line}" for line in own[1:]]
        write_text(out / "plan.csv", "\n".join(text) + "\n")
    except OSError as error:
        raise StorageError(f"--workdir: {out} cannot be written ({error.strerror})") from None


def record(found: Annotations) -> dict[str, Any]:
    """A plan as JSON: numbers beyond reach are null."""
    return {
        "title": found.title,
        "unit": found.unit,
        "patients": found.patients,
        "reach": found.reach,
        "reference": found.reference,
        "warning": found.warning,
        "lead": lead_sentence(found),
        "starts": [_start(start) for start in found.starts],
    }


def _start(start: Start) -> dict[str, Any]:
    return {
        "start": start.arm,
        "encoders": start.encoders,
        "sizes": start.curves[0].sizes.tolist(),
        "auc": start.means.tolist(),
        "refused": start.refused,
        "brings": [_plain(each) for each in start.brings],
        "needed": [_plain(each) for each in start.needed],
        "saves": _plain(start.saves) if start.saves else None,
    }


def _plain(answer: Any) -> Any:
    """An answer as JSON has it."""
    if hasattr(answer, "_asdict"):
        return {name: _plain(value) for name, value in answer._asdict().items()}
    return answer if not isinstance(answer, float) or isfinite(answer) else None
