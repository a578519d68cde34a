"""AUC against training-set size: scratch and pre-trained, several seeds.

    python -m launch.sweep --config=configs/ablation.py:covid_ct --config.encoder_run=RUN
    python -m ctssl_jax.report runs/ablation-covid_ct --out=report

Presets: covid_ct, organsmnist, hemorrhage (as meant), each also with _as_run, which takes three
channels as the paper's encoders do; demo, smoke (phantom).
"""

from configs import finetune_covid_ct, finetune_hemorrhage, finetune_organsmnist, phantom
from ctssl_jax.config import AblationConfig

TASKS = {
    "covid_ct": finetune_covid_ct,
    "organsmnist": finetune_organsmnist,
    "hemorrhage": finetune_hemorrhage,
}


def get_config(preset: str = "covid_ct") -> AblationConfig:
    """The grid of a task."""
    task = preset.removesuffix("_as_run")
    if task in TASKS:
        return AblationConfig(base=TASKS[task].get_config("as_run" * (task != preset)))
    if preset == "demo":
        return AblationConfig(
            base=finetune_covid_ct.get_config("demo"), fractions=(0.1, 0.3, 1.0), seeds=(0, 1)
        )
    if preset == "smoke":
        return AblationConfig(
            base=finetune_covid_ct.get_config("smoke"), fractions=(0.1, 0.2), seeds=(0,)
        )
    as_run = [f"{task}_as_run" for task in TASKS]
    raise phantom.unknown_preset(preset, *TASKS, *as_run, "demo", "smoke")
