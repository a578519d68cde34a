"""Flags of all commands: an empty value and a number that is none are answered in one line."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from ctssl_jax import command, main
from ctssl_jax.errors import ConfigError
from launch import measuring
from launch.benchmark import device
from launch.sweep.__main__ import Flags

ROOT = Path(__file__).parents[1]
BUILDS = re.compile(r"\b(?:command|frame)\.(?:Parser|new_parser)\(")
# Parsers that are not made in a `main`, and where they are.
OTHERS = {
    "launch.measuring": lambda: measuring.Parser("launch.benchmark", "").parse_known_args([]),
    "launch.benchmark.device": lambda: device.measure([]),
    "launch.sweep.__main__": lambda: Flags().parse_known_args([]),
    # By `measuring.Parser`:
    "launch.compile_check.__main__": lambda: measuring.Parser("x", "").parse_known_args([]),
    "launch.benchmark.__main__": lambda: measuring.Parser("x", "").parse_known_args([]),
}


def names():
    """The modules that make a parser."""
    paths = [
        p for room in ("ctssl_jax", "data_prep", "launch") for p in (ROOT / room).rglob("*.py")
    ]
    found = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in paths if makes(p)}
    return sorted((found | OTHERS.keys()) - {"data_prep.command"})


def makes(path):
    return BUILDS.search(path.read_text()) is not None


class Asked(Exception):
    """In place of a command's work: its parser."""


def parsers_of(name, monkeypatch):
    """The parser of a command, and those of its sub-commands."""

    def ask(parser, args=None, namespace=None):
        raise Asked(parser)

    with monkeypatch.context() as patch:
        patch.setattr(command.Parser, "parse_known_args", ask)
        with pytest.raises(Asked) as asked:
            OTHERS.get(name, lambda: importlib.import_module(name).main([]))()
    (parser,) = asked.value.args
    below = [a.choices.values() for a in parser._actions if a.nargs == argparse.PARSER]
    return [parser, *(sub for choices in below for sub in choices)]


def flags_with_a_value(parser):
    """Of each flag that takes a value its name and its action."""
    return [(a.option_strings[0], a) for a in parser._actions if a.option_strings and a.nargs != 0]


@pytest.mark.parametrize("name", names())
def test_an_empty_value_is_refused(name, monkeypatch):
    for parser in parsers_of(name, monkeypatch):
        for flag, _ in flags_with_a_value(parser):
            for words in ([f"{flag}="], [flag, ""], [f"{flag}= "]):
                with pytest.raises(ConfigError, match=f"^{flag} is empty, [^\n]*$"):
                    parser.parse_known_args(words)


@pytest.mark.parametrize("name", names())
def test_a_number_that_is_none_is_refused(name, monkeypatch):
    for parser in parsers_of(name, monkeypatch):
        for flag, action in flags_with_a_value(parser):
            if action.type is not float:
                continue
            for value in ("nan", "inf", "-inf", "1e999"):
                with pytest.raises(ConfigError, match=f"^{flag}={value}: must be a finite number"):
                    parser.parse_known_args([f"{flag}={value}"])


def test_the_commands_with_numbers_are_among_them(monkeypatch):
    found = {
        flag
        for name in names()
        for parser in parsers_of(name, monkeypatch)
        for flag, action in flags_with_a_value(parser)
        if action.type is float
    }
    assert found >= {"--val_fraction", "--max_rejected", "--cosine", "--threshold_at", "--grace"}


def test_empty_words_of_another_command_pass():
    parser = command.Parser()
    parser.add_argument("arguments", nargs="*")
    assert parser.parse_args(["--", "--config.arm=", ""]).arguments == ["--config.arm=", ""]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--workdir=", "--workdir is empty"),
        ("--coordinator=", "--coordinator is empty"),
        ("--start_timeout=nan", "--start_timeout=nan: must be a finite number"),
    ],
)
def test_so_are_those_of_a_run(word, told, capsys):
    assert main.main(["main", "--config=configs/spark.py:smoke", word]) == 2
    assert told in capsys.readouterr().err
