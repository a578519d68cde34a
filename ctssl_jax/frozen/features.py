"""Features of slices by a frozen encoder: what they are, how they are made, the file of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int16, Shaped
from numpy.typing import ArrayLike

from ctssl_jax import data
from ctssl_jax.augment import Intensity, IntensityKind, Interpolation
from ctssl_jax.augment import views as augment
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.cases import CaseTable
from ctssl_jax.errors import DivergedError
from ctssl_jax.files import whole_file
from ctssl_jax.hosts import sharding
from ctssl_jax.hosts.progress import Progress
from ctssl_jax.methods.base import PyTree
from ctssl_jax.nn.resnet import ResNet, pool

Embed = Callable[[PyTree, PyTree, Any], jax.Array]


class Features(NamedTuple):
    """Features of a split, of its slices or of its cases, or of some of them, in their order.

    `records` are row numbers in the split; of a case the smallest of its slices'.
    """

    x: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    records: Int[np.ndarray, " n"]

    def take(self, rows: Int[np.ndarray, " m"]) -> "Features":
        """Those at the given places."""
        return Features(*(part[rows] for part in self))

    def of_cases(self, cases: CaseTable) -> "Features":
        """Those of cases: the mean over the slices of each; of whole splits alone."""
        x = cases.means(self.x, np.arange(len(self.x)))
        return Features(x, cases.labels, cases.patients, cases.records.astype(np.int32))


def joined(found: Sequence[Features]) -> Features:
    """Those of a sum of splits: one after the other, the rows of each after those before it."""
    starts = np.cumsum([0, *(len(each.records) for each in found[:-1])])
    shifted = [
        each._replace(records=each.records + np.int32(start))
        for each, start in zip(found, starts, strict=True)
    ]
    return Features(*(np.concatenate(arrays) for arrays in zip(*shifted, strict=True)))


def save_embeddings(path: Path, **splits: Features) -> None:
    """Writes an NPZ file, whole or not at all, of each split's arrays.

    `SPLIT_features` float32 `[n, d]`; `SPLIT_record` (row number) and `SPLIT_label` int32 `[n]`.
    """
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        arrays[f"{name}_features"] = split.x.astype(np.float32)
        arrays[f"{name}_record"] = split.records.astype(np.int32)
        arrays[f"{name}_label"] = split.labels.astype(np.int32)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def make_embed(
    encoder: ResNet, intensity: Intensity, kind: IntensityKind, size: int, mesh: Mesh
) -> Embed:
    """Compiles `embed(params, batch_stats, image) -> features`, a pure function.

    `image` holds stored values, int16 `[b, h, w]`, split over the devices. The features, float32
    `[b, d]` with d the channels of the last stage, are whole on every device and host.
    """

    def embed(params: PyTree, stats: PyTree, image: Int16[Array, "b h w"]) -> Float[Array, "b d"]:
        view = augment.whole_slices(image, intensity, kind, size, Interpolation.BICUBIC)
        stages = encoder.apply({"params": params, "batch_stats": stats}, view, train=False)
        return pool(jnp.asarray(stages[-1]))

    return jax.jit(embed, out_shardings=sharding.replicated(mesh))


def make_radiomics(
    intensity: Intensity, kind: IntensityKind, size: int, mesh: Mesh
) -> Callable[[jax.Array], Float[np.ndarray, "b d"]]:
    """A function of stored values, as `make_embed`'s, that needs no encoder; see `radiomics`."""
    # SciPy's statistics, a tenth of what a run imports, are for this arm alone.
    from ctssl_jax.frozen.radiomics import radiomics

    def unit(image: Int16[Array, "b h w"]) -> Float[Array, "b s s"]:
        whole = augment.to_unit(image, intensity, kind)
        return jnp.clip(augment.resize(whole, size, Interpolation.BICUBIC), 0.0, 1.0)[..., 0]

    unit = jax.jit(unit, out_shardings=sharding.replicated(mesh))
    return lambda image: radiomics(np.asarray(unit(image)))


def features(
    embed: Callable[[jax.Array], ArrayLike],
    dataset: data.Dataset,
    reading: DataConfig,
    split: str,
    mesh: Mesh,
    check: Callable[[], None] = lambda: None,
) -> Features:
    """Features of every record of a split; `embed` as `make_embed`'s, with its weights.

    `check` is called at every batch and may raise.

    Raises:
      DivergedError: a feature is not finite.
    """
    labels, patients = data.read_labels(dataset, split)
    found, size = [], sharding.round_up(data.EVALUATION_BATCH)
    progress = Progress(split, len(labels))
    for batch in data.evaluation_batches(
        dataset,
        reading,
        split=split,
        batch_size=size,
        indices=None,
        **sharding.process_share(),
    ):
        check()
        progress.batch(size)
        image = sharding.put_batch({"image": batch["image"]}, mesh)["image"]
        found.append(np.asarray(embed(image)))
    x = np.concatenate(found)[: len(labels)]  # the rest is padding of the last batch
    if not np.isfinite(x).all():
        raise DivergedError(
            f"features of {dataset.name}, split {split!r}, are not finite: the encoder has "
            "diverged; give an earlier or another run"
        )
    return Features(x, labels, patients, np.arange(len(labels), dtype=np.int32))
