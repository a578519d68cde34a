"""A flag that is given twice counts twice or is refused: argparse alone keeps the last."""

import pytest

from ctssl_jax import command
from ctssl_jax.errors import ConfigError
from data_prep.command import new_parser


@pytest.fixture
def parser():
    made = command.Parser(prog="x")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", default="")
    made.add_argument("--quick", action="store_true")
    made.add_argument("--of", action=command.List, default="")
    made.add_argument("runs", nargs="*")
    return made


def test_one_value_twice_is_one_and_two_values_are_refused(parser):
    assert parser.parse_args(["--seed=1", "--quick", "--seed=1", "--quick", "a", "b"]).seed == 1
    assert parser.parse_args(["--seed=2"]).seed == 2  # another command line
    for words in (["--seed=1", "--seed=2"], ["--seed=0", "--seed=2"], ["--out=a", "--out", "b"]):
        with pytest.raises(ConfigError, match=r"--(seed|out) is given twice, .*: keep one"):
            parser.parse_args(words)


def test_lists_are_added_up(parser):
    assert parser.parse_args(["--of=a,b", "--of=c"]).of == "a,b,c"
    assert parser.parse_args([]).of == ""


def test_every_flag_of_preparation_with_one_value_is_of_this_kind():
    made = new_parser("x", "", "", source="x")
    with_value = [action for action in made._actions if action.nargs != 0]
    assert with_value
    for action in with_value:
        assert isinstance(action, command._Once | command.List), action.option_strings
