"""SparK: masked image modelling for convolutional networks (Tian et al., ICLR 2023).

Hide most 32x32 patches of a slice, encode the rest with masked sparse convolutions, reconstruct
the hidden patches. Numbers and details: keyu-tian/SparK@a63e386 `pretrain/spark.py`.
"""

import dataclasses
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import Batch, Initial, Out, Progress, PyTree, TrainState, init_encoder
from ctssl_jax.nn import packing
from ctssl_jax.nn.active import SparseForm, encode
from ctssl_jax.nn.decoder import SparKHead
from ctssl_jax.nn.masked import random_mask, upsample_mask
from ctssl_jax.nn.resnet import STRIDE, ResNet


def patchify(x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
    """Non-overlapping 32x32 patches, row-major; a patch is flattened as (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // STRIDE, STRIDE, w // STRIDE, STRIDE, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, STRIDE * STRIDE * c)


def unpatchify(patches: Float[Array, "b n d"], size: int) -> Float[Array, "b h w c"]:
    """The inverse of `patchify` for square images of `size` pixels."""
    b, grid = patches.shape[0], size // STRIDE
    x = patches.reshape(b, grid, grid, STRIDE, STRIDE, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, size, size, -1)


def patch_statistics(
    patches: Float[Array, "b n d"],
) -> tuple[Float[Array, "b n 1"], Float[Array, "b n 1"]]:
    """Mean, and standard deviation from the unbiased variance (plus 1e-6), of each patch."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)


def reconstruction_loss(
    image: Float[Array, "b h w c"], prediction: Float[Array, "b h w c"], mask: Bool[Array, "b f f"]
) -> Float[Array, ""]:
    """Mean squared error on hidden patches, against patches normalised by their own statistics."""
    target = patchify(image)
    mean, std = patch_statistics(target)
    error = jnp.square(patchify(prediction) - (target - mean) / std).mean(axis=-1)
    hidden = ~mask.reshape(error.shape)
    return jnp.mean(error, where=hidden)  # `SparK.validate` sees to it that some are hidden


class Reconstruction(NamedTuple):
    """Material for a picture, all in the network's input space."""

    image: Float[Array, "b h w c"]
    masked: Float[Array, "b h w c"]
    reconstructed: Float[Array, "b h w c"]


@dataclasses.dataclass
class SparK:
    """Hyperparameters of SparK; defaults are the reference's.

    Attributes:
      mask_ratio: share of patches hidden (keyu-tian/SparK@a63e386 `arg_util.py`).
      decoder_width: channels of the decoder's coarsest level (`decoder.py`).
      view: crop, size and flip of the one view (`imagenet.py`).
      sparse: how the encoder is computed; the numbers are the same.
    """

    zero_init_residual: ClassVar[bool] = True
    mask_ratio: float = 0.6
    decoder_width: int = 768
    view: ViewGroup = dataclasses.field(default_factory=ViewGroup)
    sparse: SparseForm = dataclasses.field(default=SparseForm.FASTEST, metadata={"elastic": True})

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """One view per slice."""
        return (self.view,)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.view.size // STRIDE

    @property
    def visible(self) -> int:
        """Patches left visible per image."""
        return round(self.grid**2 * (1.0 - self.mask_ratio))

    def validate(self) -> None:
        """Raises `ConfigError` unless some patches are visible and some hidden."""
        self.view.validate()
        if self.view.count != 1:
            raise ConfigError(f"method.view.count={self.view.count}: SparK reads one view, set 1")
        if not 0 < self.visible < self.grid**2:
            raise ConfigError(
                f"method.mask_ratio={self.mask_ratio} leaves {self.visible} of {self.grid**2} "
                f"patches visible at method.view.size={self.view.size}: some must be visible and "
                "some hidden, change either"
            )
        if self.decoder_width < 32 or self.decoder_width % 32:
            raise ConfigError(
                f"method.decoder_width={self.decoder_width}: it is halved five times, "
                "use a multiple of 32"
            )

    def head(self, encoder: ResNet, channels: int) -> SparKHead:
        """The densification and decoder that fit the encoder, and the devices."""
        dtypes = encoder.dtype, encoder.param_dtype
        return SparKHead(self.decoder_width, channels, *dtypes, packed=packing.worthwhile())

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Any batch and any number of slices will do."""

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder, densification and decoder."""
        encoder_key, head_key = jax.random.split(key)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        stages = tuple(
            jnp.zeros((1, self.view.size >> (i + 2), self.view.size >> (i + 2), width))
            for i, width in enumerate(encoder.widths)
        )
        mask = jnp.ones((1, self.grid, self.grid), bool)
        head = self.head(encoder, channels).init(head_key, stages, mask)
        return Initial(
            {"encoder": params, "head": head["params"]},
            {"encoder": stats, "head": head["batch_stats"]},
            (),
        )

    def forward(
        self,
        encoder: ResNet,
        params: PyTree,
        batch_stats: PyTree,
        image: Float[Array, "b h w c"],
        mask: Bool[Array, "b f f"],
        *,
        train: bool,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "b h w c"], tuple[Float[Array, "b _ _ _"], ...], PyTree]:
        """Reconstruction in normalised-patch space, stage maps, and new batch statistics."""
        apply = partial(
            encoder.apply,
            {"params": params["encoder"], "batch_stats": batch_stats["encoder"]},
            train=train,
            mutable=["batch_stats"],
            rngs={} if key is None else {"drop_path": key},
        )
        stages, encoder_stats = encode(apply, image, mask, self.visible, self.sparse)
        prediction, head_stats = self.head(encoder, image.shape[-1]).apply(
            {"params": params["head"], "batch_stats": batch_stats["head"]},
            stages,
            mask,
            train,
            mutable=["batch_stats"],
        )
        stats = {"encoder": encoder_stats["batch_stats"], "head": head_stats["batch_stats"]}
        full = jnp.promote_types(prediction.dtype, jnp.float32)
        return prediction.astype(full), stages, stats

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """The reconstruction loss under a fresh mask per image."""
        image = batch["views"][0][0]
        mask, _ = random_mask(batch["keys"], self.grid, self.visible)
        prediction, _, stats = self.forward(
            encoder, params, state.batch_stats, image, mask, train=True, key=key
        )
        loss = reconstruction_loss(image, prediction, mask)
        nothing = reconstruction_loss(image, jnp.zeros_like(prediction), mask)
        return loss, Out(stats, state.aux, {"nothing_predicted": nothing})

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """Nothing follows the update."""
        return state

    def reconstruct(
        self, encoder: ResNet, state: TrainState, image: Float[Array, "b h w c"], keys: jax.Array
    ) -> Reconstruction:
        """Input, masked input, and visible patches completed by the reconstructed hidden ones.

        The prediction is brought back from normalised-patch space with the statistics of the true
        patch, as the reference's own pictures do: brightness and contrast of a hidden patch are
        given, its content is predicted. Batch statistics are the running ones.
        """
        mask, _ = random_mask(keys, self.grid, self.visible)
        prediction, _, _ = self.forward(
            encoder, state.params, state.batch_stats, image, mask, train=False
        )
        mean, std = patch_statistics(patchify(image))
        restored = unpatchify(patchify(prediction) * std + mean, image.shape[1])
        visible = upsample_mask(mask, image.shape[1], image.shape[2])
        return Reconstruction(
            image, jnp.where(visible, image, 0), jnp.where(visible, image, restored)
        )
