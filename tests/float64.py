"""Convolutions of float64 as products, for tests that hold our arithmetic to 1e-8.

XLA's own convolutions of float64 take minutes on CPU, and it is not they that are tested. Those of
other types stay as they are.
"""

import numpy as np
from jax import lax

from ctssl_jax.nn.convolution import _shifted_products

_convolve = lax.conv_general_dilated


def convolve(lhs, rhs, window_strides, padding, **others):
    """Takes the place of `lax.conv_general_dilated`."""
    if lhs.dtype == np.float64:
        return _shifted_products(lhs, rhs, window_strides, padding)
    return _convolve(lhs, rhs, window_strides, padding, **others)
