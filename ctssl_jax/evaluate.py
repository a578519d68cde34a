"""Frozen features: what an encoder is worth before any fine-tuning, by kNN and by a linear probe.

A feature is the global average of the last stage's map, of a case the mean over its slices; the
view is the whole slice, BatchNorm is in evaluation mode; a random encoder's statistics are measured
on the training subset first. With `features=radiomics` a slice has the features of
`frozen.radiomics`, and there is no encoder. Two classifiers read the features, both scikit-learn's:

knn     The k training cases of smallest cosine distance d = 1 - cos vote for their class, each
        with weight 1 / d; a score is a class's share of the votes. Training slices at distance 0,
        where there are any among the k, vote alone and equally. Features are not centred.
linear  Logistic regression (softmax) with an L2 penalty on features standardised by the mean and
        standard deviation of the training subset; C is the inverse strength of the penalty.

k and C are chosen on validation; the test split is opened once, by what was chosen. Nothing is
fitted again on training and validation together. Both are deterministic, in float64.

Of an unlabelled dataset the features of `data.split` are written and nothing is scored:
`data_prep.duplicates --method=embedding` takes them.
"""

import functools
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from numpy.typing import ArrayLike

from ctssl_jax import data
from ctssl_jax.augment import Interpolation
from ctssl_jax.config import EvaluateConfig, FeatureKind
from ctssl_jax.data import DataConfig
from ctssl_jax.dataset.cases import SLICE, CaseTable, case_word, plural
from ctssl_jax.errors import ConfigError
from ctssl_jax.frozen.classifiers import Choice, choose, fit_knn, fit_linear
from ctssl_jax.frozen.features import (
    Features,
    features,
    make_embed,
    make_radiomics,
    save_embeddings,
)
from ctssl_jax.frozen.neighbours import draw_neighbours
from ctssl_jax.frozen.store import Compute, FeatureStore
from ctssl_jax.hosts import distributed, sharding
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.methods.base import PyTree, init_encoder
from ctssl_jax.nn.normalisation import MOMENTUM
from ctssl_jax.nn.resnet import STRIDE, ResNet
from ctssl_jax.run import batch_statistics
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run.checkpoint import latest_step, load_encoder
from ctssl_jax.run.encoder import require_finished, weights_digest
from ctssl_jax.run.opening import open_dataset, open_labelled, resolved, results_header
from ctssl_jax.scores import Scored, write_predictions

SYMBOLS = {"knn": "k", "linear": "C"}  # the methods, and what each chooses on validation


def run(
    config: EvaluateConfig,
    workdir: Path,
    supervisor: Supervisor | None = None,
    store: FeatureStore | None = None,
) -> dict[str, Any]:
    """Scores an encoder's features; repeating it in the same `workdir` returns what it found.

    Args:
      config: of the run.
      workdir: the run folder.
      supervisor: of the process.
      store: features that runs before this one have computed.

    Returns:
      The content of `results.json`.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    if not data.open_dataset(config.data.path).classes:
        return _run_unlabelled(config, workdir, supervisor or Supervisor())
    beat, store = (supervisor or Supervisor()).beat, store or FeatureStore()
    opened = open_labelled(config)
    config, dataset, (subset, held) = opened.config, opened.dataset, opened.drawn
    whose = _whose(config, dataset)
    known = store.knows(whose, (config.data.split, config.val_split, config.test_split))
    weights = None if known else _encoder_weights(config)
    word = case_word(dataset.manifest)
    ks = _neighbours(config, len(subset.cases), word)
    if run_folder.open_run(workdir, config, dataset, audit=opened.audit, encoder=opened.encoder):
        return _found_before(config, workdir)
    run_folder.write_subset(workdir, subset.record(config, held))

    classes = len(dataset.classes)
    distributed.say(
        f"{config.task}: {config.arm}, {subset.counted(word, 'training')}, {classes} classes"
    )
    if config.encoder_run:
        for line in run_folder.notes(config.encoder_run, config.intensity):
            distributed.say(line)
    compute = _compute(config, dataset, weights, subset.rows, beat)

    def read(split: str, cases: CaseTable) -> Features:
        return store.features(whose, split, compute).of_cases(cases)

    train, val = read(config.data.split, subset.cases), read(config.val_split, held.cases)
    knn = partial(fit_knn, train, classes)
    linear = partial(fit_linear, train, classes, config.linear_iterations)
    choices = {
        "knn": choose(knn, ks, val, config.select_by),
        "linear": choose(linear, config.linear_c, val, config.select_by),
    }
    for name, choice in choices.items():
        distributed.say(_choice_line(name, choice, config))

    tested = data.read_cases(dataset, config.test_split)
    test = read(config.test_split, tested)
    results = {**results_header(opened, workdir), "test_reads": 1}
    for name, choice in choices.items():
        scored = Scored(test.labels, test.patients, choice.fitted.predict(test.x))
        results[name] = {
            SYMBOLS[name]: choice.setting,
            "tried": [[setting, score] for setting, score in choice.tried.items()],
            "converged": choice.fitted.converged,
            "val": choice.val.metrics(),
            "test": scored.metrics(tested),
        }
        predictions = {config.val_split: choice.val, config.test_split: scored}
        if distributed.is_first():
            cases = {config.val_split: held.cases, config.test_split: tested}
            write_predictions(workdir / f"predictions_{name}.csv", predictions, cases)
    if distributed.is_first():
        save_embeddings(workdir / "embeddings.npz", train=train, val=val, test=test)
        if config.pictures:
            draw_neighbours(train, val, dataset, config, workdir)
    run_folder.write_results(workdir, results)
    distributed.say(_test_line(results))
    return results


def _run_unlabelled(
    config: EvaluateConfig, workdir: Path, supervisor: Supervisor
) -> dict[str, Any]:
    """Writes the features of `data.split`."""
    known = require_finished(config.encoder_run, config.accept_unfinished)
    dataset, audit = open_dataset(config)
    config = resolved(config, dataset)
    weights = _encoder_weights(config)
    if run_folder.open_run(workdir, config, dataset, audit=audit, encoder=known):
        return _found_before(config, workdir)
    for line in _nothing_drawn(config):
        distributed.say(line)
    split = config.data.split
    rows = np.arange(len(dataset.source(split)))
    compute = _compute(config, dataset, weights, rows, supervisor.beat)
    found = FeatureStore().features(None, split, compute)
    if distributed.is_first():
        save_embeddings(workdir / "embeddings.npz", **{split: found})
    results = {
        "task": config.task,
        "arm": config.arm,
        "encoder_run": run_folder.run_hash(config.encoder_run),
        "encoder": known,
        "scored": False,
        "split": split,
        "slices": len(found.records),
        "data_fingerprint": dataset.fingerprint,
        "config_hash": run_folder.read_json(workdir / "config.json")["hash"],
        "audit": audit,
    }
    run_folder.write_results(workdir, results)
    distributed.say(_test_line(results))
    return results


def _nothing_drawn(config: EvaluateConfig) -> list[str]:
    """A line for each subset that is asked for, where there are no labels to draw by."""
    whole = (("fraction", 1.0), ("count", 0), ("val_count", 0))
    return [
        f"{name}={value} has no effect: without labels all slices of {config.data.split} are taken"
        for name, all_of_it in whole
        if (value := getattr(config, name)) != all_of_it
    ]


def embedded(
    config: EvaluateConfig, dataset: data.Dataset, check: Callable[[], None] = lambda: None
) -> Features:
    """Features of all slices of `data.split`; a random encoder's statistics are of these slices.

    `check` is called at every batch and may raise.

    Raises:
      UserError: there is no such encoder, or it does not fit.
    """
    rows = np.arange(len(dataset.source(config.data.split)))
    compute = _compute(config, dataset, _encoder_weights(config), rows, check)
    return FeatureStore().features(None, config.data.split, compute)


def _encoder_weights(config: EvaluateConfig) -> tuple[PyTree, PyTree] | None:
    """Those of the run, or random ones; None where there is no encoder."""
    if config.features is FeatureKind.RADIOMICS:
        return None
    encoder, channels = config.encoder.build(config.precision), config.intensity.channels
    if config.encoder_run:
        return load_encoder(Path(config.encoder_run), encoder, channels)
    init = sharding.jit_init(lambda key: init_encoder(encoder, key, STRIDE, channels))
    return init(jax.random.key(config.seed))


def _whose(config: EvaluateConfig, dataset: data.Dataset) -> Hashable:
    """What a split's features depend on; None where that is the training subset, too."""
    if config.features is FeatureKind.ENCODER and not _keeps_statistics(config):
        return None
    reading = (config.size, config.data.canvas, config.data.transpose, config.precision)
    # A random encoder is its seed.
    network = (weights_digest(config.encoder_run) or config.seed, repr(config.encoder))
    return (config.features, dataset, *network, *reading, repr(config.intensity))


def _compute(
    config: EvaluateConfig,
    dataset: data.Dataset,
    weights: tuple[PyTree, PyTree] | None,
    rows: Int[np.ndarray, " n"],
    beat: Callable[[], None],
) -> Compute:
    """What gives the features of a split; nothing is compiled or measured before the first."""
    mesh = sharding.make_mesh()

    @functools.cache
    def embed() -> Callable[[jax.Array], ArrayLike]:
        how = (config.intensity, dataset.intensity, config.size, mesh)
        if config.features is FeatureKind.RADIOMICS:
            return make_radiomics(*how)
        encoder = config.encoder.build(config.precision)
        own = weights or _encoder_weights(config)  # none were loaded where the store knew all
        assert own is not None, "there is an encoder"
        settled = _settled(config, dataset, encoder, own, rows, mesh)
        return partial(make_embed(encoder, *how), *sharding.replicate(settled, mesh))

    def compute(split: str) -> Features:
        return _read(embed(), dataset, config.data, split, mesh, beat)

    return compute


def _settled(
    config: EvaluateConfig,
    dataset: data.Dataset,
    encoder: ResNet,
    weights: tuple[PyTree, PyTree],
    rows: Int[np.ndarray, " n"],
    mesh: Mesh,
) -> tuple[PyTree, PyTree]:
    """The weights, those of a random encoder with statistics of the training subset.

    A pre-trained one keeps those it was trained with, as is usual for frozen features: to take the
    task's would be to adapt it. One of so few steps that it has none gets them, too.
    """
    if _keeps_statistics(config):
        return weights
    if config.encoder_run:
        distributed.say(
            f"note: the pre-training is of {latest_step(Path(config.encoder_run))} steps, too few "
            "for BatchNorm's statistics: they are measured on the training subset"
        )
    measure = batch_statistics.make_measure(
        encoder, config.intensity, dataset.intensity, config.size, Interpolation.BICUBIC
    )
    chosen = batch_statistics.chosen_rows(rows, config.bn_images, config.seed)
    params, stats = sharding.replicate(weights, mesh)
    stats = batch_statistics.settled(measure, dataset, config.data, chosen, mesh, params, stats)
    return params, stats


def _keeps_statistics(config: EvaluateConfig) -> bool:
    """Whether features are of the statistics that the encoder came with."""
    pretrained = config.encoder_run and not _is_unsettled(Path(config.encoder_run))
    return bool(pretrained or not config.bn_images)


def _is_unsettled(run: Path) -> bool:
    """Whether more than 1 % of an encoder's running statistics is still what they started as."""
    record = run_folder.read_json(run / "config.json")
    fresh = record.get("type") == "PretrainConfig" and not record["config"].get("encoder_run")
    return fresh and MOMENTUM ** latest_step(run) > 0.01


def _neighbours(config: EvaluateConfig, cases: int, word: str = SLICE) -> list[int]:
    """The k to choose from: those that the training subset can give."""
    ks = [k for k in config.knn_k if k <= cases]
    if not ks:
        raise ConfigError(
            f"knn_k={config.knn_k}: each is more than the {cases} {plural(word)} of the training "
            "subset"
        )
    return ks


def _found_before(config: EvaluateConfig, workdir: Path) -> dict[str, Any]:
    """The results of a finished run, if they are of this encoder."""
    results = run_folder.read_results(workdir)
    # The config leaves out the path of the encoder's run, so its hash cannot tell two apart.
    if results["encoder_run"] != run_folder.run_hash(config.encoder_run):
        raise ConfigError(f"{workdir} evaluated another encoder_run: give another --workdir")
    distributed.say(f"{workdir} is done already; {_test_line(results)}")
    return results


def _read(
    embed: Callable[[jax.Array], ArrayLike],
    dataset: data.Dataset,
    reading: DataConfig,
    split: str,
    mesh: Mesh,
    beat: Callable[[], None],
) -> Features:
    """`features`, with a line that tells; the time of the first split includes compilation."""
    began = time.monotonic()
    found = features(embed, dataset, reading, split, mesh, beat)
    slices = len(found.labels)
    speed = slices / (time.monotonic() - began)
    distributed.say(f"features of {split}: {slices:,} slices, {speed:,.1f} img/s")
    return found


def _choice_line(name: str, choice: Choice, config: EvaluateConfig) -> str:
    tried = ", ".join(f"{setting:g}" for setting in choice.tried)
    return (
        f"{name}: {SYMBOLS[name]} = {choice.setting:g} of {tried}; validation "
        f"{config.select_by.value} {choice.tried[choice.setting]:.3f}"
        + ("" if choice.fitted.converged else "; not converged: raise linear_iterations")
    )


def _test_line(results: dict[str, Any]) -> str:
    if not results.get("scored", True):
        return (
            f"features of {results['slices']:,} slices of {results['split']}; without labels "
            "nothing is scored"
        )
    parts = []
    for name, symbol in SYMBOLS.items():
        test = results[name]["test"]
        parts.append(
            f"{name} AUC {test['auc']:.3f}, F1 {test['f1']:.3f}, accuracy {test['accuracy']:.3f} "
            f"({symbol} = {results[name][symbol]:g})"
        )
    word = plural(results.get("case", SLICE))
    return f"test, {test['n']} {word} of {test['patients']} patients: {'; '.join(parts)}"
