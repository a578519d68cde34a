"""Encoders of others: every documented kind of file comes in, and nothing that differs from it."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs
from oracles import timm_models, torch
from safetensors.numpy import load_file, save_file

from ctssl_jax import main, pretrain
from ctssl_jax.augment import ViewGroup
from ctssl_jax.config_record import to_json
from ctssl_jax.dataset.signatures import load_file as load_signature_file
from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.interop import __main__ as command
from ctssl_jax.interop.export import METADATA, Layout, export, read
from ctssl_jax.interop.foreign import LAYOUTS, import_encoder
from ctssl_jax.interop.names import spark_name, to_torch
from ctssl_jax.methods import BYOL, MoCo, SparK
from ctssl_jax.methods.base import Initial, Start, started
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.report.runs import read_run
from ctssl_jax.run import checkpoint, leakage
from ctssl_jax.run import folder as run_folder

pytestmark = pytest.mark.usefixtures("one_device")


def network(depth=18, seed=0):
    """timm's, headless, with running statistics as after training."""
    torch.manual_seed(seed)
    found = timm_models.create_model(f"resnet{depth}", num_classes=0, zero_init_last=False)
    for name, value in found.state_dict().items():
        if name.endswith(("running_mean", "running_var", "weight", "bias")) and value.ndim == 1:
            low = -0.3 if name.endswith(("mean", "bias")) else 0.5
            value.uniform_(low, low + 1)
    return found.eval()


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def released(method, encoder):
    """A checkpoint as the paper's code leaves it (recipe of the reference, section 7)."""
    ones = torch.ones
    match method:
        case "spark":
            return {"arch": "resnet50", "module": encoder, "is_pretrain": True}
        case "swav":
            head = {"projection_head.0.weight": ones(2, 2), "prototypes.weight": ones(5, 2)}
            head["projection_head.1.running_mean"] = ones(2)
            return {"epoch": 1, "state_dict": prefixed("model.", encoder | head)}
        case "moco":
            head = {"fc.0.weight": ones(2, 2), "fc.2.bias": ones(2)}
            queues = {"queue": ones(2, 4), "queue_ptr": ones(1), "val_queue": ones(2, 4)}
            return {
                "state_dict": prefixed("encoder_q.", encoder | head)
                | prefixed("encoder_k.", encoder | head)
                | queues
                | {"val_queue_ptr": ones(1)},
                "hyper_parameters": {"emb_dim": 128},
            }
        case "byol":
            heads = {"projector.model.0.weight": ones(2, 2), "predictor.model.1.bias": ones(2)}
            online = prefixed("encoder.", encoder) | heads
            return {
                "state_dict": prefixed("online_network.", online)
                | prefixed("target_network.", online),
                "callbacks": {},
            }


@pytest.mark.parametrize("method", ["spark", "swav", "moco", "byol"])
def test_the_papers_checkpoints_come_in(tmp_path, method, capsys):
    """From a file of torch.save to features, by the two commands."""
    theirs = network(50 if method == "moco" else 18)
    torch.save(released(method, theirs.state_dict()), tmp_path / "a.ckpt")
    file, run = tmp_path / "a.safetensors", tmp_path / "run"
    assert command.main(["convert", f"--source={tmp_path}/a.ckpt", f"--out={file}"]) == 0
    flags = [f"--source={file}", f"--layout={method}", f"--out={run}"]
    assert command.main(["import", *flags]) == 0
    assert "of 3 channels" in capsys.readouterr().out
    x = np.random.default_rng(0).standard_normal((2, 3, 97, 64), np.float32)
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(
        read(run).outputs(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    config = json.loads((run / "config.json").read_text())["config"]
    mean = [0.485, 0.456, 0.406] if method == "spark" else [0.1806]
    assert config["intensity"]["mean"] == mean
    assert config["intensity"]["mode"] == "slice_min_max"
    assert run_folder.method(str(run)) == f"imported-{method}"
    assert not read_run(run).problem
    assert str(tmp_path) not in (run / "config.json").read_text()


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_networks_with_their_classifier_come_in(tmp_path, layout):
    theirs = timm_models.create_model("resnet34", num_classes=7, in_chans=1)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    done = import_encoder(tmp_path / "a.safetensors", layout, tmp_path / "run", "mine")
    assert (done.depth, done.channels, done.left) == (34, 1, 2)
    assert run_folder.method(str(tmp_path / "run")) == "mine"
    params, _ = checkpoint.load_encoder(tmp_path / "run", ResNet(depth=34), 1)
    kernel = params["layer3_5"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors["layer3.5.conv2.weight"])


@pytest.fixture(scope="module")
def whole_spark(tmp_path_factory):
    """A whole SparK under the names of the official code, imported; its trees."""
    folder = tmp_path_factory.mktemp("spark")
    method, encoder = SparK(decoder_width=32, view=ViewGroup(size=64)), ResNet(depth=18)
    initial = runs.filled(
        jax.eval_shape(lambda key: method.init(encoder, key, 1), jax.random.key(0))
    )
    tensors = to_torch(initial.params, spark_name) | to_torch(initial.batch_stats, spark_name)
    unused = {name: np.zeros((1, 3, 1, 1), np.float32) for name in ("imn_m", "imn_s", "norm_black")}
    save_file(tensors | unused, folder / "whole.safetensors")
    done = import_encoder(folder / "whole.safetensors", "spark", folder / "run")
    assert done.left == 3
    return folder / "run", initial, tensors


def equal_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_whole_spark_comes_in_with_its_decoder(whole_spark):
    run, initial, _ = whole_spark
    fresh = Start(initial.params, initial.batch_stats)
    encoder = ResNet(depth=18)
    start = checkpoint.load_start(run, encoder, 1, "SparK", fresh)
    equal_trees(start.params, initial.params)
    equal_trees(start.batch_stats, initial.batch_stats)
    # Another method takes the encoder alone.
    for method in ("MoCo", ""):
        assert checkpoint.load_start(run, encoder, 1, method, fresh).params.keys() == {"encoder"}


def test_pretraining_starts_from_an_import(whole_spark, phantom_path, tmp_path, monkeypatch):
    run, initial, _ = whole_spark
    from configs import spark

    config = spark.get_config("smoke")
    config.data.path, config.epochs, config.picture_every = str(phantom_path), 3.0, 0
    config.encoder_run = str(run)
    config.validate()
    states = []
    monkeypatch.setattr(pretrain, "fit", lambda state, *_, **__: states.append(state))
    pretrain.run(config, tmp_path / "on")
    equal_trees(states[0].params, initial.params)
    equal_trees(states[0].batch_stats, initial.batch_stats)
    assert "from the encoder of another run" in (tmp_path / "on" / "log.txt").read_text()
    # What the import has seen is not known, so that of what started from it is not either.
    assert not (tmp_path / "on" / "seen.npy").exists()
    known = json.loads((tmp_path / "on" / "data.json").read_text())
    assert known["encoder_run"] == run_folder.run_hash(str(run))
    record = run_folder.read_json(run / "config.json")
    shutil.copytree(run, tmp_path / "another")
    (tmp_path / "another" / "config.json").write_text(json.dumps(record | {"hash": "other"}))
    config.encoder_run = str(tmp_path / "another")
    with pytest.raises(ConfigError, match="started from another encoder_run"):
        pretrain.run(config, tmp_path / "on")


def test_what_an_encoder_saw_before_is_not_forgotten(phantom_path, tmp_path):
    from ctssl_jax.data import open_dataset

    dataset = open_dataset(phantom_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    leakage.write_seen(tmp_path / "first", dataset, "val", None)
    leakage.write_seen(tmp_path / "second", dataset, "train", None, str(tmp_path / "first"))
    seen = [len(load_signature_file(tmp_path / name / "seen.npy")) for name in ("first", "second")]
    assert seen == [8, 40]
    with pytest.raises(DataError, match="has seen"):
        leakage.require_unseen(dataset, ("val",), str(tmp_path / "second"), accept=False)
    passed, failed = {"verdict": "pass"}, {"verdict": "fail", "accepted": True, "findings": []}
    (tmp_path / "first" / "data.json").write_text(json.dumps({"audit": failed}))
    assert leakage.with_earlier(passed, str(tmp_path / "first")) == failed
    assert leakage.with_earlier(passed, str(tmp_path / "second")) == passed
    assert leakage.with_earlier(passed, "") == passed


@pytest.mark.parametrize("method", [MoCo(queue_size=4), BYOL()], ids=["moco", "byol"])
def test_a_teacher_starts_as_the_same_encoder(method):
    start = runs.weights(18, 1)
    initial = jax.eval_shape(lambda key: method.init(ResNet(depth=18), key, 1), jax.random.key(0))
    found = started(Initial(*initial), start)
    for tree, own in ((found.params, start.params), (found.batch_stats, start.batch_stats)):
        assert tree["encoder"] is own["encoder"]
        assert tree.keys() == {"encoder", "head"}
    assert found.aux["params"]["encoder"] is start.params["encoder"]
    assert found.aux["batch_stats"]["encoder"] is start.batch_stats["encoder"]
    assert found.aux.keys() == initial.aux.keys()
    assert found.aux["params"].keys() == initial.aux["params"].keys()


def test_finetuning_from_an_import_to_an_exported_classifier(phantom_path, tmp_path):
    runs.pretrained(tmp_path / "mine")
    export(tmp_path / "mine", Layout.TIMM, tmp_path / "out" / "e.safetensors")
    import_encoder(tmp_path / "out" / "e.safetensors", "timm", tmp_path / "run", "published")
    argv = ["main", "--config=configs/finetune_covid_ct.py:smoke", "--config.fraction=0.5"]
    argv += [f"--config.data.path={phantom_path}", f"--config.encoder_run={tmp_path}/run"]
    assert main.main([*argv, f"--workdir={tmp_path}/tuned"]) == 0
    results = json.loads((tmp_path / "tuned" / "results.json").read_text())
    assert results["arm"] == "published"
    assert results["encoder_run"] == run_folder.run_hash(str(tmp_path / "run"))
    assert results["pretraining_overlap"] == "unknown"
    assert results["pretraining_audit"] == "unknown"
    export(tmp_path / "tuned", Layout.TIMM, tmp_path / "classifier" / "c.safetensors")
    theirs = timm_models.create_model("resnet18", num_classes=2, in_chans=1).eval()
    tensors = load_file(tmp_path / "classifier" / "c.safetensors")
    theirs.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()}, strict=True)
    parity = np.load(tmp_path / "classifier" / "parity.npz")
    for end in ("", "_odd"):
        logits = theirs(torch.from_numpy(parity[f"input{end}"])).detach().numpy()
        np.testing.assert_allclose(logits, parity[f"logits{end}"], rtol=1e-4, atol=1e-4)
    card = (tmp_path / "classifier" / "model_card.md").read_text()
    for words in ("AUC ", "% intervals", "published", "had seen: unknown", "0 = no lesion"):
        assert words in card


@pytest.fixture(scope="module")
def good():
    return {name: value.numpy() for name, value in network().state_dict().items()}


def refused(tmp_path, tensors, words, capsys, layout="timm", metadata=None):
    """In one line, with nothing written."""
    file, run = tmp_path / "a.safetensors", tmp_path / "run"
    save_file(tensors, file, metadata)
    code = command.main(["import", f"--source={file}", f"--layout={layout}", f"--out={run}"])
    error = capsys.readouterr().err
    assert code == 3, error
    assert error.count("\n") == 1
    assert words in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_differs_is_named_and_refused(tmp_path, good, capsys):
    def changed(**changes):
        return {**good, **{name.replace("__", "."): value for name, value in changes.items()}}

    def without(*names):
        return {name: value for name, value in good.items() if name not in names}

    renamed = without("layer2.0.bn1.weight") | {"layer2.0.bn1.gamma": np.ones(128, np.float32)}
    words = "1 missing (layer2.0.bn1.weight), 1 not known (layer2.0.bn1.gamma)"
    refused(tmp_path, renamed, words, capsys)
    words = "1 missing (layer4.1.bn2.running_var)"
    refused(tmp_path, without("layer4.1.bn2.running_var"), words, capsys)
    refused(tmp_path, changed(extra=np.ones(1, np.float32)), "1 not known (extra)", capsys)
    odd = changed(conv1__weight=np.ones((64, 3, 3, 3), np.float32))
    words = "1 of another shape (conv1.weight (64, 3, 3, 3), not (64, 3, 7, 7))"
    refused(tmp_path, odd, words, capsys)
    four = changed(conv1__weight=np.ones((64, 4, 7, 7), np.float32))
    refused(tmp_path, four, "conv1.weight (64, 4, 7, 7), not (64, 3, 7, 7)", capsys)
    counter = changed(bn1__num_batches_tracked=np.ones(3, np.int64))
    refused(tmp_path, counter, "bn1.num_batches_tracked (3,), not ()", capsys)
    bad = changed(bn1__bias=np.full(64, np.nan, np.float32))
    refused(tmp_path, bad, "bn1.bias holds numbers that are not finite", capsys)
    negative = changed(bn1__running_var=np.full(64, -1e-9, np.float32))
    refused(tmp_path, negative, "bn1.running_var holds a negative variance", capsys)
    whole = changed(bn1__bias=np.ones(64, np.int32))
    refused(tmp_path, whole, "bn1.bias is I32", capsys)
    refused(tmp_path, good, "its metadata are not as exported", capsys, metadata={METADATA: "[]"})


def one_channel(tensors, prefix=""):
    name = f"{prefix}conv1.weight"
    return {**tensors, name: tensors[name].sum(axis=1, keepdims=True)}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_network_of_one_channel_can_be_used(tmp_path, good, layout):
    prefix = LAYOUTS[layout].prefix
    save_file(one_channel(prefixed(prefix, good), prefix), tmp_path / "a.safetensors")
    run = tmp_path / "run"
    import_encoder(tmp_path / "a.safetensors", layout, run)
    found = read(run)
    found.recipe.intensity.validate()
    assert found.recipe.intensity.channels == 1
    image = found.recipe.apply(np.zeros((1, 224, 224), np.int16))
    assert image.shape == (1, 1, 224, 224)
    assert found.features(image).shape == (1, 512)
    mean = {"swav": 0.1806, "moco": 0.1806, "byol": 0.1806}.get(layout, 0.449)
    assert found.recipe.intensity.mean == (mean,)


def test_metadata_of_other_channels_than_the_network_are_refused(tmp_path, good, capsys):
    three = {"intensity": to_json(LAYOUTS["timm"].intensity)}
    metadata = {METADATA: json.dumps(three)}
    words = "its metadata are of 3 channels, its first layer of 1"
    refused(tmp_path, one_channel(good), words, capsys, metadata=metadata)


def test_another_architecture_or_layout_is_refused(tmp_path, good, capsys):
    for name, words in {
        "resnet101": "306 not known (layer3.10.bn1.bias",
        "resnext50_32x4d": "of another shape (layer1.0.bn1",
        "resnet18d": "not known (conv1.0.weight",
        "convnext_atto": "no ResNet-18 of layout timm: 100 missing",
    }.items():
        tensors = timm_models.create_model(name, num_classes=0).state_dict()
        floats = {key: value.numpy() for key, value in tensors.items()}
        refused(tmp_path, dict(sorted(floats.items())), words, capsys)
    for layout in ("swav", "moco", "byol"):
        refused(tmp_path, good, "missing", capsys, layout=layout)
    moco = {f"encoder_q.{name}": value for name, value in good.items()}
    refused(tmp_path, moco, "its names are those of --layout=moco", capsys)
    refused(
        tmp_path, moco | {"encoder_q.queue": np.ones(1, np.float32)}, "1 not known", capsys, "moco"
    )
    assert set(LAYOUTS) == {"torchvision", "timm", "spark", "swav", "moco", "byol"}


def test_a_spark_decoder_that_differs_is_refused(tmp_path, whole_spark, capsys):
    _, _, tensors = whole_spark
    name = "dense_decoder.dec.1.conv.1.running_var"
    fewer = {key: value for key, value in tensors.items() if key != name}
    refused(tmp_path, fewer, f"1 missing ({name})", capsys, layout="spark")
    more = tensors | {"dense_decoder.dec.9.conv.1.bias": np.ones(1, np.float32)}
    refused(tmp_path, more, "1 not known (dense_decoder.dec.9.conv.1.bias)", capsys, layout="spark")


def test_damaged_files_and_other_kinds_are_refused(tmp_path, good, capsys):
    file = tmp_path / "a.safetensors"

    def refused_bytes(content, words):
        file.write_bytes(content)
        flags = [f"--source={file}", "--layout=timm", f"--out={tmp_path}/run"]
        assert command.main(["import", *flags]) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error

    save_file(good, file)
    whole = file.read_bytes()
    for size in (0, 5, 1000, len(whole) - 1):
        refused_bytes(whole[:size], "no whole safetensors file")
    torch.save(network().state_dict(), file)
    refused_bytes(file.read_bytes(), "interop convert")
    file.unlink()
    assert command.main(["import", f"--source={file}", "--layout=timm", "--out=run"]) == 3
    assert "no file" in capsys.readouterr().err


def test_names_and_folders_that_will_not_do(tmp_path, good):
    save_file(good, tmp_path / "a.safetensors")
    for name in ("Mine", "a b", "../x", "x" * 41):
        with pytest.raises(ConfigError, match="--name"):
            import_encoder(tmp_path / "a.safetensors", "timm", tmp_path / "run", name)
    with pytest.raises(ConfigError, match="exists"):
        import_encoder(tmp_path / "a.safetensors", "timm", tmp_path)
