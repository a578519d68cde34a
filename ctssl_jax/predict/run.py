"""What the command does: scans in, tables and pictures out."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax import data
from ctssl_jax.augment import ViewGroup
from ctssl_jax.config import EncoderConfig, FinetuneConfig
from ctssl_jax.config_record import digest
from ctssl_jax.data import DataConfig, Dataset
from ctssl_jax.dataset.cases import case_word, plural
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.hosts import distributed
from ctssl_jax.interop import weights
from ctssl_jax.methods import Supervised
from ctssl_jax.predict import PASSED_ON, earlier, external, tables
from ctssl_jax.predict.embeddings import draw_neighbours, write_features
from ctssl_jax.predict.network import as_state, case_names, embed_splits, say
from ctssl_jax.predict.pictures import draw_case
from ctssl_jax.predict.scans import Preparation, prepared, require_canvas, require_same_kind
from ctssl_jax.run import folder as run_folder
from ctssl_jax.run import leakage
from ctssl_jax.run.likeness import read_reference
from ctssl_jax.run.restore import FineTuned, read_fine_tuned


def predict(flags: argparse.Namespace) -> None:
    """Writes cases.csv, slices.csv, pictures, and with labels results.json.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    model = read_fine_tuned(flags.run)
    dataset = _dataset(flags, model.data, model.config.data.canvas)
    require_same_kind(dataset, model.data)
    threshold = tables.choose_threshold(model, flags.threshold_by, flags.threshold_at)
    state = as_state(model.params, model.batch_stats)
    seen = embed_splits(model.config, model.encoder, dataset, state)
    names = case_names(seen)
    said = [say(model.config, model.encoder, dataset, state, one) for one in seen]
    found = list(zip(seen, said, names, strict=True))
    chances = [[float(own.probabilities[-1]) for own in of] for of in said]
    drawn = _chosen(flags.pictures, names, chances)
    reference = read_reference(model.run)
    earlier.take_predictions(flags.out)
    unlike = tables.write_cases(
        flags.out / earlier.CASES, model, found, threshold, reference, dataset.classes
    )
    tables.write_slices(flags.out / earlier.SLICES, dataset, found)
    for split, place in drawn:
        path = flags.out / earlier.PICTURES / f"{names[split][place]}.png"
        own = said[split][place]
        draw_case(path, model, dataset, seen[split], place, own, flags.slices)
    learnt = leakage.learnt_of(model.run, dataset)
    word = plural(case_word(dataset.manifest))
    by = f"{threshold.value:.3g}, " if not np.isnan(threshold.value) else ""
    distributed.say(
        f"{sum(map(len, names)):,} {word}: {flags.out / earlier.CASES}; called by {by}"
        f"{threshold.chosen}"
    )
    for line in _notes(dataset, reference is not None, unlike, learnt, word):
        distributed.say(line)
    if dataset.classes:
        _test(flags.out, model, dataset, list(zip(seen, said, strict=True)), threshold, learnt)


def features(flags: argparse.Namespace) -> None:
    """Writes features.npz and features.csv of any run's encoder, and neighbours.

    Raises:
      UserError: one of its kinds, with the line to show.
    """
    found = weights.read(flags.run)
    recipe, known = found.recipe, found.data or {}
    dataset = _dataset(flags, known, recipe.canvas)
    if known and dataset.intensity != recipe.kind:
        distributed.say(
            f"note: the encoder was trained on {recipe.kind}, these slices are {dataset.intensity}"
        )
    view = ViewGroup(size=recipe.size, interpolation=recipe.interpolation)
    config = FinetuneConfig(
        data=DataConfig(canvas=recipe.canvas, transpose=recipe.transpose),
        intensity=recipe.intensity,
        encoder=EncoderConfig(depth=found.depth),
        method=Supervised(classes=2, view=view),
    )
    encoder = config.encoder.build(config.precision)
    state = as_state(found.params, found.batch_stats)
    seen = embed_splits(config, encoder, dataset, state)
    names = case_names(seen)
    drawn = _chosen(flags.neighbours, names, None)
    earlier.take_features(flags.out)
    write_features(flags.out, seen, names)
    word = plural(case_word(dataset.manifest))
    distributed.say(f"features of {sum(map(len, names)):,} {word}: {flags.out / earlier.ARRAYS}")
    for split, place in drawn:
        draw_neighbours(flags.out, config, dataset, seen, names, (split, place))


def _dataset(flags: argparse.Namespace, known: dict[str, Any], canvas: int) -> Dataset:
    """The scans, prepared; the folder of the results is there."""
    if (flags.out / "manifest.json").exists():
        raise ConfigError(f"--out={flags.out}: is a dataset folder: give one of its own")
    earlier.require_own(flags.out)
    if flags.data:
        found = data.open_dataset(flags.data)
        require_canvas(found, canvas)
    elif not flags.source.exists():
        raise DataError(f"--source={flags.source} does not exist")
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out={flags.out} cannot be made: {error.strerror}") from None
    if flags.data:
        return found
    passed = [f"--{name}={value}" for name in PASSED_ON if (value := getattr(flags, name))]
    preparation = Preparation(flags.source, canvas, passed, flags.show_paths)
    return prepared(flags.out, preparation, known)


def _chosen(
    asked: str, names: list[list[str]], chances: list[list[float]] | None
) -> list[tuple[int, int]]:
    """Split and place of the cases that are to be drawn.

    Raises:
      ConfigError: there is no such case.
    """
    places = {
        name: (split, place) for split, of in enumerate(names) for place, name in enumerate(of)
    }
    if asked.isdecimal() and chances is not None and asked not in places:
        by_chance = sorted(places.values(), key=lambda at: -chances[at[0]][at[1]])
        return by_chance[: int(asked)]
    words = [word.strip() for word in asked.split(",") if word.strip()]
    for word in words:
        if word not in places:
            raise ConfigError(f"no case {word}: cases.csv or features.csv lists them")
    return [places[word] for word in words]


def _notes(dataset: Dataset, known: bool, unlike: int, learnt: Any, word: str) -> list[str]:
    """What a reader of the tables must know."""
    notes = []
    if rejected := sum(dataset.manifest.get("rejected", {}).values()):
        notes.append(f"{rejected:,} images were rejected: {dataset.path / 'rejected.csv'} says why")
    if not known:
        notes.append("note: the run is of an older version: what is unlike its data is not told")
    if unlike:
        notes.append(
            f"{unlike:,} {word} are unlike those that the network was chosen on (column unlike): "
            "do not trust what it says of them"
        )
    if learnt == leakage.UNKNOWN:
        notes.append("note: the run is older: whether it has learnt from these is not known")
    elif isinstance(learnt, dict) and any(learnt.values()):
        counts = ", ".join(f"{count} {name}" for name, count in learnt.items() if count)
        notes.append(f"WARNING: the network has learnt from some of these ({counts})")
    return notes


def _test(
    out: Path, model: FineTuned, dataset: Dataset, found: Any, threshold: Any, learnt: Any
) -> None:
    """Scores labelled scans, as a run that the report reads."""
    of = external.scored(model, dataset, found)
    if len(set(of.labels.tolist())) < 2:
        distributed.say("the labels are of a single class: nothing can be scored")
        return
    results = external.results(model, dataset, of, threshold, learnt)
    values = {"run": model.record["hash"], "data": dataset.fingerprint}
    record = {"type": earlier.KIND, "config": values, "hash": digest(values)}
    run_folder.write_json(out / "config.json", record)
    told = ("name", "fingerprint", "intensity", "classes", "splits", "case", "cases")
    known = {key: dataset.manifest[key] for key in told if key in dataset.manifest}
    run_folder.write_json(out / "data.json", known)
    run_folder.write_results(out, results)
    estimate, low, high = results["intervals"]["auc"]
    ends = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else ""
    kind = "external test" if results["external"] else "test on the run's own dataset"
    distributed.say(
        f"{kind}: AUC {estimate:.3f}{ends} on {len(of.labels)} {plural(results['case'])} of "
        f"{results['test']['patients']} patients"
    )
