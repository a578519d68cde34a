"""A flag that would do nothing is an error: of every command, every flag has its line."""

import argparse
import importlib

import numpy as np
import pytest
from PIL import Image

from ctssl_jax.errors import ConfigError
from data_prep import command
from data_prep.effects import EFFECTS, Situation, require_effects
from data_prep.folder import make_source

SOURCES = ("dicom", "lidc", "folder", "volumes", "covid_ct", "organsmnist", "hemorrhage", "phantom")


class Asked(Exception):
    """In place of a preparation: the parser of a command."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(name, monkeypatch):
    """The parser of a command."""

    def ask(make_source, parser, argv=None):
        raise Asked(parser)

    monkeypatch.setattr(command, "run_source", ask)
    module = "data_prep.phantom.source" if name == "phantom" else f"data_prep.{name}"
    with pytest.raises(Asked) as asked:
        importlib.import_module(module).main([])
    return asked.value.parser


def flags_of(parser):
    """The names of its flags."""
    words = (word for action in parser._actions for word in action.option_strings)
    return {word[2:] for word in words if word.startswith("--")} - {"help"}


@pytest.mark.parametrize("name", SOURCES)
def test_each_flag_of_each_command_has_its_line(name, monkeypatch):
    assert flags_of(parser_of(name, monkeypatch)) - set(EFFECTS) == set()


def image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (9, 9), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def kinds(tmp_path, write_ct, write_volume):
    """A source of each kind, with splits of its own or without."""
    for k in range(2):
        path = tmp_path / "dicom" / f"{k}.dcm"
        write_ct(path, np.full((9, 9), 1000 + k, np.uint16), z=2.0 * k)
    write_volume(tmp_path / "volume" / "a.nii.gz")
    for number, split in enumerate(("train", "val")):
        image(tmp_path / "image" / f"{number}.png", number)
        image(tmp_path / "split" / split / "x" / f"{number}.png", number)
    labels = {"dicom": "", "volume": "", "image": "", "split": "folder"}
    return {kind: make_source(tmp_path / kind, given) for kind, given in labels.items()}


SHARES = {"train": 0.8, "val": 0.2}
# What has an effect on which kinds: the others are refused.
ON = {
    "--irregular=accept_2d": {"dicom", "volume"},
    "--values=hu": {"dicom", "volume"},
    "--hu_offset=32768": {"image", "split"},
    "--exclude_patients_of=,": set(),
    "--patient_by=study": {"dicom"},
    "--patient_by=joined": {"dicom"},
    "--val_fraction=0.2": {"dicom", "volume", "image"},
    "--test_fraction=0.2": {"dicom", "volume", "image"},
    "--folds=3": {"dicom", "volume", "image"},
    "--seed=1": {"dicom", "volume", "image"},
    "--join_duplicates": {"dicom", "volume", "image"},
    "--canvas=64": {"dicom", "volume", "image", "split"},
    "--max_rejected=0.1": {"dicom", "volume", "image", "split"},
}


@pytest.mark.parametrize("word", ON)
def test_a_flag_without_effect_is_refused_in_one_line(kinds, word):
    name, _, value = word.removeprefix("--").partition("=")
    for kind, source in kinds.items():
        args = argparse.Namespace(**{"labels": "folder", "patient_regex": "", name: value})
        now = Situation(source, args, SHARES)
        if kind in ON[word]:
            require_effects(["--out=x", word], now)
            continue
        with pytest.raises(ConfigError) as raised:
            require_effects(["--out=x", word], now)
        assert str(raised.value).startswith(f"{word}: ")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("word", ["--seed=1", "--join_duplicates"])
def test_what_chooses_among_splits_wants_more_than_one(kinds, word):
    args = argparse.Namespace(labels="", patient_regex="")
    with pytest.raises(ConfigError, match="all patients go into one split"):
        require_effects([word], Situation(kinds["image"], args, {"train": 1.0, "val": 0.0}))


def test_commands_ask(tmp_path, key_file, capsys):
    image(tmp_path / "in" / "a.png", 1)
    flags = [f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'o'}", f"--key={key_file}"]
    module = importlib.import_module("data_prep.folder")
    assert module.main([*flags, "--workers=0", "--irregular=accept_2d"]) == 2
    told = "no effect, since there is no dicom or volume in the source"
    assert f"data_prep.folder: --irregular=accept_2d: {told}" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_regex_beside_a_table_of_patients_is_refused(tmp_path):
    for number, name in enumerate(("p1", "p2")):
        image(tmp_path / "in" / f"{name}.png", number)
    table = tmp_path / "labels.csv"
    table.write_text("file,label,patient\np1.png,x,1\np2.png,y,2\n")
    with pytest.raises(ConfigError, match="--patient_regex would have no effect"):
        make_source(tmp_path / "in", str(table), "(p[0-9])")
