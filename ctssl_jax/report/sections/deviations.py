"""In what the runs differ from the paper's released code: settings that matter, by their values.

`RELEASED` are numbers of the `:as_run` presets (tests compare them), which the report does not
load, since configs need JAX. What no setting says is in docs/deviations.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctssl_jax.report.figures.theme import short_number
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.runs import Run, is_number
from ctssl_jax.report.words import count

COMMON: dict[str, Any] = {
    "encoder.depth": 50,
    "intensity.channels": 3,
    "intensity.mode": "slice_min_max",
    "method.view.size": 224,
    "method.view.scale": [0.2, 1.0],
    "method.view.hflip": 0.5,
    "method.view.vflip": 0.5,
    "method.view.rotate": 0.5,
    "precision": "float32",
}
RELEASED: dict[str, dict[str, Any]] = {
    "SparK": {
        **COMMON,
        "method.view.scale": [0.67, 1.0],
        "method.view.vflip": 0.0,
        "method.view.rotate": 0.0,
        "batch_size": 32,
        "epochs": 1600.0,
        "optim.name": "lamb",
        "optim.lr": 2.5e-5,
        "method.mask_ratio": 0.6,
        "method.decoder_width": 768,
    },
    "MoCo": {
        **COMMON,
        "batch_size": 128,
        "epochs": 800.0,
        "optim.name": "sgd",
        "optim.lr": 0.015,
        "optim.clock": "epoch",
        "method.temperature": 0.07,
        "method.queue_size": 65536,
        "method.hidden": 0,
        "method.bn_groups": 1,
        "method.mask_own": False,
    },
    "SwAV": {
        **COMMON,
        "method.view.scale": [0.9, 1.0],
        "method.view.hflip": 0.0,
        "method.view.vflip": 0.0,
        "method.view.rotate": 0.0,
        "method.small_view.count": 6,
        "method.small_view.size": 96,
        "batch_size": 128,
        "epochs": 800.0,
        "optim.name": "lars",
        "optim.lr": 0.15,
        "optim.clock": "step_as_epoch",
        "method.prototypes": 500,
        "method.frozen_epochs": 313.0,
        "method.queue_size": 0,
    },
    "BYOL": {
        **COMMON,
        "batch_size": 64,
        "epochs": 78.5,
        "optim.name": "adam",
        "optim.lr": 1e-3,
        "optim.clock": "epoch",
        "method.tau": 0.996,
        "method.tau_schedule": "two_epochs",
    },
    "Supervised": {
        "encoder.depth": 50,
        "intensity.channels": 3,
        "method.view.size": 224,
        "batch_size": 64,
        "epochs": 70,
        "optim.name": "adam",
        "optim.lr": 1e-4,
        "optim.weight_decay": 5e-4,
        "freeze.epochs": 10,
        "freeze.mode": "as_run",
        "freeze.scratch": True,
        "select_by": "accuracy",
        "precision": "float32",
    },
}
"""Per method, the values of the paper's released code."""
NAMES = {
    "batch_size": "batch size",
    "encoder.depth": "depth of the ResNet",
    "epochs": "epochs",
    "freeze.epochs": "epochs with a resting encoder",
    "freeze.mode": "schedule after them",
    "freeze.scratch": "scratch rests too",
    "intensity.channels": "input channels",
    "intensity.mode": "intensity",
    "method.bn_groups": "BatchNorm groups",
    "method.decoder_width": "decoder width",
    "method.frozen_epochs": "epochs with frozen prototypes",
    "method.hidden": "hidden units of the head",
    "method.mask_ratio": "hidden share of the patches",
    "method.mask_own": "own slice is no negative",
    "method.prototypes": "prototypes",
    "method.queue_size": "queue",
    "method.small_view.count": "small views",
    "method.small_view.size": "small views, pixels",
    "method.tau": "target's momentum",
    "method.tau_schedule": "its schedule",
    "method.temperature": "temperature",
    "method.view.hflip": "left-right flips",
    "method.view.rotate": "rotations",
    "method.view.scale": "area of the crops",
    "method.view.size": "input, pixels",
    "method.view.vflip": "top-bottom flips",
    "optim.clock": "clock of the schedule",
    "optim.lr": "learning rate",
    "optim.name": "optimizer",
    "optim.weight_decay": "weight decay",
    "precision": "precision",
    "select_by": "epoch chosen by",
}


@dataclass(frozen=True)
class Deviations:
    """Of the runs of one method or of fine-tuning: rows of (setting, here, released code)."""

    title: str
    rows: list[tuple[str, str, str]]


def deviations(runs: list[Run]) -> list[Deviations]:
    """Where the runs that count differ from the released code; settings that agree are left out."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        method = run.config.get("method")
        name = method.get("type") if isinstance(method, dict) else None
        if not run.problem and isinstance(name, str) and name in RELEASED:
            by_method.setdefault(name, []).append(run)
    return [
        Deviations(
            "Fine-tuning" if name == "Supervised" else f"Pre-training, {arm_name(name.lower())}",
            _rows(users, RELEASED[name]),
        )
        for name, users in by_method.items()
    ]


def _rows(runs: list[Run], released: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for setting, theirs in released.items():
        ours = [_value(run.config, setting) for run in runs]
        if any(value is not None and value != theirs for value in ours):
            shown = dict.fromkeys(_words(value) for value in ours if value is not None)
            rows.append((NAMES[setting], ", ".join(shown), _words(theirs)))
    return rows


def _value(config: Mapping[str, Any], setting: str) -> Any:
    value: Any = config
    for part in setting.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return count(value) if value >= 1000 else short_number(float(value))
    if isinstance(value, list):
        return "–".join(_words(part) for part in value[:4])
    return str(value)[:40].replace("_", " ")
