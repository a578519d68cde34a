"""What is shown of a pre-training run: its curves, gauges and warnings, and reconstructions."""

from dataclasses import dataclass
from functools import partial

from ctssl_jax.report.figures import curves as figures
from ctssl_jax.report.figures import tables
from ctssl_jax.report.figures.picture import Picture, drawn
from ctssl_jax.report.runs import Run, is_number, reconstructions
from ctssl_jax.report.words import count, three_digits
from ctssl_jax.run.health import Watch

HEALTHY = {
    "embedding_std": "0.5 to 1; below 0.1 they have collapsed",
    "effective_rank": "grows; below 1.1 they lie on a line",
    "contrast_accuracy": "grows",
    "prototypes_used": "most of them",
    "queue_age_epochs": "up to 0.5",
    "knn_auc": "grows; 0.5 is chance",
}
"""What to expect of each gauge; see docs/runs.md."""
SHOWN = 6
"""Lines of warnings: the first ones and the last; a run at the edge says them over and over."""


@dataclass(frozen=True)
class Pretraining:
    """What is shown of one pre-training run.

    Reconstructions are by step; gauges are (name, first, lowest, last value, what is healthy).
    """

    run: Run
    curves: Picture | None
    gauges: list[tuple[str, ...]]
    warnings: list[str]
    reconstructions: dict[int, Picture]

    def pictures(self) -> list[Picture]:
        """All that is shown."""
        return [*([self.curves] if self.curves else []), *self.reconstructions.values()]


def pretraining_section(run: Run, name: str) -> Pretraining:
    """Curves of a pre-training run, its gauges, and its first, middle and last reconstruction."""
    found = reconstructions(run)
    chosen = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    return Pretraining(
        run,
        _curves(run, f"{name}-curves"),
        gauges(run),
        warnings(run),
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


def _curves(run: Run, name: str) -> Picture | None:
    steps, loss = run.series("loss")
    if not len(steps):
        return None
    alt = (
        f"Training loss from {loss[0]:.3g} at step {count(steps[0])} to {loss[-1]:.3g} at step "
        f"{count(steps[-1])}, with learning rate, weight decay, throughput and gauges where logged."
    )
    return drawn(name, alt, partial(figures.pretraining_curves, run), tables.pretraining(run))


def gauges(run: Run) -> list[tuple[str, ...]]:
    """The gauges that a run logged: name, first, lowest and last value, what is healthy."""
    rows = []
    for title, name in figures.SMALL_PANELS.items():
        _, values = run.series(name)
        if name in HEALTHY and len(values):
            shown = (values[0], values.min(), values[-1])
            rows.append((title, *(three_digits(float(value)) for value in shown), HEALTHY[name]))
    return rows


def warnings(run: Run) -> list[str]:
    """What the log said of a run that did not learn, and when; found anew from its numbers."""
    watch, said = Watch(), []
    for row in run.metrics:
        values = {name: float(value) for name, value in row.items() if is_number(value)}
        if "loss" not in values:
            continue  # of a probe or a validation
        if "prototypes" not in values:
            values.pop("prototypes_used", None)
        said += [f"Step {count(values['step'])}: {line}" for line in watch.read(values)]
    if len(said) > SHOWN:
        said[SHOWN - 1 : -1] = [f"{count(len(said) - SHOWN)} more, then"]
    return said
