"""AUC against training-set size: from scratch and from pre-trained encoders, several seeds.

    python -m launch.sweep --config=configs/ablation.py:covid_ct \
        --config.encoders=runs/spark --config.encoders=runs/moco
    python -m ctssl_jax.report runs/ablation-covid_ct --out=report

Several runs of one method are pre-trainings of one arm. `--config.lrs="(1e-4,1e-3)"` with
`--config.tuning_seeds="(100,101)"` chooses the learning rate of each arm and size on validation.

Presets: covid_ct, organsmnist, hemorrhage (as meant), each also with _as_run, which takes three
channels as the paper's encoders do and draws one subset for all seeds; cases, cases_frozen (scans,
nodules, whatever one label is of, with trained or with frozen encoders); mine, mine_laptop (a first
study of your own scans, with encoders of :gpu or of :laptop); demo, smoke (phantom).
"""

from typing import Any

from ctssl_jax import presets
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.augment import Intensity
from ctssl_jax.recipes import phantom

TASKS = ("covid_ct", "organsmnist", "hemorrhage")
OWN = ("mine", "mine_laptop")
# A first answer: whether more annotation would help, by halves; three seeds, the fewest that show
# how far luck goes; of each arm kNN and a linear probe too, which take minutes.
MINE = {"fractions": (1.0, 0.5, 0.25), "seeds": (0, 1, 2), "frozen": True}


def get_config(preset: str = "covid_ct") -> AblationConfig:
    """The grid of a task."""
    task = preset.removesuffix("_as_run")
    if task in TASKS:
        as_run = task != preset
        return grid(task, "as_run" if as_run else "", subset_per_seed=not as_run)
    if preset in ("cases", "cases_frozen"):
        return grid("cases", preset.removeprefix("cases").removeprefix("_"))
    if preset in OWN:
        own = grid("cases", preset.removeprefix("mine").removeprefix("_"), **MINE)
        # The input is that of the presets of pre-training, for the arms from scratch as well.
        own.base.task, own.base.intensity = "mine", Intensity()
        return own
    if preset == "demo":
        return grid("cases", "demo", counts=(8, 24), seeds=(0, 1, 2))
    if preset == "smoke":
        return grid("covid_ct", "smoke", fractions=(0.1, 0.2), seeds=(0,))
    known = (*TASKS, *(f"{task}_as_run" for task in TASKS), "cases", "cases_frozen", *OWN)
    raise phantom.unknown_preset(preset, *known, "demo", "smoke")


def grid(task: str, preset: str, **axes: Any) -> AblationConfig:
    """The grid over a task's fine-tuning."""
    name = f"finetune_{task}"
    base = presets.load(name, preset)
    file = name + (f":{preset}" if preset else "")
    return AblationConfig(base=base, base_config=file, **axes)
