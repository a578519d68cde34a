"""How the runs of a comparison were trained: what may differ between them, and what may not.

Runs of one arm and size are seeds of one recipe. Between arms nothing may differ but what the arm
is: its encoder, how that starts, and a learning rate that was chosen for it on validation. Else the
difference of the recipes would be taken for that of the arms.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ctssl_jax.report.names import arm_name, arm_order, listed
from ctssl_jax.report.runs import Run

FREE = {"seed", "subset_seed", "encoder_run", "log_every"}
"""Settings that the runs of one arm and size may differ in."""
OF_THE_ARM = {*FREE, "arm", "encoder.zero_init_residual", "features", "linear_c"}
"""Settings that arms may differ in: what an arm is, how its literature starts the encoder, and the
penalties that go with the number of frozen features."""
CHOSEN = "optim.lr"
"""The setting that may be chosen for each arm and size, where `results.json` says `tuning`."""
OF_AN_ENCODER = {
    *("seed", "encoder_run", "log_every", "checkpoint_every", "picture_every"),
    *("keep_checkpoints", "display_window_hu"),
}
"""Settings that pre-trainings of one arm may differ in; those of `probe` as well."""


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as flat names and values: `optim.lr`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= (
            settings(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def differing(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all, as far as a page shows them."""
    configs = list(configs)
    names = sorted({name for config in configs for name in config})
    return [
        name[:40]
        for name in names
        if any(config.get(name) != configs[0].get(name) for config in configs[1:])
    ]


def mixed_seeds(cells: Iterable[list[Run]]) -> dict[Path, str]:
    """Refuses cells whose runs were trained differently: nobody can tell which to keep."""
    refused: dict[Path, str] = {}
    for cell in cells:
        names = differing(_without(settings(run.config), FREE) for run in cell)
        if names:
            problem = f"other runs of this arm and size differ in {', '.join(names)}"
            refused |= {run.folder: problem for run in cell}
    return refused


def mixed_pretrainings(cells: Iterable[list[Run]], runs: Iterable[Run]) -> dict[Path, str]:
    """Refuses cells whose encoders were pre-trained differently, as far as these runs are here."""
    known = {run.hash: run for run in runs if run.kind == "pre-training" and run.hash}
    refused: dict[Path, str] = {}
    for cell in cells:
        encoders = sorted({str(run.results.get("encoder_run")) for run in cell} & known.keys())
        names = differing(_pretraining(known[name]) for name in encoders)
        if names:
            problem = f"the encoders of this arm were pre-trained differently: {', '.join(names)}"
            refused |= {run.folder: problem for run in cell}
    return refused


def alike(runs: list[Run]) -> tuple[list[list[Run]], list[str]]:
    """The runs of a task in groups whose arms were trained alike, and what sets these apart.

    Arms are set against each other at each size; two arms belong together if they agree at every
    size that both have. Each sentence is about two arms of different groups.
    """
    recipes: dict[str, dict[float, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        recipes[run.results["arm"]][float(run.results["fraction"])] = _recipe(run)
    groups: list[list[str]] = []
    conflicts: list[str] = []
    for arm in sorted(recipes, key=arm_order):
        apart: dict[str, list[str]] = {}
        for group in groups:
            found = {other: _apart(recipes[arm], recipes[other]) for other in group}
            found = {other: names for other, names in found.items() if names}
            if not found:
                group.append(arm)
                break
            apart |= found
        else:
            groups.append([arm])
            conflicts += [_conflict(arm, other, names) for other, names in list(apart.items())[:1]]
    return [[run for run in runs if run.results["arm"] in group] for group in groups], conflicts


def tuned(run: Run) -> Mapping[str, Any] | None:
    """How the learning rate of a run was chosen: `lr`, `candidates`, `seeds`, `split`; or None."""
    found = run.results.get("tuning")
    return found if isinstance(found, dict) else None


def tuning_conflicts(runs: list[Run]) -> list[str]:
    """Learning rates that were not chosen as they must be: on validation, on other seeds."""
    return list(dict.fromkeys(_tuning_conflicts(runs)))


def _tuning_conflicts(runs: list[Run]) -> Iterator[str]:
    compared = [run.results["seed"] for run in runs]  # no set: what `seeds` holds may be a list
    for run in (part for pooled in runs for part in pooled.parts()):
        found, arm = tuned(run) or {}, arm_name(run.results["arm"])
        seeds = found.get("seeds")
        if found and found.get("split") != run.config.get("val_split", "val"):
            yield f"the learning rate of {arm} was not chosen on validation."
        if isinstance(seeds, list) and any(seed in compared for seed in seeds):
            yield f"the learning rate of {arm} was chosen on seeds that are compared here."


def _recipe(run: Run) -> dict[str, Any]:
    """What has to be the same for all arms of a size."""
    recipe = _without(settings(run.config), OF_THE_ARM)
    return {**recipe, CHOSEN: "chosen on validation"} if tuned(run) else recipe


def _pretraining(run: Run) -> dict[str, Any]:
    flat = _without(settings(run.config), OF_AN_ENCODER)
    flat = {name: value for name, value in flat.items() if not name.startswith("probe.")}
    return {**flat, "data": run.data.get("fingerprint")}


def _without(config: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _apart(
    one: Mapping[float, Mapping[str, Any]], other: Mapping[float, Mapping[str, Any]]
) -> list[str]:
    """Settings in which two arms differ at a size that both have."""
    shared = one.keys() & other.keys()
    found = [name for size in sorted(shared) for name in differing([one[size], other[size]])]
    return list(dict.fromkeys(found))


def _conflict(arm: str, other: str, names: list[str]) -> str:
    said = listed(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (
        f"{arm_name(other)} and {arm_name(arm)} were trained by different recipes: they differ in "
        f"{said}. They are shown in separate sections and never compared with each other."
    )
