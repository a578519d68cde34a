"""What the downstream tasks share, as meant and as the paper's notebooks ran them.

Not a config of its own. Source: Wolf et al. 2023, Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627,
`Downstream/*.ipynb`.
"""

from ctssl_jax.augment import Intensity
from ctssl_jax.config import FinetuneConfig, Metric, SubsetBy
from ctssl_jax.optim.freezing import FreezeMode

CANVAS = 224


def as_meant(config: FinetuneConfig) -> FinetuneConfig:
    """One channel, whole slices at 224 px, the epoch chosen by AUC."""
    config.data.canvas = CANVAS
    config.method.view.scale = config.method.view.ratio = (1.0, 1.0)
    config.intensity = Intensity(mean=(0.5,), std=(0.3,))
    return config


def as_run(
    config: FinetuneConfig, mean: tuple[float, ...], std: tuple[float, ...]
) -> FinetuneConfig:
    """Three channels and the notebook's statistics, the schedule that really ran, best accuracy."""
    config = as_meant(config)
    config.intensity = Intensity(channels=3, mean=mean, std=std)
    config.freeze.mode, config.freeze.scratch = FreezeMode.AS_RUN, True
    config.select_by = Metric.ACCURACY
    config.bn_images = 0  # the notebooks evaluate with torch's running statistics
    return config


def transposed(config: FinetuneConfig) -> FinetuneConfig:
    """As MONAI's reader of 2-D images gave them; smaller training sets were shuffled, not drawn.

    The notebook's flip, along the image's width, is top to bottom of what the network sees.
    """
    config.data.transpose = True
    config.method.view.hflip, config.method.view.vflip = 0.0, config.method.view.hflip
    config.subset_by = SubsetBy.IMAGE_UNSTRATIFIED
    return config
