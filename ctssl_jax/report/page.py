"""The page: numbers and pictures put into words and into `page.html`.

Everything that comes from a run passes through Jinja's escaping. Of a configuration and an
environment only named keys are shown, since the rest may hold paths or names.
"""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctssl_jax.report import figures, findings, words
from ctssl_jax.report.compare import RESAMPLES, Comparison, Task, arm_name
from ctssl_jax.report.runs import Run, is_number, reconstructions
from ctssl_jax.report.words import (
    count,
    number,
    percent,
    section_titles,
    short,
    sizes,
    three_digits,
)

FILTERS = (
    "cell_leakage",
    "count",
    "interval",
    "number",
    "patients",
    "percent",
    "short",
    "signed",
    "signed_interval",
    "sizes",
    "spread_range",
)
"""Functions of `words` that the template uses."""


@dataclass(frozen=True)
class Picture:
    """A PNG to show; `dark` is the same in dark colours, where there is one."""

    name: str
    alt: str
    light: bytes
    dark: bytes | None = None

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG header."""
        return int.from_bytes(self.light[16:20]), int.from_bytes(self.light[20:24])


@dataclass(frozen=True)
class Pretraining:
    """What is shown of one pre-training run: its curves, and reconstructions by step."""

    run: Run
    curves: Picture | None
    reconstructions: dict[int, Picture]

    def pictures(self) -> list[Picture]:
        """All that is shown."""
        return [*([self.curves] if self.curves else []), *self.reconstructions.values()]


def auc_picture(task: Task, title: str, name: str) -> Picture:
    """AUC against training size, told in words for those who do not see it."""
    arms = [
        f"{arm_name(arm)}: "
        + ", ".join(
            f"{number(cell.spread('auc').mean)} at {sizes(cell.sizes('slices'))}"
            for cell in task.cells
            if cell.arm == arm
        )
        for arm in task.arms()
    ]
    alt = f"{title}: mean test AUC by number of training slices. {'; '.join(arms)}."
    light, dark = (figures.auc_against_size(task, theme) for theme in figures.THEMES)
    return Picture(name, alt, light, dark)


def pretraining_section(run: Run, name: str) -> Pretraining:
    """Curves of a pre-training run, and its first, middle and last reconstruction."""
    steps, loss = run.series("loss")
    curves = None
    if len(steps):
        alt = (
            f"Training loss from {loss[0]:.3g} at step {count(steps[0])} to {loss[-1]:.3g} at step "
            f"{count(steps[-1])}, with learning rate, weight decay and throughput where logged."
        )
        light, dark = (figures.pretraining_curves(run, theme) for theme in figures.THEMES)
        curves = Picture(f"{name}-curves", alt, light, dark)
    found = reconstructions(run)
    chosen = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    return Pretraining(
        run,
        curves,
        {
            found[index][0]: Picture(
                f"{name}-reconstruction-{found[index][0]}",
                f"Slices at step {count(found[index][0])}. From above: input, masked input, "
                "reconstruction.",
                found[index][1],
            )
            for index in chosen
        },
    )


def render(
    comparison: Comparison, auc_pictures: list[Picture], pretraining: list[Pretraining]
) -> str:
    """The whole page as HTML; `auc_pictures` are one per task of the comparison."""
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
    tasks, runs = comparison.tasks, comparison.runs
    methods = {run.folder: method_name(run, comparison) for run in runs}
    return environment.get_template("page.html").render(
        sections=list(zip(section_titles(tasks), tasks, auc_pictures, strict=True)),
        summary=[
            (title, size, [*sentences, *findings.lead(task)])
            for task, (title, size, sentences) in zip(tasks, words.summary(comparison), strict=True)
        ],
        findings=findings,
        notices=[
            *(("Conflict.", text) for text in comparison.conflicts),
            *(("Note.", text) for text in comparison.notes),
        ],
        pretraining=[(methods[item.run.folder], item) for item in pretraining],
        rows=[run_row(run, methods[run.folder]) for run in runs],
        reproducibility=reproducibility(comparison),
        comparisons=sum(len(task.pairs) for task in tasks),
        resamples=RESAMPLES,
        verdict=words.verdict,
        most_skipped=max(
            (cell.auc_interval.skipped for task in tasks for cell in task.cells), default=0
        ),
        fewest_seeds=min((len(cell.runs) for task in tasks for cell in task.cells), default=0),
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
    if run.results:
        parts = [run.results["task"][:40], arm_name(run.results["arm"])]
        parts.append(percent(run.results["fraction"]))
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


def reproducibility(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What somebody needs to repeat the runs that count, as (term, distinct values)."""
    runs = [run for run in comparison.runs if not run.problem]
    seeds: list[Any] = [run.results.get("seed", run.config.get("seed")) for run in runs]
    reads = [run.results.get("test_reads") for run in runs]
    software = {"python": "Python", "jax": "JAX", "flax": "Flax", "ctssl_jax": "ctssl_jax"}
    versions = [
        f"{title} {run.env[name]}"
        for name, title in software.items()
        for run in runs
        if run.env.get(name)
    ]
    prints = [run.data.get("fingerprint") or run.results.get("data_fingerprint") for run in runs]
    statements: list[tuple[str, Iterable[Any]]] = [
        ("Code", (run.env.get("commit") for run in runs)),
        ("Software", versions),
        ("Devices", map(device, runs)),
        ("Precision", (run.env.get("precision") for run in runs)),
        ("Seeds", (f"{seed:g}" for seed in sorted(filter(is_number, seeds)))),
        ("Data fingerprints", prints),
        ("Epoch chosen on validation by", (run.results.get("select_by") for run in runs)),
        ("Test set reads per run", (f"{value:g}" for value in filter(is_number, reads))),
    ]
    return [
        (term, list(dict.fromkeys(str(value)[:64] for value in values if value)))
        for term, values in statements
    ]
