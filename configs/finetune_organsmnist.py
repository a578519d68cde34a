"""Organ classification on OrganSMNIST or any file of its layout (Wolf et al. 2023, second task).

    python -m data_prep.organsmnist --source=organsmnist.npz --out=data/organsmnist
    python -m ctssl_jax.main --config=configs/finetune_organsmnist.py --config.encoder_run=RUN

28 px images are repeated eight times to 224 px; no augmentation, as in the paper.
:as_run: the released notebook, quirks included. :demo and :smoke run on the phantom.
"""

from ctssl_jax.config import FinetuneConfig, SubsetBy
from ctssl_jax.recipes import downstream, phantom


def get_config(preset: str = "") -> FinetuneConfig:
    """The configuration; presets: as_run, demo, smoke."""
    config = FinetuneConfig(task="organsmnist")
    config.data.path = "data/organsmnist"
    config.method.view.hflip = 0.0  # left and right kidney are different classes
    match preset:
        case "":
            return downstream.as_meant(config)
        case "as_run":
            config.subset_by = SubsetBy.FIRST
            return downstream.as_run(config, mean=(0.5,), std=(0.5,))
        case "demo":
            return phantom.finetune_demo(config)
        case "smoke":
            return phantom.finetune_smoke(config)
    raise phantom.unknown_preset(preset, "as_run", "demo", "smoke")
