"""Slices at one size: when a batch is made, or once, when they are prepared."""

import numpy as np
import pytest
from memory import KEY, MemorySource
from PIL import Image

from ctssl_jax import data, evaluate, finetune, pretrain
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from ctssl_jax.data import DataConfig, evaluation_batches, open_dataset
from ctssl_jax.dataset.canvas import to_canvas
from ctssl_jax.errors import ConfigError
from data_prep.phantom import source as phantom
from data_prep.pipeline.prepare import prepare
from data_prep.source import Slice

SHAPES = [(64, 64), (40, 40), (32, 96), (24, 30), (75, 50)]


def test_canvas_is_the_mean_of_cells():
    image = np.random.default_rng(0).integers(-1024, 3000, (64, 96)).astype(np.int16)
    cells = image.reshape(32, 2, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(to_canvas(image, 32), cells, atol=0.501)


def test_canvas_repeats_pixels_when_it_enlarges_by_a_whole_factor():
    image = np.random.default_rng(0).integers(-32768, 32767, (28, 28)).astype(np.int16)
    np.testing.assert_array_equal(to_canvas(image, 56), image.repeat(2, 0).repeat(2, 1))


def test_canvas_equals_pillow_box_for_other_sizes():
    image = np.random.default_rng(0).integers(-1024, 3000, (75, 50)).astype(np.int16)
    for stored in (image, image.T):
        want = Image.fromarray(stored.astype(np.float32)).resize((32, 32), Image.Resampling.BOX)
        np.testing.assert_array_equal(to_canvas(stored, 32), np.rint(np.asarray(want)))


def test_canvas_leaves_a_fitting_slice_alone():
    image = np.arange(1024, dtype=np.int16).reshape(32, 32)
    assert to_canvas(image, 32) is image


# Reduced at preparation.


def write(out, canvas):
    rng = np.random.default_rng(0)
    slices = [
        Slice(
            rng.integers(-1024, 3000, shape).astype(np.int16),
            patient="p",
            series="s",
            slice_index=index,
            spacing_mm=(2.5, 0.5, 0.75),
        )
        for index, shape in enumerate(SHAPES)
    ]
    source = MemorySource({"s": slices}, classes=(), intensity="hu")
    prepare(source, out, key=KEY, fractions={"train": 1.0}, canvas=canvas)
    return open_dataset(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "whole", 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "small", 40)


def records(dataset):
    return dataset.source("train").__getitems__(range(len(SHAPES)))


def images(dataset, canvas):
    reading = DataConfig(canvas=canvas)
    (batch,) = evaluation_batches(dataset, reading, split="train", batch_size=len(SHAPES))
    return batch["image"]


def test_a_run_sees_the_same_of_reduced_slices(whole, small):
    np.testing.assert_array_equal(images(small, 40), images(whole, 40))
    assert len(np.unique(images(small, 40))) > 1000


def test_larger_slices_alone_are_stored_anew(whole, small):
    before, after = records(whole), records(small)
    assert [record["image"].shape for record in before] == SHAPES
    stored = [record["image"].shape for record in after]
    assert stored == [(40, 40), (40, 40), (40, 40), (24, 30), (40, 40)]
    for index in (1, 3):
        np.testing.assert_array_equal(after[index]["image"], before[index]["image"])


def test_spacing_covers_the_same_millimetres(whole, small):
    for before, after in zip(records(whole), records(small), strict=True):
        for axis in (0, 1):
            covered = before["spacing_mm"][axis + 1] * before["image"].shape[axis]
            now = after["spacing_mm"][axis + 1] * after["image"].shape[axis]
            assert now == pytest.approx(covered)
        assert after["spacing_mm"][0] == np.float32(2.5)


def test_manifest_says_it_and_it_is_other_data(whole, small):
    assert small.manifest["canvas"] == 40
    assert "canvas" not in whole.manifest
    assert small.fingerprint != whole.fingerprint


def test_what_was_read_for_another_size_is_not_taken(tmp_path, small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.pipeline.prepare.make_plan", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set", 0)
    assert any((tmp_path / ".set.work" / "parts").iterdir())
    assert write(tmp_path / "set", 40).fingerprint == small.fingerprint


def interrupt(*_):
    raise KeyboardInterrupt


def test_command_reduces(tmp_path, capsys):
    flags = ["--patients=3", "--slices=2", "--size=48", "--workers=0", f"--out={tmp_path / 'set'}"]
    assert phantom.main([*flags, "--canvas=31"]) == ConfigError.exit_code
    assert (
        capsys.readouterr().err
        == "data_prep.phantom: --canvas=31: must be 0 (no change) or 32 or more\n"
    )
    assert not (tmp_path / "set").exists()
    assert phantom.main([*flags, "--canvas=32"]) == 0
    first = open_dataset(tmp_path / "set").source("train")[0]
    assert first["image"].shape == (32, 32)


# A run that wants more than is stored.


def test_canvas_may_be_what_is_stored_or_less(whole, small):
    for dataset, canvas in ((small, 40), (small, 32), (whole, 512)):
        data.require_canvas(dataset, canvas)


@pytest.mark.parametrize(
    ("run", "config"),
    [
        (pretrain.run, PretrainConfig),
        (finetune.run, FinetuneConfig),
        (evaluate.run, EvaluateConfig),
    ],
)
def test_a_run_is_refused_more_than_is_stored(tmp_path, small, run, config):
    reading = DataConfig(path=str(small.path), canvas=64)
    with pytest.raises(ConfigError, match=r"data\.canvas=64: .* reduced to 40 px .*canvas=40, or"):
        run(config(data=reading), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_so_is_a_probe(tmp_path, whole, small):
    reading = DataConfig(path=str(whole.path), canvas=64)
    probe = ProbeConfig(path=str(small.path), every=1, canvas=64)
    with pytest.raises(ConfigError, match=r"probe\.canvas=64: .*--config\.probe\.canvas=40, or"):
        pretrain.run(PretrainConfig(data=reading, probe=probe, batch_size=4), tmp_path / "run")
