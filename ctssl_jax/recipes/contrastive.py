"""What MoCo v2, SwAV and BYOL share as meant and as the paper ran them.

Not a config of its own. Source: Wolf et al. 2023, Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627,
`Pre-Training/Contrastive_Learning`.
"""

from typing import Any

from ctssl_jax.augment import Intensity, IntensityMode, Interpolation, ViewGroup
from ctssl_jax.augment.views import RotateInterpolation
from ctssl_jax.config import Precision, PretrainConfig


def view(size: int = 224, **numbers: Any) -> ViewGroup:
    """A view as the contrastive methods draw it: bilinear, flipped left-right half the time."""
    return ViewGroup(**{"size": size, "interpolation": Interpolation.BILINEAR, **numbers})


def jittered(strength: float, **numbers: Any) -> dict[str, Any]:
    """Brightness and contrast jitter of `strength` in 4 of 5 views, blur in half of them."""
    jitter = {"jitter": 0.8, "brightness": strength, "contrast": strength}
    return {**jitter, "blur": 0.5, **numbers}


def paper_view(**numbers: Any) -> ViewGroup:
    """The view of MoCo and BYOL as run (`moco_data_module.py:61-78`, `logo_data_module.py`)."""
    return view(
        scale=(0.2, 1.0),
        vflip=0.5,
        rotate=0.5,
        rotate_interpolation=RotateInterpolation.NEAREST,
        jitter=1.0,
        brightness=0.4,
        contrast=0.4,
        blur=0.5,
        noise=0.5,
        **numbers,
    )


def as_run(config: PretrainConfig) -> PretrainConfig:
    """Three channels, each slice scaled by its own range, the paper's CT statistics, fp32."""
    config.precision = Precision.FLOAT32
    config.intensity = Intensity(
        mode=IntensityMode.SLICE_MIN_MAX, channels=3, mean=(0.1806,), std=(0.1907,)
    )
    return config
