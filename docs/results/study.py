"""The tables of the second study, from its runs or from what was published of them.

    python docs/results/study.py RUNS [RUNS ...] --out=docs/results/second

RUNS: folders of run folders. Writes OUT.csv, a row for each number, and prints the same. The
questions that the plan calls primary are corrected by Holm together; everything else is
exploratory, each task's comparisons with its baseline corrected as in the report.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task, compare
from ctssl_jax.report.comparison.pairs import Answer
from ctssl_jax.report.names import RANDOM
from ctssl_jax.report.runs import Run, find_runs, frozen_features
from ctssl_jax.statistics import Interval, holm

PRIMARY = ("organs", "nodules", "head", "ich")
CONTRASTIVE = ("moco", "byol", "swav")
COLUMNS = (
    *("task", "question", "start", "annotated_patients", "pretrainings", "runs"),
    *("estimate", "low", "high", "p_holm", "verdict"),
)


def main() -> None:
    """Reads, compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--out", required=True, metavar="FILE", help="without .csv")
    asked = parser.parse_args()
    runs = find_runs(asked.runs)
    tuned = compare(runs).tasks
    evaluated = [run for run in runs if run.kind == "evaluation"]
    frozen = compare([frozen_features(run, "linear") for run in evaluated], RANDOM).tasks
    left_out(runs)
    rows = list(primary(tuned))
    for task in (*tuned, *frozen):
        rows += [row for cell in task.cells for row in of_cell(task, cell)]
    with Path(f"{asked.out}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        print("|", " | ".join(row[name] for name in COLUMNS), "|")


def left_out(runs: list[Run]) -> None:
    """Says which runs do not count, and why."""
    for run in runs:
        if run.problem and run.kind != "pre-training":
            print(f"left out: {run.folder.name}: {run.problem}")


def primary(tasks: list[Task]) -> Iterator[dict[str, str]]:
    """The three questions of the plan, of each task that can answer them."""
    asked: list[tuple[dict[str, str], Answer]] = []
    for task in tasks:
        if task.name not in PRIMARY:
            continue
        smallest = min(cell.fraction for cell in task.cells)
        pairs = {(pair.a, pair.b): pair for pair in task.pairs if pair.fraction == smallest}
        size = patients(next(cell for cell in task.cells if cell.fraction == smallest))
        if pair := pairs.get(("spark", "scratch")):
            row = {"question": "SparK - scratch, smallest size", "annotated_patients": size}
            asked.append(({"task": task.name, "start": "spark", **row}, pair.answer))
        if (best := best_contrastive(task, smallest)) and ("spark", best) in pairs:
            row = {"question": f"SparK - {best}, smallest size", "annotated_patients": size}
            asked.append(
                ({"task": task.name, "start": "spark", **row}, pairs["spark", best].answer)
            )
        for claim in task.robustness.claims if task.robustness else ():
            if claim.b == "scratch":
                row = {"question": "change of SparK - scratch, largest to smallest"}
                asked.append(({"task": task.name, "start": "spark", **row}, claim.answer))
    for (row, answer), p in zip(asked, holm(np.array([of.p for _, of in asked])), strict=True):
        found = answer.difference
        apart = p < 0.05 and (found.low > 0 or found.high < 0)
        verdict = ("higher" if found.estimate > 0 else "lower") if apart else "cannot tell"
        yield whole(row | numbers(found) | {"p_holm": f"{p:.3f}", "verdict": verdict})


def best_contrastive(task: Task, smallest: float) -> str:
    """The contrastive arm of the best mean validation AUC at the smallest size; "" of none."""
    means = {
        cell.arm: np.mean([part.results["val"]["auc"] for run in cell.runs for part in run.parts()])
        for cell in task.cells
        if cell.fraction == smallest and cell.arm in CONTRASTIVE
    }
    return max(means, key=means.__getitem__) if means else ""


def of_cell(task: Task, cell: Cell) -> Iterator[dict[str, str]]:
    """AUC of a start at a size, and its difference to the baseline."""
    shared = {
        **{"task": task.name, "start": cell.arm, "annotated_patients": patients(cell)},
        **{"pretrainings": str(cell.pretrainings), "runs": str(len(cell.runs))},
    }
    yield whole(shared | {"question": "AUC"} | numbers(cell.interval("auc")))
    if cell.pair:
        found, p = cell.pair.difference, cell.pair.adjusted
        verdict = {"A higher": "higher", "B higher": "lower"}.get(found.verdict, found.verdict)
        said = {"question": f"minus {cell.pair.b}", "p_holm": f"{p:.3f}", "verdict": verdict}
        yield whole(shared | numbers(found) | said)


def patients(cell: Cell) -> str:
    """How many patients, or scans, were learnt from: the fewest and the most of the runs."""
    sizes = cell.sizes("patients")
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def numbers(found: Interval) -> dict[str, str]:
    """An estimate with the ends of its 95 % interval."""
    return {name: f"{getattr(found, name):+.4f}" for name in ("estimate", "low", "high")}


def whole(row: dict[str, str]) -> dict[str, str]:
    """With every column."""
    return {name: row.get(name, "") for name in COLUMNS}


if __name__ == "__main__":
    main()
