"""Checkpoints of PyTorch: weights are read, anything else is refused and never executed."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from oracles import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ctssl_jax.errors import ConfigError, DataError
from ctssl_jax.interop import __main__ as command
from ctssl_jax.interop import pickles
from ctssl_jax.interop.pickles import convert

safetensors_torch = pytest.importorskip("safetensors.torch")


class Runs:
    """Unpickling this runs a command of the system, or Python."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(source, words, capsys):
    """The command refuses the file in one line and writes nothing."""
    out = source.with_name("out.safetensors")
    before = sorted(path.name for path in source.parent.iterdir())
    code = command.main(["convert", f"--source={source}", f"--out={out}"])
    error = capsys.readouterr().err
    assert code == 3, error
    assert error.count("\n") == 1
    assert words in error
    assert sorted(path.name for path in source.parent.iterdir()) == before


@pytest.mark.parametrize("container", ["state_dict", "module", "model", ""])
def test_tensors_keep_names_and_values(tmp_path, container, capsys):
    weights = {
        "conv1.weight": torch.randn(2, 3, 7, 7).transpose(0, 1),
        "half": torch.randn(5).to(torch.bfloat16),
        "bn1.num_batches_tracked": torch.tensor(7),
    }
    # What Lightning and SparK put beside them.
    extra = {"epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {"a": {"best": None}}}
    torch.save({container: weights, **extra} if container else weights, tmp_path / "a.ckpt")
    out = tmp_path / "a.safetensors"
    arguments = ["convert", f"--source={tmp_path}/a.ckpt", f"--out={out}"]
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"{out}: 3 tensors\n"
    found = load_file(out)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value.float().numpy())
    assert found["half"].dtype == np.float32
    assert command.main(arguments) == 2  # it is there already


def test_what_is_no_tensor_beside_tensors_is_left_out(tmp_path, capsys):
    torch.save({"module": {"a": torch.ones(2), "config": {"sbn": True}}}, tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert (done.tensors, done.left) == (1, ["config"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "state_dict", "beside"])
def test_code_is_not_executed(tmp_path, capsys, place, legacy):
    sign = tmp_path.parent / f"{tmp_path.name}.executed"
    for name, call in {
        "system": Runs(os.system, f"touch {sign}"),
        "exec": Runs(exec, f"import pathlib; pathlib.Path({str(sign)!r}).touch()"),
        "eval": Runs(eval, f"__import__('pathlib').Path({str(sign)!r}).touch()"),
    }.items():
        content = {
            "top": call,
            "state_dict": {"state_dict": {"conv1.weight": torch.ones(1), "x": call}},
            "beside": {"state_dict": {"conv1.weight": torch.ones(1)}, "optimizer": call},
        }[place]
        source = tmp_path / f"{name}.pth"
        torch.save(content, source, _use_new_zipfile_serialization=not legacy)
        refused(source, "asks for code", capsys)
        assert not sign.exists()
    # These files do execute what they name when they are unpickled without restriction.
    if not legacy and place == "top":
        torch.load(source, weights_only=False)
        assert sign.exists()


def test_a_plain_pickle_is_refused(tmp_path, capsys):
    sign = tmp_path.parent / f"{tmp_path.name}.executed"
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Runs(os.system, f"touch {sign}")))
    refused(tmp_path / "a.pth", "", capsys)
    assert not sign.exists()


def test_damaged_files_are_refused(tmp_path, capsys):
    source = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, source)
    whole = source.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        source.write_bytes(whole[:size])
        refused(source, "is cut off, no checkpoint", capsys)
    source.write_bytes(b"\x00" * 5000)
    refused(source, "is cut off, no checkpoint", capsys)
    source.unlink()
    refused(source, "no file", capsys)


def test_what_claims_too_much_is_refused(tmp_path, capsys):
    source = tmp_path / "a.pth"
    # Eight bytes that say they are 8 TiB.
    torch.save({"a": torch.as_strided(torch.ones(2), (1 << 40, 2), (0, 1))}, source)
    refused(source, "would take 8,192.0 GiB", capsys)
    torch.save({"a": torch.ones(1 << 18)}, source)
    with pytest.raises(DataError, match="larger than"):
        convert(source, tmp_path / "b.safetensors", limit_gib=0.0005)
    # An archive that becomes a thousand times larger.
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(source, "compressed archive", capsys)


def test_what_is_no_plain_tensor_is_refused(tmp_path, capsys):
    source = tmp_path / "a.pth"
    for value in (torch.ones(2).to_sparse(), torch.ones(2, device="meta")):
        torch.save({"good": torch.ones(1), "odd": value}, source)
        refused(source, "odd is no plain tensor", capsys)
    torch.save({3: torch.ones(1)}, source)
    refused(source, "names must be text", capsys)
    for nothing in ([torch.ones(1)], torch.ones(1)):
        torch.save(nothing, source)
        refused(source, "holds no state dict", capsys)
    for nothing in ({}, {"state_dict": {"a": 1}}):
        torch.save(nothing, source)
        refused(source, "holds no tensors", capsys)


def test_torch_must_be_there_and_recent(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ConfigError, match=r"too old to be safe: install 2\.10"):
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ConfigError, match="PyTorch is needed"):
        convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert pickles.TORCH == (2, 10)


def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch):
    def fail(tensors, path):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(safetensors_torch, "save_file", fail)
    arguments = [f"--source={tmp_path}/a.pth", f"--out={tmp_path}/a.safetensors"]
    assert command.main(["convert", *arguments]) == 5
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
