"""A kNN score of an encoder that is being trained."""

from collections.abc import Callable
from functools import partial

from jax.sharding import Mesh

from ctssl_jax import data
from ctssl_jax.augment import Intensity
from ctssl_jax.config import ProbeConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.cases import case_word, plural
from ctssl_jax.errors import ConfigError
from ctssl_jax.frozen.classifiers import fit_knn
from ctssl_jax.frozen.features import features, make_embed
from ctssl_jax.methods.base import TrainState
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run import leakage
from ctssl_jax.scores import classification_metrics


def make_probe(
    config: ProbeConfig,
    encoder: ResNet,
    intensity: Intensity,
    mesh: Mesh,
    accept_leakage: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Callable[[TrainState, int], dict[str, float]]:
    """The kNN score, on validation, of an encoder that is being trained.

    Args:
      config: the labelled dataset, k and the view; `every` is for the caller.
      encoder: of the run, as `intensity`.
      intensity: how slices become network input.
      mesh: where the run's state lies.
      accept_leakage: whether the labelled dataset may leak between its splits.
      check: called at every batch; may raise.

    Returns:
      `probe(state, step)`, which gives `knn_auc` and `knn_accuracy` and leaves the state as it is.
      All calls share one compiled program.

    Raises:
      UserError: the dataset will not do; found here, before any training.
    """
    dataset = data.open_dataset(config.path)
    data.require_canvas(dataset, config.canvas, "probe.canvas")
    leakage.require_audit(dataset, accept_leakage)
    data.require_labels(dataset, "train", "val")
    cases, classes = len(data.read_cases(dataset, "train")), len(dataset.classes)
    if config.k > cases:
        word = plural(case_word(dataset.manifest))
        raise ConfigError(f"probe.k={config.k}: {dataset.name} has {cases} training {word}")
    embed = make_embed(encoder, intensity, dataset.intensity, config.size, mesh)
    reading = DataConfig(path=config.path, canvas=config.canvas)

    def probe(state: TrainState, step: int) -> dict[str, float]:
        now = partial(embed, state.params["encoder"], state.batch_stats["encoder"])
        train, val = (
            features(now, dataset, reading, split, mesh, check).of_cases(
                data.read_cases(dataset, split)
            )
            for split in ("train", "val")
        )
        scores = fit_knn(train, classes, config.k).predict(val.x)
        found = classification_metrics(val.labels, scores)
        return {"knn_auc": found["auc"], "knn_accuracy": found["accuracy"]}

    return probe
