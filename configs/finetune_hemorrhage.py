"""Intracranial haemorrhage on head-CT images (in place of Wolf et al. 2023's private third task).

    python -m data_prep.hemorrhage --source=head_ct --out=data/hemorrhage
    python -m ctssl_jax.main --config=configs/finetune_hemorrhage.py --config.encoder_run=RUN

The paper's Brain set is private to its authors and cannot be reproduced; this public set of 200
images stands in and is not the same task. :as_run: the released notebook, quirks included, such as
the COVID-19 set's mean and std. :demo and :smoke run on the phantom.
"""

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.recipes import downstream, phantom


def get_config(preset: str = "") -> FinetuneConfig:
    """The configuration; presets: as_run, demo, smoke."""
    config = FinetuneConfig(task="hemorrhage")
    config.data.path = "data/hemorrhage"
    config.method.view.hflip = 0.5
    match preset:
        case "":
            return downstream.as_meant(config)
        case "as_run":
            mean, std = (0.5600, 0.5596, 0.5596), (0.2905, 0.2907, 0.2908)
            return downstream.transposed(downstream.as_run(config, mean, std))
        case "demo":
            return phantom.finetune_demo(config)
        case "smoke":
            return phantom.finetune_smoke(config)
    raise phantom.unknown_preset(preset, "as_run", "demo", "smoke")
