"""Nearest neighbours of an evaluation against cosines by hand, and the tiles that are drawn."""

import csv

import numpy as np
import pytest
from PIL import Image

from ctssl_jax import data
from ctssl_jax.config import EvaluateConfig
from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.frozen import neighbours
from ctssl_jax.frozen.features import Features
from ctssl_jax.frozen.neighbours import NEAREST, QUERIES, TILE, draw_neighbours, nearest
from ctssl_jax.run.pictures import GAP

pytestmark = pytest.mark.usefixtures("one_device", "tiny_encoder")


def random_features(dataset, split, seed, rows=None):
    labels, patients = data.read_labels(dataset, split)
    x = np.random.default_rng(seed).normal(size=(len(labels), 6)).astype(np.float32)
    found = Features(x, labels, patients, np.arange(len(labels), dtype=np.int32))
    return found if rows is None else found.take(rows)


def test_the_nearest_are_those_of_largest_cosine():
    rng = np.random.default_rng(0)
    train = Features(*(rng.normal(size=(20, 4)),) + (np.zeros(20, int),) * 3)
    queries = Features(*(rng.normal(size=(3, 4)),) + (np.zeros(3, int),) * 3)
    distances, found = nearest(train, queries, 4)
    for query, distance, places in zip(queries.x, distances, found, strict=True):
        lengths = np.linalg.norm(train.x, axis=1) * np.linalg.norm(query)
        cosine = train.x @ query / lengths
        np.testing.assert_array_equal(places, np.argsort(-cosine)[:4])
        np.testing.assert_allclose(distance, 1 - np.sort(cosine)[::-1][:4], atol=1e-12)


def test_tiles_and_rows_are_the_query_and_its_neighbours(tmp_path, phantom_path, monkeypatch):
    dataset = data.open_dataset(phantom_path)
    subset = np.array([3, 8, 9, 14, 20, 27, 31])  # rows of a part of the training split
    train = random_features(dataset, "train", 0, subset)
    val = random_features(dataset, "val", 1)
    opened = []
    source = data.Dataset.source
    monkeypatch.setattr(
        data.Dataset, "source", lambda self, split: opened.append(split) or source(self, split)
    )
    config = EvaluateConfig()
    draw_neighbours(train, val, dataset, config, tmp_path)
    assert set(opened) == {"train", "val"}  # what people look at is not the test
    with (tmp_path / "figures/neighbours.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == QUERIES * (1 + NEAREST)
    picture = np.asarray(Image.open(tmp_path / "figures/neighbours.png"))
    assert picture.shape == (
        QUERIES * TILE + (QUERIES - 1) * GAP,
        (1 + NEAREST) * TILE + NEAREST * GAP,
    )
    low, high = config.intensity.window_hu
    for row in rows:
        query, rank, record = (int(row[name]) for name in ("query", "rank", "record"))
        split = "train" if rank else "val"
        stored = source(dataset, split)[record]
        assert int(row["label"]) == stored["label"]
        assert record in subset if rank else record == [0, 1, 2, 4, 5, 7][query]
        unit = np.clip((to_canvas(stored["image"], TILE) - low) / (high - low), 0, 1)
        top, left = query * (TILE + GAP), rank * (TILE + GAP)
        tile = picture[top : top + TILE, left : left + TILE]
        assert np.abs(tile - unit * 255).max() <= 0.51
    distances, places = nearest(train, val.take(np.array([4])), NEAREST)
    of_fourth = [row for row in rows if row["query"] == "3"]
    assert [int(row["record"]) for row in of_fourth] == [4, *train.records[places[0]]]
    np.testing.assert_allclose(
        [float(row["distance"]) for row in of_fourth[1:]], distances[0], atol=1e-6
    )
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "neighbours.csv",
        "neighbours.png",
    ]


def test_few_slices_make_a_small_picture(tmp_path, phantom_path):
    dataset = data.open_dataset(phantom_path)
    train = random_features(dataset, "train", 0, np.array([1, 2]))
    val = random_features(dataset, "val", 1, np.array([0]))
    draw_neighbours(train, val, dataset, EvaluateConfig(), tmp_path)
    assert len((tmp_path / "figures/neighbours.csv").read_text().splitlines()) == 1 + 3
    assert neighbours.QUERIES > 1
