"""BYOL: predict a moving average's projection of the other view; no negatives.

Grill et al., NeurIPS 2020; google-deepmind/deepmind-research `byol/`. As run by Wolf et al.:
Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627 `byol/byol_module.py`, `callbacks/byol_updates.py`.
"""

import dataclasses
import enum
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ctssl_jax.augment import ViewGroup
from ctssl_jax.config_values import require
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods.base import (
    Batch,
    Initial,
    Out,
    Progress,
    PyTree,
    TrainState,
    apply_each,
    ema,
    encode_each,
    init_encoder,
    init_head,
    l2_normalise,
)
from ctssl_jax.methods.gauges import embedding_gauges
from ctssl_jax.nn.heads import MLP
from ctssl_jax.nn.resnet import ResNet


class TauSchedule(enum.Enum):
    """How the target's momentum moves from `tau` to 1: over the run, or to and fro (as run)."""

    RUN = "run"
    TWO_EPOCHS = "two_epochs"


def regression_loss(
    prediction: Float[Array, "... b d"], target: Float[Array, "... b d"]
) -> Float[Array, "..."]:
    """Squared distance of the normalised vectors, 2 - 2 cos, mean over the batch (Eq. 2)."""
    cosine = (l2_normalise(prediction) * l2_normalise(target)).sum(axis=-1)
    return (2.0 - 2.0 * cosine).mean(axis=-1)


@dataclasses.dataclass
class BYOL:
    """Hyperparameters of BYOL; defaults are the original's.

    Attributes:
      tau: the target's momentum at the start.
      tau_schedule: RUN, a half cosine to 1 at the end; TWO_EPOCHS, the released code's, which
        goes to 1 and back in two epochs, again and again.
      hidden, features: widths of projector and predictor.
      view, other_view: of the two views, which the original draws differently.
    """

    zero_init_residual: ClassVar[bool] = False
    tau: float = 0.996
    tau_schedule: TauSchedule = TauSchedule.RUN
    hidden: int = 4096
    features: int = 256
    view: ViewGroup = dataclasses.field(default_factory=ViewGroup)
    other_view: ViewGroup = dataclasses.field(default_factory=ViewGroup)

    @property
    def views(self) -> tuple[ViewGroup, ...]:
        """Two groups of one view."""
        return (self.view, self.other_view)

    def validate(self) -> None:
        """Raises `ConfigError` naming the field."""
        for name in ("view", "other_view"):
            view = getattr(self, name)
            view.validate()
            if view.count != 1:
                raise ConfigError(f"method.{name}.count={view.count}: BYOL takes one of each")
        if self.view.size != self.other_view.size:
            raise ConfigError(
                f"method.view.size={self.view.size} and method.other_view.size="
                f"{self.other_view.size}: must be equal"
            )
        require(self, "method", tau=(0 <= self.tau < 1, "in [0, 1)"))

    def validate_run(self, batch_size: int, slices: int) -> None:
        """Raises `ConfigError` for a batch too small for the heads' BatchNorm."""
        if batch_size < 2:
            raise ConfigError(f"batch_size={batch_size}: BYOL's BatchNorm needs 2 or more")

    def head(self) -> MLP:
        """Projector and predictor are built alike."""
        return MLP(self.hidden, self.features, batch_norm=True)

    def init(self, encoder: ResNet, key: jax.Array, channels: int) -> Initial:
        """Fresh encoder, projector and predictor; the target is a copy of the first two."""
        encoder_key, projector_key, predictor_key = jax.random.split(key, 3)
        params, stats = init_encoder(encoder, encoder_key, self.view.size, channels)
        projector, projector_stats = init_head(self.head(), projector_key, encoder.widths[-1])
        predictor, predictor_stats = init_head(self.head(), predictor_key, self.features)
        return Initial(
            {"encoder": params, "head": {"projector": projector, "predictor": predictor}},
            {
                "encoder": stats,
                "head": {"projector": projector_stats, "predictor": predictor_stats},
            },
            {
                "params": {"encoder": params, "projector": projector},
                "batch_stats": {"encoder": stats, "projector": projector_stats},
            },
        )

    def project(
        self,
        encoder: ResNet,
        params: PyTree,
        stats: PyTree,
        x: Float[Array, "v b h w c"],
        key: Array,
    ) -> tuple[Float[Array, "v b d"], PyTree]:
        """Projections of both views, each with its own batch statistics, and the new ones."""
        y, encoder_stats = encode_each(encoder, params["encoder"], stats["encoder"], x, key)
        z, projector_stats = apply_each(
            self.head(), params["projector"], stats["projector"], y, key
        )
        return z, {"encoder": encoder_stats, "projector": projector_stats}

    def loss(
        self,
        encoder: ResNet,
        params: PyTree,
        state: TrainState,
        batch: Batch,
        key: jax.Array,
        progress: Progress,
    ) -> tuple[Float[Array, ""], Out]:
        """Both directions summed, 0 to 8 (the released code's value is this less 4)."""
        x = jnp.concatenate(batch["views"])
        online_key, target_key = jax.random.split(key)
        stats = state.batch_stats
        z, new = self.project(
            encoder,
            {"encoder": params["encoder"], "projector": params["head"]["projector"]},
            {"encoder": stats["encoder"], "projector": stats["head"]["projector"]},
            x,
            online_key,
        )
        prediction, predictor_stats = apply_each(
            self.head(),
            params["head"]["predictor"],
            stats["head"]["predictor"],
            z,
            online_key,
        )
        target, target_stats = self.project(
            encoder, state.aux["params"], state.aux["batch_stats"], x, target_key
        )
        target = jax.lax.stop_gradient(target)
        loss = regression_loss(prediction, target[::-1]).sum()
        head_stats = {"projector": new["projector"], "predictor": predictor_stats}
        aux = {"params": state.aux["params"], "batch_stats": target_stats}
        metrics = {
            "chance": jnp.float32(4.0),  # of vectors that are orthogonal, as random ones nearly are
            "tau": self.momentum(progress),
            **embedding_gauges(l2_normalise(z[0])),
        }
        return loss, Out({"encoder": new["encoder"], "head": head_stats}, aux, metrics)

    def momentum(self, progress: Progress) -> Float[Array, ""]:
        """The target's momentum after this step (paper §3.3; `byol_updates.py` as run)."""
        as_meant = self.tau_schedule is TauSchedule.RUN
        turn = progress.fraction if as_meant else progress.epoch
        return 1.0 - (1.0 - self.tau) * (jnp.cos(jnp.pi * turn) + 1.0) / 2.0

    def after_update(self, state: TrainState, progress: Progress) -> TrainState:
        """The target follows encoder and projector."""
        student = {
            "encoder": state.params["encoder"],
            "projector": state.params["head"]["projector"],
        }
        teacher = ema(state.aux["params"], student, self.momentum(progress))
        return state.replace(aux={**state.aux, "params": teacher})
