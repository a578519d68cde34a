"""The methods: how an encoder is trained."""

from ctssl_jax.methods.base import Method, Out, TrainState
from ctssl_jax.methods.spark import SparK
from ctssl_jax.methods.supervised import Supervised
