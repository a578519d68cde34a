"""What is exported gives PyTorch's networks the numbers that ours give, and says how."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from oracles import import_torchvision, timm_models, torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from ctssl_jax.augment import Intensity, IntensityMode
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.interop import __main__ as command
from ctssl_jax.interop import case_head
from ctssl_jax.interop.export import Layout, export, named_tensors, read
from ctssl_jax.interop.foreign import import_encoder
from ctssl_jax.interop.recipe import Recipe
from ctssl_jax.interop.weights import Weights
from ctssl_jax.methods import Cases
from ctssl_jax.methods.cases import Learn, Pooling
from ctssl_jax.run import checkpoint

ROOT = Path(__file__).parents[2]
TIMM = {"config.json", "model.safetensors", "README.md"}
FILES = {"encoder.safetensors", "input.json", "parity.npz", "model_card.md", "SHA256SUMS"} | TIMM


def code(document, number=0):
    """One of the Python examples of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)[number]


def equal(theirs, ours):
    """To 1e-4 of the largest output."""
    theirs = theirs.detach().numpy()
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


def torchvision_network(depth, **options):
    import_torchvision()
    import torchvision

    network = getattr(torchvision.models, f"resnet{depth}")(**options)
    if not options:
        network.fc = torch.nn.Identity()
    return network


@pytest.fixture(scope="module")
def one_channel(tmp_path_factory):
    """A ResNet-18 of one channel, and the folder it is exported to."""
    folder = tmp_path_factory.mktemp("one_channel")
    runs.pretrained(folder / "run")
    assert (
        export(folder / "run", Layout.TIMM, folder / "out" / "encoder.safetensors").tensors == 120
    )
    return folder / "run", folder / "out"


def test_timm_loads_it_strictly_and_gives_the_same_features(one_channel):
    run, out = one_channel
    network = timm_models.create_model("resnet18", num_classes=0, in_chans=1).eval()
    tensors = load_torch(out / "encoder.safetensors")
    assert tensors.keys() == network.state_dict().keys()
    network.load_state_dict(tensors, strict=True)
    parity = np.load(out / "parity.npz")
    for end in ("", "_odd"):
        ours = parity[f"features{end}"]
        assert ours.std() > 0.05  # they do depend on the input
        equal(network(torch.from_numpy(parity[f"input{end}"])), ours)
    for size in ((33, 65), (224, 95)):
        x = np.random.default_rng(1).standard_normal((1, 1, *size), np.float32)
        equal(network(torch.from_numpy(x)), read(run).outputs(x))


def test_three_equal_channels_give_what_one_gives(one_channel):
    _, out = one_channel
    network = torchvision_network(18).eval()
    network.load_state_dict(load_torch(out / "encoder_3ch.safetensors"), strict=True)
    parity = np.load(out / "parity.npz")
    for end in ("", "_odd"):
        x = np.repeat(parity[f"input{end}"], 3, axis=1)
        equal(network(torch.from_numpy(x)), parity[f"features{end}"])


@pytest.mark.slow  # as ResNet-18 of one channel is, above
def test_a_resnet_50_of_three_channels_in_torchvision_and_timm(tmp_path):
    runs.pretrained(tmp_path / "run", depth=50, channels=3)
    export(tmp_path / "run", Layout.TORCHVISION, tmp_path / "out" / "encoder.safetensors")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES  # there is no other stem
    parity = np.load(tmp_path / "out" / "parity.npz")
    for network in (
        torchvision_network(50).eval(),
        timm_models.create_model("resnet50", num_classes=0).eval(),
    ):
        network.load_state_dict(load_torch(tmp_path / "out" / "encoder.safetensors"), strict=True)
        equal(network(torch.from_numpy(parity["input_odd"])), parity["features_odd"])
    comes_back(tmp_path / "run", tmp_path / "out" / "encoder.safetensors", tmp_path)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    """README's five lines on a ResNet-50, and the preparation of docs/weights.md."""
    runs.pretrained(tmp_path / "run", depth=50)
    monkeypatch.chdir(tmp_path)
    arguments = ["--run=run", "--layout=timm", "--out=spark_r50/encoder.safetensors"]
    assert command.main(["export", *arguments]) == 0
    parity = np.load("spark_r50/parity.npz")
    known = {"x": torch.from_numpy(parity["input"])}
    assert len(code("README.md").strip().replace("\n\n", "\n").splitlines()) == 5
    exec(code("README.md"), known)
    equal(known["features"], parity["features"])


@pytest.mark.parametrize(
    ("kind", "intensity"),
    [
        ("hu", {"window_hu": (-900.0, 400.0)}),
        ("hu", {"mode": IntensityMode.SLICE_MIN_MAX, "channels": 3, "mean": (0.1, 0.2, 0.3)}),
        ("grey8", {"channels": 3}),
        ("grey16", {"mode": IntensityMode.SLICE_MIN_MAX}),
    ],
)
@pytest.mark.parametrize("canvas", [64, 80])
def test_the_recipe_in_numpy_gives_the_same_input(tmp_path, kind, intensity, canvas):
    recipe = Recipe(kind, Intensity(**intensity), canvas, 64, transpose=canvas == 80)
    file = tmp_path / "input.json"
    file.write_text(json.dumps(recipe.to_json()))
    known = {}
    exec(code("docs/weights.md"), known)
    slices = recipe.example()
    assert slices.min() < slices.mean() < slices.max()
    slices[1] = 7  # a slice of one value has no range of its own
    found = np.stack([known["prepare"](image, file) for image in slices])
    expected = recipe.apply(slices)
    assert expected.shape == (2, recipe.intensity.channels, 64, 64)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert len(recipe.in_words()) == len(recipe.steps())


def test_what_lies_beside_the_weights(one_channel):
    run, out = one_channel
    assert {path.name for path in out.iterdir()} == FILES | {"encoder_3ch.safetensors"}
    sums = dict(line.split()[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        assert (out / name).stat().st_mode & 0o044  # others may read it
    text = (out / "model_card.md").read_text()
    record = json.loads((run / "config.json").read_text())
    for words in (
        "Not a medical device",
        "ResNet-18 encoder",
        record["hash"],
        "8 slices of 2 patients",
        "Audit for leaks between the splits: pass",
        "not stated",
        "Scale -1000 to 0 and 1000 to 1",
        'create_model("resnet18", num_classes=0, in_chans=1)',
    ):
        assert words in text
    for path in out.iterdir():
        assert str(run).encode() not in path.read_bytes()


def test_again_it_is_the_same_but_for_what_is_asked(one_channel, tmp_path):
    run, out = one_channel
    export(run, Layout.TORCHVISION, tmp_path / "encoder.safetensors", licence="CC BY 4.0")
    again, first = (
        set((folder / "SHA256SUMS").read_text().splitlines()) for folder in (tmp_path, out)
    )
    changed = {line.split()[1] for line in again - first}
    assert changed == {"model_card.md", "README.md"}
    text = (tmp_path / "model_card.md").read_text()
    assert "Of the weights: CC BY 4.0." in text
    assert 'load_file("encoder_3ch.safetensors")' in text  # torchvision's stem takes three


def test_the_card_loads_what_it_describes(one_channel, monkeypatch):
    import_torchvision()
    _, out = one_channel
    monkeypatch.chdir(out)
    known = {}
    exec(code(out / "model_card.md"), known)
    parity = np.load("parity.npz")
    equal(known["model"](torch.from_numpy(parity["input"])), parity["features"])


def test_what_is_refused(one_channel, tmp_path, capsys):
    run, out = one_channel
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    def refused(*flags):
        code = command.main(["export", "--layout=timm", *flags])
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return code, text

    code, text = refused(f"--run={run}", f"--out={out}/encoder.safetensors")
    assert (code, "has a file" in text) == (2, True)
    code, text = refused(f"--run={run}", f"--out={tmp_path}/encoder.pth")
    assert (code, "ends in .safetensors" in text) == (2, True)
    code, text = refused(f"--run={tmp_path}", f"--out={tmp_path}/e.safetensors")
    assert (code, "no run at" in text) == (3, True)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_export_is_not_written_over_by_another(tmp_path, monkeypatch):
    config = runs.finetuned_config()
    cases = Weights(tmp_path, {}, {}, Recipe("hu", Intensity()), {}, {}, ("a", "b"), None, Cases())
    runs.write(tmp_path / "run", config)
    monkeypatch.setattr("ctssl_jax.interop.export.read", lambda run: cases)
    with pytest.raises(ConfigError, match="the file of the head of cases"):
        export(tmp_path / "run", Layout.TIMM, tmp_path / "out" / case_head.WEIGHTS)
    assert not (tmp_path / "out").exists()


def test_nothing_is_exported_into_a_dataset(one_channel, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="in a dataset folder"):
        export(one_channel[0], Layout.TIMM, tmp_path / "e.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("made", ["pretrained", "finetuned"])
def test_a_run_that_has_lost_what_its_values_were_is_refused(tmp_path, made):
    """Of grey values a recipe for Hounsfield units was written, of a classifier its encoder."""
    if made == "pretrained":
        runs.pretrained(tmp_path / "run", kind="grey8")
    else:
        runs.write(tmp_path / "run", runs.finetuned_config())
        checkpoint.save_start(tmp_path / "run", runs.weights(18, 1))
    (tmp_path / "run" / "data.json").unlink()
    with pytest.raises(StorageError, match=r"data\.json cannot be read"):
        export(tmp_path / "run", Layout.TIMM, tmp_path / "out" / "e.safetensors")


def test_a_run_without_chosen_weights_is_refused(tmp_path):
    config = runs.finetuned_config()
    runs.write(tmp_path / "run", config)
    (tmp_path / "run" / "STATUS").write_text("running\n")
    with pytest.raises(DataError, match="not finished"):
        export(tmp_path / "run", Layout.TIMM, tmp_path / "out" / "e.safetensors")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    for kind in ("EvaluateConfig", "PredictConfig"):
        (tmp_path / "run" / "config.json").write_text(json.dumps(record | {"type": kind}))
        with pytest.raises(ConfigError, match="trained nothing"):
            export(tmp_path / "run", Layout.TIMM, tmp_path / "out" / "e.safetensors")


def comes_back(run, file, folder):
    """An export, imported, is what was exported, bit for bit; and exports the same again."""
    first, back = read(run), folder / "back"
    found = import_encoder(file, "timm", back)
    again = read(back)
    assert (found.depth, found.channels) == (first.depth, first.recipe.intensity.channels)
    assert again.recipe.intensity == first.recipe.intensity
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    jax.tree.map(np.testing.assert_array_equal, again.batch_stats, first.batch_stats)
    tensors = named_tensors(again)
    assert tensors.keys() == load_file(file).keys()
    for name, value in load_file(file).items():
        np.testing.assert_array_equal(value, tensors[name])


def test_what_was_exported_comes_back_bit_for_bit(one_channel, tmp_path):
    run, out = one_channel
    comes_back(run, out / "encoder.safetensors", tmp_path)


def test_timm_opens_the_folder_by_itself(one_channel):
    _, out = one_channel
    network = timm_models.create_model(f"local-dir:{out}", pretrained=True).eval()
    parity = np.load(out / "parity.npz")
    equal(network(torch.from_numpy(parity["input"])), parity["features"])
    assert (out / "README.md").read_text().startswith("---\nlibrary_name: timm\n")


HEADS = [(pooling.value, "cases") for pooling in Pooling]


@pytest.mark.parametrize(("pooling", "learn"), [*HEADS, ("top_k", "slices")])
def test_the_head_of_cases_gives_pytorch_the_same(pooling, learn):
    """The module that is written, on features that it is given."""
    method = Cases(classes=2, pooling=Pooling(pooling), learn=Learn(learn), hidden=4, top_k=2)
    params = {"head": runs.filled(jax.eval_shape(lambda: head_of(method)))}
    weights = Weights(
        Path("run"), {}, None, Recipe("hu", Intensity()), params, {}, ("a", "b"), None
    )
    weights = dataclasses.replace(weights, method=method)
    made: dict = {}
    exec(compile(case_head.code(weights), "case_head.py", "exec"), made)
    module = made["CaseHead"]()
    tensors = {name: torch.from_numpy(v) for name, v in case_head.tensors(weights).items()}
    module.load_state_dict(tensors, strict=True)
    for n in (1, 2, 7):
        features = np.random.default_rng(n).standard_normal((n, 16), np.float32)
        logits, shares = case_head.case_logits(method, params["head"], features)
        theirs, of_slices = module(torch.from_numpy(features))
        np.testing.assert_allclose(theirs.detach().numpy(), logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(of_slices.detach().numpy(), shares, rtol=1e-4, atol=1e-5)


def head_of(method):
    bag = jnp.zeros((1, 1, 16))
    return method._head(bag.dtype).init(jax.random.key(0), bag, jnp.ones((1, 1), bool))["params"]
