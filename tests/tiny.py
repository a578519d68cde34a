"""What tests of methods share: a small encoder, a small instance of each method, one batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ctssl_jax.augment import Intensity, ViewGroup
from ctssl_jax.augment import views as augment
from ctssl_jax.config import EncoderConfig
from ctssl_jax.hosts import sharding
from ctssl_jax.methods import BYOL, MoCo, SimCLR, SparK, SwAV
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.optim import OptimConfig, OptimizerName, lr_schedule, make_optimizer
from ctssl_jax.train import init_state, make_step

BATCH = 8
SLICES = 64
STEPS_PER_EPOCH = SLICES / BATCH


class TinyEncoder(ResNet):
    """Four stages of one convolution and BatchNorm, with the strides of `ResNet`."""

    @property
    def widths(self):
        return (4, 8, 12, 16)

    @nn.compact
    def __call__(self, x, train=False):
        maps = []
        for i, (width, stride) in enumerate(zip(self.widths, (4, 2, 2, 2), strict=True)):
            x = nn.Conv(
                width,
                (stride, stride),
                (stride, stride),
                padding=((0, 0), (0, 0)),
                use_bias=False,
                name=f"conv{i}",
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )(x)
            x = BatchNorm(
                use_running_average=not train, name=f"bn{i}", param_dtype=self.param_dtype
            )(x)
            x = nn.relu(x)
            maps.append(x)
        return tuple(maps)


def view(size=32, **numbers):
    """A small view, mild enough that so small an encoder can tell slices apart."""
    mild = {"scale": (0.7, 1.0), "hflip": 0.0, "brightness": 0.2, "jitter": 0.5}
    return ViewGroup(size=size, **mild, **numbers)


METHODS = {
    "spark": SparK(decoder_width=32, view=view(64)),
    "moco": MoCo(
        queue_size=16, bn_groups=2, hidden=8, features=6, momentum=0.9, view=view(count=2)
    ),
    "swav": SwAV(
        prototypes=5,
        hidden=8,
        features=6,
        queue_size=16,
        queue_epoch=0.5,
        frozen_epochs=0.125,
        view=view(64, count=2),
        small_view=view(count=2),
    ),
    "byol": BYOL(tau=0.9, hidden=8, features=6, view=view(), other_view=view(blur=0.5)),
    "simclr": SimCLR(hidden=8, features=6, view=view(count=2)),
}
ENCODER = TinyEncoder()


def patch_runs(patch):
    """Every config builds the tiny encoder, and runs have one device."""
    patch.setattr(
        EncoderConfig,
        "build",
        lambda config, precision: TinyEncoder(dtype=jnp.dtype(precision.value)),
    )
    patch.setattr(sharding, "all_devices", lambda: jax.devices()[:1])


def optimizer(total_steps, name=OptimizerName.SGD, lr=0.01):
    """A plain optimizer and its learning rate."""
    none = {"warmup_epochs": 0.0, "weight_decay": 0.0, "weight_decay_end": 0.0}
    config = OptimConfig(name=name, lr=lr, **none)
    schedule = lr_schedule(config, STEPS_PER_EPOCH, total_steps)
    return make_optimizer(config, schedule, lambda step: jnp.zeros(())), schedule


def training(method, total_steps=20, **numbers):
    """State at step 0 and the uncompiled step of a method on the tiny encoder."""
    tx, schedule = optimizer(total_steps, **numbers)
    fresh = jax.jit(lambda key: init_state(method, ENCODER, tx, 1, key))
    state = fresh(jax.random.key(0))
    step = make_step(
        method,
        ENCODER,
        tx,
        Intensity(),
        "hu",
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        schedules={"lr": schedule},
    )
    return state, step


@functools.cache
def initial(name):
    """State at step 0 of one of `METHODS`."""
    return training(METHODS[name])[0]


def host_batch(number=0):
    """Smooth random slices; each has a character of its own."""
    rng = np.random.default_rng(number)
    coarse = rng.uniform(-900, 900, (BATCH, 8, 8))
    image = np.kron(coarse, np.ones((8, 8))).astype(np.int16)
    place = np.arange(BATCH, dtype=np.int32) + number * BATCH
    return {
        "image": image,
        "index": place,
        "record": place % SLICES,
        "label": np.zeros(BATCH, np.int32),
    }


@functools.cache
def loss_batch(name, number=0):
    """What the loss of one of `METHODS` reads, made as the training step makes it."""
    method = METHODS[name]
    host = host_batch(number)
    keys = augment.image_keys(jax.random.key(1), number, jnp.asarray(host["index"]))

    @jax.jit
    def make(keys, image):
        unit = augment.to_unit(image, Intensity(), "hu")
        views = augment.make_views(keys, unit, method.views)
        return tuple(augment.normalise(view, Intensity()) for view in views)

    views = make(keys, jnp.asarray(host["image"]))
    return {**{k: jnp.asarray(v) for k, v in host.items()}, "views": views, "keys": keys}


def on(devices, state, step):
    """State, batches and compiled step on a number of devices; returns a function of batches."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    key = sharding.replicate(jax.random.key(3), mesh)
    compiled = sharding.jit_step(step, mesh)
    state = sharding.replicate(state, mesh)

    def run(numbers, state=state):
        history = []
        for number in numbers:
            state, metrics = compiled(state, sharding.put_batch(host_batch(number), mesh), key)
            history.append(jax.device_get(metrics))
        return state, history

    return run, compiled
