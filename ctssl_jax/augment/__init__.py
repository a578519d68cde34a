"""Augmentation on the device: pure functions of stored slices and a key."""

from ctssl_jax.augment.resample import Interpolation
from ctssl_jax.augment.views import (
    AIR_HU,
    Intensity,
    IntensityKind,
    IntensityMode,
    Standardise,
    ViewGroup,
    image_keys,
    make_views,
    normalise,
    to_unit,
    whole_slices,
)
