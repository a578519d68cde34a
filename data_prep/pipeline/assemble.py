"""Step 4 of a preparation: shards, and the dataset folder that they are put together to."""

import functools
import hashlib
import operator
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ctssl_jax import __version__
from ctssl_jax.dataset.histogram import Tally
from ctssl_jax.dataset.manifest import FORMAT
from ctssl_jax.dataset.signatures import load_file, save_signatures
from ctssl_jax.errors import StorageError
from data_prep.pipeline import records
from data_prep.pipeline.plan import SplitPlan
from data_prep.pipeline.progress import Progress
from data_prep.pipeline.runners import GaveUp, Runner
from data_prep.pipeline.work import Context, save_tally, write_shard

Manifest = dict[str, Any]


def write(context: Context, runner: Runner, plan: Mapping[str, SplitPlan]) -> None:
    """Writes the shards that are not there yet."""
    shards = [shard for split in plan.values() for shard in split.shards]
    progress = Progress("shards", len(shards))
    for _, slices in runner.run(write_shard, context, shards):
        if isinstance(slices, GaveUp):
            raise StorageError(f"a shard cannot be written ({slices.reason}): repeat the command")
        progress.step(1, slices or 0)


def assemble(context: Context, plan: Mapping[str, SplitPlan], folder: Path) -> Manifest:
    """Puts the dataset folder together; returns its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / records.NAME / records.VERSION
    for made in (target, folder / "signatures", folder / "statistics"):
        made.mkdir(parents=True)
    source, classes = context.source, len(context.source.classes)
    statistics = {}
    for split, planned in plan.items():
        shards = [context.shards / shard.digest for shard in planned.shards]
        signatures = (load_file(path.with_suffix(".signatures.npy")) for path in shards)
        save_signatures(folder / "signatures" / f"{split}.npy", signatures)
        tallies = [_tally(path.with_suffix(".statistics.npz")) for path in shards]
        tally = functools.reduce(operator.add, tallies)
        save_tally(folder / "statistics" / f"{split}.npz", tally)
        statistics[split] = tally.summary()
        for number, path in enumerate(shards):
            name = records.shard_name(split, number, len(shards))
            os.replace(path.with_suffix(".array_record"), target / name)
    records.write_metadata(
        target,
        {split: [(s.slices, s.size) for s in planned.shards] for split, planned in plan.items()},
    )
    digests = sorted(f"{split} {digest}" for split, p in plan.items() for digest in p.digests)
    return {
        "format": FORMAT,
        "name": source.name,
        "source_kind": source.kind,
        "intensity": source.intensity,
        "classes": list(source.classes),
        **({"canvas": context.canvas} if context.canvas else {}),
        "splits": {split: p.summary(classes) for split, p in plan.items()},
        "cases": {split: p.cases_summary(classes) for split, p in plan.items() if p.cases},
        "records": f"{records.NAME}/{records.VERSION}",
        "statistics": statistics,
        "fingerprint": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        "key": records.key_mark(context.key),
        "software": {"ctssl_jax": __version__},
        **({"origin": asdict(source.origin)} if source.origin else {}),
    }


def _tally(path: Path) -> Tally:
    with np.load(path, allow_pickle=False) as arrays:
        return Tally.from_arrays(arrays)
