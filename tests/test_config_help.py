"""`--help` shows every config, preset and field, with its default and meaning."""

import importlib
import re
from pathlib import Path

import pytest

from ctssl_jax import command, config_help, flags, main, presets
from ctssl_jax.ablation import AblationConfig
from ctssl_jax.config import EvaluateConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.errors import ConfigError
from launch.sweep import __main__ as sweep

FILES = presets.names()


@pytest.mark.parametrize("file", FILES)
def test_every_field_says_what_it_means(file):
    config = importlib.import_module(f"configs.{file}").get_config()
    silent = [field.name for field in config_help.fields(config) if not field.meaning]
    assert not silent


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_what_one_gets(word, capsys):
    assert main.main(["main", word]) == 0
    told, wrong = capsys.readouterr()
    assert not wrong
    for file in (name for name in FILES if name != "ablation"):
        known = re.search(r"presets: ([^.]*)", Path(f"configs/{file}.py").read_text())[1]
        line = " ".join(told[told.index(f"  --config={file}  ") :].split()[:40])
        assert f"Presets: {' '.join(known.split())}" in line
    for kind in (PretrainConfig, FinetuneConfig, EvaluateConfig):
        for name, default, _ in config_help.fields(kind()):
            assert f"--config.{name}={default}" in told
    assert max(map(len, told.splitlines())) <= 100


def test_help_of_a_config_has_its_values(capsys):
    assert main.main(["main", "--config=configs/moco.py:smoke", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--config.method.queue_size=16" in told
    assert "FinetuneConfig" not in told


def test_help_of_the_sweep_has_its_grid(capsys):
    assert sweep.command(["sweep", "--help"]) == 0
    told = capsys.readouterr().out
    for words in ("--dry_run", "--parallel", "--config=ablation", "--config.encoders="):
        assert words in told


def test_attributes_are_read_from_a_docstring():
    class Shown:
        """Title.

        Attributes:
          one: what it is,
            on two lines.
          two, three: both.
        """

    found = config_help.meanings(Shown)
    assert found == {"one": "what it is, on two lines.", "two": "both.", "three": "both."}
    assert AblationConfig.__doc__


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("batchsize", "batch_size"),
        ("lr", "optim.lr"),
        ("method.mask_ration", "method.mask_ratio"),
        ("optim.learning_rate_of_all", ""),
    ],
)
def test_an_unknown_field_names_the_closest(flag, meant, capsys):
    assert main.main(["main", "--config=configs/spark.py:smoke", f"--config.{flag}=1"]) == 2
    told = capsys.readouterr().err
    mend = f"did you mean --config.{meant}?" if meant else "--help lists them"
    assert told == f"ctssl_jax: --config.{flag}: there is no such field; {mend}\n"


@pytest.mark.parametrize(
    ("config", "both", "said"),
    [
        ("finetune_cases", ["count=8", "fraction=0.5"], ("count", "fraction")),
        ("finetune_cases", ["steps=8", "epochs=5"], ("steps", "epochs")),
        (
            "finetune_cases",
            ["freeze.steps=8", "freeze.epochs=5"],
            ("freeze.steps", "freeze.epochs"),
        ),
        ("evaluate", ["count=8", "fraction=0.5"], ("count", "fraction")),
        ("ablation", ["counts=(8,)", "fractions=(0.5,)"], ("counts", "fractions")),
        ("ablation", ["base.steps=8", "base.epochs=5"], ("base.steps", "base.epochs")),
    ],
)
def test_a_field_that_another_takes_the_place_of_is_not_ignored(config, both, said):
    flags_of = [f"--config.{field}" for field in both]
    asked = ["main", f"--config=configs/{config}.py:smoke"]
    with pytest.raises(ConfigError) as told:
        flags.parse([*asked, *flags_of])
    first, second = said
    mend = f"--config.{first} takes the place of --config.{second}: give one of the two"
    assert str(told.value) == mend
    for one in flags_of:
        flags.parse([*asked, one])


@pytest.mark.parametrize(
    ("config", "typed", "place", "none"),
    [
        ("finetune_cases:laptop", "epochs=70", "steps=400", "steps=0"),
        ("finetune_cases:laptop", "freeze.epochs=3", "freeze.steps=57", "freeze.steps=0"),
        ("ablation:mine_laptop", "base.epochs=200", "base.steps=400", "base.steps=0"),
        ("ablation:demo", "fractions=(0.02,)", "counts=(8, 24)", "counts=()"),
    ],
)
def test_a_field_that_one_of_the_preset_takes_the_place_of_is_not_ignored(
    config, typed, place, none
):
    asked = ["main", f"--config={config}", f"--config.{typed}"]
    with pytest.raises(ConfigError) as told:
        flags.parse(asked)
    field = typed.partition("=")[0]
    assert str(told.value) == (
        f"--config.{field} has no effect: {place} of the config takes its place; change that, or "
        f"give --config.{none} too"
    )
    flags.parse([*asked, f"--config.{none}"])


SAME = "a fine-tuning's rate and decay are the same from first to last step, but for freeze"


@pytest.mark.parametrize(
    ("config", "field", "why"),
    [
        ("finetune_cases:smoke", "optim.warmup_epochs=3", SAME),
        ("finetune_cases:smoke", "optim.weight_decay_end=0", SAME),
        ("finetune_cases:smoke", "optim.momentum=0.5", "optim.name=adam has none"),
        ("ablation:mine", "base.optim.clock=epoch", SAME),
        ("ablation:smoke", "base.optim.trust_coefficient=0.1", "optim.name=adam has none"),
        ("spark:smoke", "optim.momentum=0.5", "optim.name=lamb has none"),
        ("moco:smoke", "optim.b2=0.5", "optim.name=sgd has none"),
        ("spark:smoke", "probe.k=5", "with probe.every=0 there is none"),
    ],
)
def test_a_field_that_does_nothing_is_not_ignored(config, field, why):
    with pytest.raises(ConfigError) as told:
        flags.parse(["main", f"--config={config}", f"--config.{field}"])
    name = field.partition("=")[0]
    assert str(told.value) == f"--config.{name} has no effect: {why}; leave it out"


def test_a_field_that_does_something_is_taken_where_it_does():
    for config, fields in (
        ("finetune_cases:smoke", ["freeze.epochs=1", "freeze.encoder_lr_ratio=0.5"]),
        ("finetune_cases:smoke", ["optim.name=sgd", "optim.momentum=0.5"]),
        ("spark:smoke", ["probe.every=5", "probe.k=5", "optim.b2=0.9"]),
    ):
        flags.parse(["main", f"--config={config}", *(f"--config.{field}" for field in fields)])
    nothing_rests = ["--config.freeze.epochs=0", "--config.freeze.steps=0"]
    with pytest.raises(
        ConfigError, match=r"^--config\.freeze\.mode has no effect: .* nothing rests"
    ):
        flags.parse(
            ["main", "--config=finetune_cases:smoke", *nothing_rests, "--config.freeze.mode=as_run"]
        )


def test_a_command_ends_with_its_code_and_one_line(capsys):
    def wrong():
        raise KeyboardInterrupt

    assert command.run("name", lambda: None) == 0
    assert command.run("name", lambda: 3) == 3
    assert command.run("name", wrong) == 130
    assert capsys.readouterr().err == "name: interrupted: repeat the command to go on\n"


@pytest.mark.parametrize("typed", ["-config.optim.lr=0.5", "--config.optim.lr=0.5", "flagfile"])
def test_a_rate_that_is_given_stays_however_it_is_given(tmp_path, typed):
    words = [typed, "--config.batch_size=128"]
    if typed == "flagfile":
        file = tmp_path / "flags"
        file.write_text("--config.optim.lr=0.5\n--config.batch_size=128\n")
        words = [f"--flagfile={file}"]
    assert flags.parse(["main", "--config=simclr:laptop", *words]).config.optim.lr == 0.5


@pytest.mark.parametrize(
    "words",
    [
        ["--config=spark:smoke", "--config=moco:smoke"],
        ["--config=spark:smoke", "--workdir=a", "--workdir=b"],
    ],
)
def test_a_flag_given_twice_is_refused(words):
    name = words[-1].partition("=")[0]
    with pytest.raises(ConfigError) as told:
        flags.parse(["main", *words])
    assert str(told.value) == f"{name} is given 2 times: give it once"


def test_a_field_may_be_given_again_and_one_of_several_values_takes_them_all():
    words = ["--config.batch_size=8", "--config.batch_size=16"]
    assert flags.parse(["main", "--config=spark:smoke", *words]).config.batch_size == 16
    words = ["--config.encoders=a", "--config.encoders=b"]
    assert flags.parse(["main", "--config=ablation:smoke", *words]).config.encoders == ("a", "b")


@pytest.mark.parametrize(
    ("text", "preset", "told"),
    [
        ("import nothing_there\n", "", "{file}, line 1: ModuleNotFoundError: No module named"),
        (
            "def get_config(preset=''):\n    return 1 / 0\n",
            "",
            "{file}, line 2: ZeroDivisionError:",
        ),
        ("\ndef get_config(\n", "", "{file}, line 2: '(' was never closed"),
        ("def get_config():\n    return 1\n", ":demo", "--config={file}: get_config() takes 0"),
        ("def get_config(preset=''):\n    return None\n", "", "--config={file}"),
        ("size = 1\n", "", "--config={file}: its get_config must return a config"),
        (
            "from ml_collections import ConfigDict\ndef get_config(preset=''):\n"
            "    return ConfigDict()\n",
            "",
            "--config={file}: its get_config must return a config",
        ),
    ],
)
def test_what_is_wrong_in_a_config_file_is_one_line(tmp_path, text, preset, told):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        flags.parse(["main", f"--config={file}{preset}"])
    line = str(caught.value)
    assert line.startswith(told.format(file=file))
    assert "\n" not in line
    assert "Traceback" not in line
