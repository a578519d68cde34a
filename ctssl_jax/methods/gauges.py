"""Gauges that say whether a method learns, as numbers; `run/health.py` puts them into words.

A method reports them among its metrics, under these names; the loop knows no method.

    embedding_std       spread of the embeddings: 1 = all over the sphere, 0 = all equal
    effective_rank      directions that they use
    chance              the loss of an encoder that knows nothing
    nothing_predicted   the loss of giving each patch its mean: 1, but for patches of one value
                        (SparK)
    prototypes_used     of `prototypes`, by the predictions of a batch (SwAV)
    contrast_accuracy   share of views that find their partner (MoCo, SimCLR)
    queue_age_epochs    age of the oldest key in the queue (MoCo)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
