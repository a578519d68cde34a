"""Scans of which 2 slices in 24 hold a lesion: bags find it, and the maps lie on it.

The encoder is a small one, and the lesion a bright square in noise, so that this takes a minute.
"""

import importlib

import numpy as np
import pytest
from flax import linen as nn
from memory import write_slices

from ctssl_jax import data, finetune
from ctssl_jax.config import EncoderConfig
from ctssl_jax.log import read_metrics
from ctssl_jax.methods.cases import Learn, Pooling
from ctssl_jax.nn.normalisation import BatchNorm
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.predict.network import as_state, embed_splits, say
from ctssl_jax.predict.pictures import slice_maps
from ctssl_jax.run.restore import read_fine_tuned
from data_prep.source import Slice

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]
SLICES, ILL, SIZE, LESION = 24, 2, 32, 6
BRIGHTER, NOISE = 140, 120
"""In HU: the lesion, over the mean; the standard deviation of what is around it."""
MARGIN = 0.2
"""By which the test AUC of bags is above that of inherited labels."""


class Small(ResNet):
    """Four stages of one convolution; the last map is a quarter of the input."""

    @property
    def widths(self):
        return (16, 24, 32, 32)

    @nn.compact
    def __call__(self, x, train=False):
        maps = []
        shapes = zip(self.widths, (3, 3, 3, 1), (2, 2, 1, 1), strict=True)
        for i, (width, size, stride) in enumerate(shapes):
            conv = nn.Conv(width, (size, size), (stride, stride), use_bias=False, name=f"conv{i}")
            x = BatchNorm(use_running_average=not train, name=f"bn{i}")(conv(x))
            x = nn.relu(x)
            maps.append(x)
        return tuple(maps)


def lesion(number):
    """Which slices of a scan hold the lesion, and its corner; None of an even number."""
    if number % 2 == 0:
        return range(0), (0, 0)
    rng = np.random.default_rng([number, 1])
    start = int(rng.integers(SLICES - ILL + 1))
    return range(start, start + ILL), tuple(rng.integers(4, SIZE - LESION - 4, 2).tolist())


def scan(number):
    rng = np.random.default_rng(number)
    ill, (row, column) = lesion(number)
    for k in range(SLICES):
        image = rng.normal(-100, NOISE, (SIZE, SIZE))
        if k in ill:
            image[row : row + LESION, column : column + LESION] += BRIGHTER
        name = f"p{number}"
        # The position says which scan and slice it is; the labels of slices nobody knows.
        where = float(SLICES * number + k)
        yield Slice(image.astype(np.int16), name, name, k, where, label=number % 2, case=name)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    counts = {"train": range(60), "val": range(60, 84), "test": range(84, 132)}
    splits = {
        split: [item for number in numbers for item in scan(number)]
        for split, numbers in counts.items()
    }
    return write_slices(tmp_path_factory.mktemp("data") / "planted", splits, intensity="hu")


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory):
    """Runs by name, all on the same bags for as many steps."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderConfig, "build", lambda self, precision: Small())
        for name, (pooling, learn) in {
            "attention": (Pooling.ATTENTION, Learn.CASES),
            "inherited": (Pooling.MEAN, Learn.SLICES),
        }.items():
            config = importlib.import_module("configs.finetune_cases").get_config("smoke")
            config.data.path, config.data.canvas = str(planted), SIZE
            config.method.view.size, config.method.slices = SIZE, SLICES
            config.method.pooling, config.method.learn = pooling, learn
            config.batch_size, config.steps, config.validate_every = 8, 240, 40
            config.freeze.epochs, config.optim.lr = 0, 3e-3
            config.validate()
            workdir = tmp_path_factory.mktemp(name) / "run"
            runs[name] = (finetune.run(config, workdir), workdir)
        yield runs


def test_bags_find_what_inherited_labels_do_not(trained):
    found = {name: results["test"]["auc"] for name, (results, _) in trained.items()}
    last = {
        name: next(row["val_auc"] for row in reversed(read_metrics(run)) if "val_auc" in row)
        for name, (_, run) in trained.items()
    }
    print("test AUC:", found, "; on validation after the last step:", last)
    assert found["attention"] > 0.9
    assert found["attention"] > found["inherited"] + MARGIN


def test_attention_and_maps_lie_on_the_lesion(trained, planted):
    model = read_fine_tuned(trained["attention"][1])
    dataset = data.open_dataset(planted)
    state = as_state(model.params, model.batch_stats)
    (seen,) = [
        one
        for one in embed_splits(model.config, model.encoder, dataset, state)
        if one.split == "test"
    ]
    said = say(model.config, model.encoder, dataset, state, seen)
    positions = data.read_fields(dataset, "test").positions
    first, mass, area, peak = [], [], [], []
    for place, own in enumerate(said):
        if seen.cases.labels[place] == 0:
            continue
        number = int(positions[seen.cases.rows[place][0]]) // SLICES
        ill, (row, column) = lesion(number)
        top = own.top(1)
        first.append(top[0] in ill)
        if top[0] not in ill:
            continue
        _, heat = slice_maps(model, dataset, seen, place, own, top)
        wide = (
            slice(max(row - 4, 0), row + LESION + 4),
            slice(max(column - 4, 0), column + LESION + 4),
        )
        peak.append(heat[0][wide].max() == heat[0].max())
        mass.append(heat[0][wide].sum() / max(heat[0].sum(), 1e-9))
        area.append(heat[0][wide].size / heat[0].size)
    found = [float(np.mean(values)) for values in (first, peak, mass, area)]
    print("first slice {:.2f}, peak {:.2f}, mass {:.2f} in {:.2f} of the slice".format(*found))
    assert found[0] > 0.9, "the slice that adds most holds the lesion"
    assert found[1] > 0.8, "the strongest place of the map lies on it"
    assert found[2] > 2 * found[3], "so does its mass, more than by chance"
