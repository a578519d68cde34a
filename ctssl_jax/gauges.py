"""Gauges that say whether a method learns, as numbers and in plain words.

A method reports them among its metrics, under the names below; the loop reads them aloud and
knows no method. `Watch` names what is wrong at the second logged line at which it holds, that is
within `2 * log_every` steps.

    embedding_std       spread of the embeddings: 1 = all over the sphere, 0 = all equal
    effective_rank      directions that they use
    chance              the loss of an encoder that knows nothing
    prototypes_used     of `prototypes`, by the predictions of a batch (SwAV)
    contrast_accuracy   share of views that find their partner (MoCo, SimCLR)
    queue_age_epochs    age of the oldest key in the queue (MoCo)
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CONFIRM = 2  # logged lines in a row that a warning takes
COLLAPSED_STD = 0.1
COLLAPSED_RANK = 1.1
CHANCE_SHARE = 0.98  # a loss above this share of chance has learnt nothing
PATIENCE = 5  # logged lines before chance is a warning: every run starts there
UNUSED_SHARE = 0.05
OLD_QUEUE_EPOCHS = 0.5


def embedding_gauges(z: Float[Array, "b d"]) -> dict[str, Float[Array, ""]]:
    """Spread and effective rank of embeddings of length 1, without a gradient.

    `embedding_std` is sqrt(d) times the mean over dimensions of the standard deviation over the
    batch: 1 / sqrt(d) is what a dimension has on an evenly covered sphere (Chen & He 2021,
    SimSiam, §4.1). `effective_rank` is the participation ratio of the covariance C,
    tr(C)^2 / tr(C^2), between 1 and min(b - 1, d); unlike an entropy of singular values it needs
    no decomposition.
    """
    z = jax.lax.stop_gradient(z)
    std = z.std(axis=0).mean() * z.shape[1] ** 0.5
    centred = z - z.mean(axis=0)
    gram = centred @ centred.T if z.shape[0] < z.shape[1] else centred.T @ centred
    rank = jnp.square(jnp.trace(gram)) / jnp.maximum(jnp.square(gram).sum(), 1e-20)
    return {"embedding_std": std, "effective_rank": rank}


def perplexity(probabilities: Float[Array, "... k"]) -> Float[Array, "..."]:
    """exp(entropy): how many of the k are in use."""
    p = jnp.clip(probabilities, 1e-12)
    return jnp.exp(-(p * jnp.log(p)).sum(axis=-1))


def in_words(values: Mapping[str, float]) -> str:
    """The gauges among the metrics, for people; nothing where there are none."""
    words = []
    if "embedding_std" in values:
        words.append(
            f"spread {values['embedding_std']:.2f} of 1, rank {values['effective_rank']:.1f}"
        )
    if "chance" in values:
        words.append(f"loss {values['chance'] - values['loss']:+.2f} below chance")
    if "contrast_accuracy" in values:
        words.append(f"{values['contrast_accuracy']:.0%} find their partner")
    if "prototypes_used" in values:
        words.append(f"{values['prototypes_used']:.0f} of {values['prototypes']:.0f} prototypes")
    if "queue_age_epochs" in values:
        words.append(f"queue {values['queue_age_epochs']:.2f} epochs old")
    return ", ".join(words)


@dataclasses.dataclass
class Watch:
    """Reads the logged metrics of a run and says once what is wrong, and when it is over."""

    _lines: int = 0
    _held: dict[str, int] = dataclasses.field(default_factory=dict)

    def read(self, values: Mapping[str, float]) -> list[str]:
        """The lines to show after this row of metrics."""
        self._lines += 1
        said = []
        for name, (holds, warning, over) in self._findings(values).items():
            before = self._held.get(name, 0)
            self._held[name] = before + 1 if holds else 0
            if self._held[name] == CONFIRM:
                said.append(f"WARNING: {warning}")
            elif before >= CONFIRM and not holds:
                said.append(f"no longer: {over}")
        return said

    def _findings(self, values: Mapping[str, float]) -> dict[str, tuple[bool, str, str]]:
        """Each condition whose metrics are there: whether it holds, and how to say so."""
        found = {}
        std, rank = values.get("embedding_std"), values.get("effective_rank")
        if std is not None:
            found["collapse"] = (
                std < COLLAPSED_STD,
                f"collapse: all embeddings are nearly equal (spread {std:.3f} of 1); stop, lower "
                "config.optim.lr or enlarge the batch",
                "collapse",
            )
        if rank is not None:
            found["rank"] = (
                rank < COLLAPSED_RANK,
                f"collapse: the embeddings lie on a line (effective rank {rank:.1f}); stop, lower "
                "config.optim.lr or enlarge the batch",
                "embeddings on a line",
            )
        if "chance" in values:
            loss, chance = values["loss"], values["chance"]
            found["chance"] = (
                self._lines > PATIENCE and loss > CHANCE_SHARE * chance,
                f"no better than chance: loss {loss:.3f} where guessing gives {chance:.3f}; the "
                "views may share too little, or config.optim.lr does not fit",
                "loss at chance",
            )
        if "prototypes_used" in values:
            used, prototypes = values["prototypes_used"], values["prototypes"]
            found["prototypes"] = (
                used < UNUSED_SHARE * prototypes,
                f"only {used:.0f} of {prototypes:.0f} prototypes are in use; lower "
                "config.method.prototypes, or enlarge the batch or the queue",
                "prototypes unused",
            )
        if "queue_age_epochs" in values:
            age = values["queue_age_epochs"]
            found["queue"] = (
                age > OLD_QUEUE_EPOCHS,
                f"the queue spans {age:.2f} epochs: old keys, and other views of most slices "
                "among the negatives; lower config.method.queue_size",
                "queue too long",
            )
        return found
