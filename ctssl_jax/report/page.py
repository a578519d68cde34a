"""The page: numbers and pictures put into words and into `page.html`.

Everything that comes from a run passes through Jinja's escaping. Of a configuration and an
environment only named keys are shown, since the rest may hold paths or names.
"""

from base64 import b64encode
from collections.abc import Iterable
from typing import Any

import numpy as np

from ctssl_jax.report import words
from ctssl_jax.report.comparison.compare import RESAMPLES, Comparison
from ctssl_jax.report.comparison.folds import fold_of
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.runs import OPERATING, Run, is_number
from ctssl_jax.report.sections import annotations, findings
from ctssl_jax.report.sections.data_card import data_cards
from ctssl_jax.report.sections.deviations import deviations
from ctssl_jax.report.sections.external import ExternalTest
from ctssl_jax.report.sections.lead import leads
from ctssl_jax.report.sections.neighbours import Neighbours, encoder_name
from ctssl_jax.report.sections.pretraining import Pretraining
from ctssl_jax.report.sections.study import TaskPictures
from ctssl_jax.report.words import count, percent, section_titles, short, three_digits

FILTERS = (
    "ahead",
    "annotated",
    "cell_leakage",
    "cell_levels",
    "cell_stands_on",
    "count",
    "cross_validation",
    "interval",
    "levels",
    "number",
    "patients",
    "percent",
    "runs_range",
    "short",
    "signed",
    "signed_interval",
    "sizes",
    "slice_labels",
    "tested",
    "trained_on",
    "training_sizes",
    "tuning",
)
"""Functions of `words` that the templates use."""
ENVIRONMENT = {
    "precision": "Precision",
    "process_count": "Processes",
    "python": "Python",
    "ctssl_jax": "ctssl_jax",
    "jax": "JAX",
    "jaxlib": "jaxlib",
    "flax": "Flax",
    "optax": "Optax",
    "orbax-checkpoint": "Orbax",
    "grain": "Grain",
    "numpy": "NumPy",
}
"""What of a run's env.json is shown, and as what."""


def templates() -> Any:
    """Jinja's environment: the templates of this package, with what every page uses."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ctssl_jax.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        uri=lambda data: f"data:image/png;base64,{b64encode(data).decode()}",
        **{name: getattr(words, name) for name in FILTERS},
        arm=arm_name,
    )
    environment.globals.update(
        lead_sentence=annotations.lead_sentence,
        needed_words=annotations.needed_words,
        mores=annotations.MORE,
    )
    return environment


def render(
    comparison: Comparison,
    pictures: list[TaskPictures],
    pretraining: list[Pretraining],
    neighbours: list[Neighbours],
    external: list[ExternalTest],
) -> str:
    """The whole page as HTML; `pictures` are one for each task of the comparison."""
    tasks, runs = comparison.tasks, comparison.runs
    methods = {run.folder: method_name(run, comparison) for run in runs}
    return (
        templates()
        .get_template("page.html")
        .render(
            sections=list(zip(section_titles(tasks), tasks, pictures, strict=True)),
            leads=list(zip(leads(comparison), pictures, strict=True)),
            findings=findings,
            notices=[
                *(("Conflict.", text) for text in comparison.conflicts),
                *(("Note.", text) for text in comparison.notes),
            ],
            pretraining=[(methods[item.run.folder], item) for item in pretraining],
            neighbours=neighbours,
            external=external,
            data=data_cards(runs),
            deviations=deviations(runs),
            environment=environment_rows(runs),
            rows=[run_row(run, methods[run.folder]) for run in runs],
            reproducibility=reproducibility(comparison),
            comparisons=sum(len(task.pairs) for task in tasks),
            resamples=RESAMPLES,
            operating=OPERATING,
            verdict=words.verdict,
            most_skipped=max(
                (cell.interval("auc").skipped for task in tasks for cell in task.cells), default=0
            ),
            fewest_seeds=min((len(cell.runs) for task in tasks for cell in task.cells), default=0),
        )
    )


def method_name(run: Run, comparison: Comparison) -> str:
    """The method of a pre-training run: named by its configuration, or by the arm that used it."""
    method = run.config.get("method")
    if isinstance(method, dict) and isinstance(method.get("type"), str):
        return arm_name(method["type"].lower())
    users = (other.results for other in comparison.runs if other.results)
    arms = {
        results["arm"] for results in users if run.hash and run.hash == results.get("encoder_run")
    }
    return arm_name(arms.pop()) if len(arms) == 1 else ""


def run_row(run: Run, method: str) -> dict[str, Any]:
    """One row of the table of runs."""
    parts = [run.kind, method]
    if run.kind == "evaluation":
        parts = [run.kind, encoder_name(run)]
    if run.results:
        parts = [run.results["task"][:40], arm_name(run.results["arm"])]
        parts.append(percent(run.results["fraction"]))
        parts.append("" if (fold := fold_of(run)) is None else f"fold {fold}")
    seed = run.results.get("seed", run.config.get("seed"))
    steps, _ = run.series("step")
    _, speed = run.series("images_per_second")
    return {
        "hash": short(run.hash) or "none",
        "title": " · ".join(part for part in parts if part),
        "seed": f"{seed:g}" if is_number(seed) else "–",
        "status": run.status,
        "device": device(run) or "–",
        "precision": str(run.env.get("precision") or "–")[:20],
        "steps": count(steps.max()) if len(steps) else "–",
        "speed": three_digits(float(np.median(speed))) if len(speed) else "–",
        "problem": run.problem,
        "leakage": words.run_leakage(run),
    }


def device(run: Run) -> str:
    """Kind and number of devices of a run."""
    kind, number_of = str(run.env.get("device") or "")[:40], run.env.get("device_count")
    return f"{kind} × {number_of:g}" if kind and is_number(number_of) else kind


def environment_rows(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Where the runs that count were done, as (term, distinct values)."""
    runs = [run for run in runs if not run.problem]
    found = [("Devices", list(map(device, runs)))]
    found += [(title, [run.env.get(name) for run in runs]) for name, title in ENVIRONMENT.items()]
    shown = ((term, _distinct(values)) for term, values in found)
    return [(term, values) for term, values in shown if values]


def reproducibility(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What somebody needs to repeat the runs that count, as (term, distinct values)."""
    runs = [run for run in comparison.runs if not run.problem]
    seeds: list[Any] = [run.results.get("seed", run.config.get("seed")) for run in runs]
    reads = [run.results.get("test_reads") for run in runs]
    prints = [run.data.get("fingerprint") or run.results.get("data_fingerprint") for run in runs]
    statements: list[tuple[str, Iterable[Any]]] = [
        ("Code", (run.env.get("commit") for run in runs)),
        ("Seeds", (f"{seed:g}" for seed in sorted(filter(is_number, seeds)))),
        ("Data fingerprints", prints),
        ("Epoch chosen on validation by", (run.results.get("select_by") for run in runs)),
        ("Test set reads per run", (f"{value:g}" for value in filter(is_number, reads))),
    ]
    return [(term, _distinct(values)) for term, values in statements]


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value)[:64] for value in values if value))
