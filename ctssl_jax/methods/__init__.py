"""The methods: how an encoder is trained."""

from ctssl_jax.methods.base import Method, Out, Progress, TrainState
from ctssl_jax.methods.byol import BYOL
from ctssl_jax.methods.cases import Cases
from ctssl_jax.methods.moco import MoCo
from ctssl_jax.methods.simclr import SimCLR
from ctssl_jax.methods.spark import SparK
from ctssl_jax.methods.supervised import Supervised
from ctssl_jax.methods.swav import SwAV
