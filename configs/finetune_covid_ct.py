"""COVID-19 against other findings on the UCSD COVID-CT images (Wolf et al. 2023, first task).

    python -m data_prep.covid_ct --source=COVID-CT --out=data/covid_ct
    python -m ctssl_jax.main --config=configs/finetune_covid_ct.py --config.encoder_run=RUN

Without `encoder_run` it trains from scratch. Default: 70 epochs of Adam, batch 64; the encoder's
convolutions rest for ten epochs, then join at a tenth of the rate and double up to it.
:as_run: the released notebook, quirks included. :demo and :smoke run on the phantom.
"""

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.recipes import downstream, phantom


def get_config(preset: str = "") -> FinetuneConfig:
    """The configuration; presets: as_run, demo, smoke."""
    config = FinetuneConfig(task="covid_ct")
    config.data.path = "data/covid_ct"
    config.method.view.hflip = 0.5
    match preset:
        case "":
            return downstream.as_meant(config)
        case "as_run":
            # mean and std of the notebook (DS/COVID-19.ipynb)
            mean, std = (0.5600, 0.5596, 0.5596), (0.2905, 0.2907, 0.2908)
            return downstream.transposed(downstream.as_run(config, mean, std))
        case "demo":
            return phantom.finetune_demo(config)
        case "smoke":
            return phantom.finetune_smoke(config)
    raise phantom.unknown_preset(preset, "as_run", "demo", "smoke")
