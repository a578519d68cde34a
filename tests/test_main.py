"""What a user types, and the one line that answers a mistake."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from ctssl_jax import command, flags, main
from ctssl_jax.config import PretrainConfig
from ctssl_jax.errors import ConfigError, DataError, Preempted, StorageError
from ctssl_jax.run import lock as run_lock


def answer(capsys, *arguments):
    """Exit code and stderr of a command."""
    code = main.main(["main", *arguments])
    return code, capsys.readouterr().err


SPARK = "--config=configs/spark.py:smoke"
FINETUNE = "--config=configs/finetune_covid_ct.py:smoke"


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([], 2, "no --config"),
        (["--config=configs/nothing.py"], 2, "nothing.py"),
        (["--config=configs/spark.py:tiny"], 2, "no preset :tiny"),
        ([SPARK, "--config.method.mask_ration=0.5"], 2, "mask_ration"),
        ([SPARK, "--config.batch_size=many"], 2, "batch_size"),
        ([SPARK, "--config.batch_size=3.5"], 2, "batch_size"),
        ([SPARK, "--config.precision=float8"], 2, "precision"),
        ([SPARK, "--workdri=x"], 2, "workdri"),
        ([SPARK, "config.seed=1"], 2, "unknown argument config.seed=1"),
        ([SPARK, "--config.method.view.size=100"], 2, "a multiple of 32"),
        ([SPARK, "--config.encoder.depth=20"], 2, "encoder.depth=20"),
        ([SPARK, "--config.data.path=nowhere"], 3, "nowhere: no such dataset"),
        (["--config=configs/spark.py"], 3, "try the preset `:demo`"),
        ([FINETUNE, "--config.fraction=2"], 2, "fraction=2"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code(
    capsys, tmp_path, monkeypatch, arguments, code, named
):
    workdir = tmp_path / "run"
    found, err = answer(capsys, *arguments, f"--workdir={workdir}")
    assert (found, err.count("\n")) == (code, 1), err
    assert named in err
    assert "Traceback" not in err
    assert not workdir.exists()


def test_batch_that_does_not_divide_over_the_devices(capsys, tmp_path, phantom_path):
    code, err = answer(
        capsys,
        SPARK,
        f"--config.data.path={phantom_path}",
        "--config.batch_size=6",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 2
    assert "batch_size=6 does not divide over 4 devices" in err
    assert not (tmp_path / "run").exists()


def test_encoder_run_that_is_none(capsys, tmp_path, phantom_path):
    code, err = answer(
        capsys,
        FINETUNE,
        f"--config.data.path={phantom_path}",
        f"--config.encoder_run={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 3
    assert "no run at" in err
    assert not (tmp_path / "run").exists()


def test_finetuning_needs_labels(capsys, tmp_path):
    from memory import write_slices

    from data_prep.source import Slice

    image = np.zeros((32, 32), np.int16)
    slices = {"train": [Slice(image, "a", "b", 0)], "val": [Slice(image + 1, "c", "d", 0)]}
    write_slices(tmp_path / "set", slices, name="bare", classes=())
    code, err = answer(
        capsys, FINETUNE, f"--config.data.path={tmp_path / 'set'}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 3
    assert "bare has no labels, which this run learns from or is scored by: data_prep.folder" in err


def test_folder_that_is_no_run_is_left_alone(capsys, tmp_path, phantom_path):
    (tmp_path / "thesis.txt").write_text("mine")
    code, err = answer(capsys, SPARK, f"--config.data.path={phantom_path}", f"--workdir={tmp_path}")
    assert code == 2
    assert "not empty and no run folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_flags_reach_the_config_and_the_workdir_has_a_name():
    parsed = flags.parse(
        ["main", SPARK, "--config.method.mask_ratio=0.75", "--config.optim.lr=1e-3"]
    )
    config, workdir = parsed.config, parsed.workdir
    assert parsed.cluster is None
    assert isinstance(config, PretrainConfig)
    assert (config.method.mask_ratio, config.optim.lr) == (0.75, 1e-3)
    assert str(workdir) == "runs/spark-smoke"


def test_unexpected_config_type_is_named(capsys):
    code, err = answer(capsys, "--config=configs/ablation.py:smoke")
    assert code == 2
    assert "AblationConfig" in err


def test_status_notes_how_a_run_ended_that_is_ours(tmp_path):
    (tmp_path / "STATUS").write_text("running\n")
    command.mark_ended(tmp_path, StorageError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "running\n"  # of a run that is not ours
    run_lock.take(tmp_path)
    command.mark_ended(tmp_path, ConfigError.exit_code)  # of too little memory, in the middle of it
    assert (tmp_path / "STATUS").read_text() == "failed:2\n"
    command.mark_ended(tmp_path, StorageError.exit_code)
    assert (tmp_path / "STATUS").read_text() == "failed:5\n"
    command.mark_ended(tmp_path, Preempted.exit_code)
    assert (tmp_path / "STATUS").read_text() == "preempted\n"
    run_lock.release(tmp_path)


def test_demo_phantom_is_made_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []

    def run(words, **_):
        made.append(words[1:])
        return subprocess.CompletedProcess(words, len(made) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    main.provide_phantom("data/mine")
    main.provide_phantom(main.PHANTOM)
    assert made == [["-m", "data_prep.phantom", "--out=data/phantom"]]
    with pytest.raises(DataError, match=r"python -m data_prep\.phantom --out=data/phantom"):
        main.prepare_phantom()  # that fails the second time


def test_json_of_the_config_is_plain():
    config = flags.parse(["main", SPARK]).config
    from ctssl_jax.config_record import to_json

    assert json.loads(json.dumps(to_json(config))) == to_json(config)


def test_a_run_whose_output_nobody_reads_any_more_ends_so():
    """As under `| head -n 1`; and where streams are closed from the start it goes on in silence."""
    code = (
        "import sys; from ctssl_jax import command\n"
        "def work(config, workdir, supervisor):\n    for i in range(100_000): print(i)\n"
        "command.end(command.execute(sys.argv, work))"
    )
    python = [sys.executable, "-c", code, "--config=spark:smoke", "--workdir=RUN"]
    line = " ".join(map(shlex.quote, python))
    script = f"{line} | head -n 1; echo ${{PIPESTATUS[0]}}; {line} >&- 2>&-; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "141", "0"], done
    assert done.stderr == ""
