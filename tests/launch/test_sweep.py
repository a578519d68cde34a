"""The sweep: what it runs, keeps, names and tells."""

import csv
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import compiler_options
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from configs import spark
from ctssl_jax import finetune, flags
from ctssl_jax.ablation import Cell
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.config_record import config_record
from ctssl_jax.errors import ConfigError, DataError, DivergedError, Preempted
from ctssl_jax.files import read_json
from ctssl_jax.methods.base import Start, init_encoder
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.runs import find_runs
from ctssl_jax.run import checkpoint, lock
from ctssl_jax.run import folder as run_folder
from ctssl_jax.scores import read_predictions
from data_prep.phantom import source as phantom
from data_prep.pipeline.prepare import prepare
from data_prep.pipeline.records import PUBLIC_KEY
from data_prep.pipeline.split import fold_fractions
from launch.sweep import __main__ as sweep
from launch.sweep import folder
from launch.sweep.command_line import command_line

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("tiny_encoder")


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory):
    """A run whose encoder is random: what it is worth is not the question here."""
    import jax

    config, run = spark.get_config("smoke"), tmp_path_factory.mktemp("runs") / "spark"
    encoder = config.encoder.build(config.precision)
    params, stats = init_encoder(encoder, jax.random.key(0), 64, 1)
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config_record(config)))
    checkpoint.save_start(run, Start({"encoder": params}, {"encoder": stats}))
    (run / "STATUS").write_text("done\n")
    return run


@pytest.fixture
def argv(tmp_path, phantom_path, encoder_run):
    """Two small cells."""
    return [
        "sweep",
        "--config=configs/ablation.py:smoke",
        f"--config.base.data.path={phantom_path}",
        f"--config.encoders={encoder_run}",
        "--config.fractions=(0.5,)",
        f"--workdir={tmp_path / 'grid'}",
    ]


def grid_of(argv):
    _, others = sweep.Flags().parse(argv)
    return list(flags.parse(others).config.cells())


def table(workdir):
    with (workdir / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_grid_is_run_and_what_is_done_is_kept(tmp_path, argv, capsys):
    workdir = tmp_path / "grid"
    assert sweep.command([*argv, "--cell=1"]) == 0
    assert [row["run"] for row in table(workdir)] == ["phantom-spark-0.5-seed0"]
    assert sweep.command(argv) == 0
    rows = table(workdir)
    assert [row["arm"] for row in rows] == ["scratch", "spark"]
    for row in rows:
        results = json.loads((workdir / row["run"] / "results.json").read_text())
        assert (float(row["test_auc"]), int(row["train_slices"])) == (results["test"]["auc"], 16)
        assert row["config_hash"] == results["config_hash"]
    subsets = {(workdir / row["run"] / "subset.json").read_text() for row in rows}
    assert len(subsets) == 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "run", None)  # nothing is run again
        before = (workdir / "results.csv").read_bytes()
        (workdir / "results.csv").unlink()
        assert sweep.command(argv) == 0
        assert (workdir / "results.csv").read_bytes() == before
    out = capsys.readouterr().out
    assert "[0/1] cells are done" in out
    assert "[1/2] cells are done" in out
    assert "[2/2] done" in out

    # When a pre-training joins, or leaves, what is done of the first is called otherwise and kept.
    first = next(a for a in argv if "encoders" in a).partition("=")[2]
    joins = shutil.copytree(first, tmp_path / "joins" / "run")
    record = json.loads((joins / "config.json").read_text())
    record |= {"hash": "1" * 16, "config": record["config"] | {"seed": 77}}
    (joins / "config.json").write_text(json.dumps(record))
    mark = f"@{str(run_folder.run_hash(first))[:6]}"
    with pytest.MonkeyPatch.context() as patch:
        ran = []

        def refuse(config, path, supervisor):
            ran.append(path.name)
            raise DataError("not now")

        patch.setattr(finetune, "run", refuse)
        assert sweep.command([*argv, f"--config.encoders={joins}"]) == DataError.exit_code
        assert ran == ["phantom-spark@111111-0.5-seed0"]
        assert f"spark-0.5-seed0 is phantom-spark{mark}-0.5-seed0 now" in capsys.readouterr().out
        assert (workdir / f"phantom-spark{mark}-0.5-seed0").exists()
        assert not (workdir / "phantom-spark-0.5-seed0").exists()
        patch.setattr(finetune, "run", None)
        assert sweep.command(argv) == 0
        assert (workdir / "results.csv").read_bytes() == before
        capsys.readouterr()

    # Of another encoder, the cell is not done, and would be refused: nothing is run.
    other = tmp_path / "other" / "run"
    shutil.copytree(next(a for a in argv if "encoders" in a).partition("=")[2], other)
    record = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(record | {"hash": "0" * 16}))
    argv = [*(a for a in argv if "encoders" not in a), f"--config.encoders={other}"]
    assert sweep.command(argv) == ConfigError.exit_code
    err = capsys.readouterr().err
    assert "phantom-spark-0.5-seed0 was made by another sweep" in err
    assert "started from another encoder_run" in err
    assert err.count("\n") == 1

    # Nor is any cell run of another recipe, beside those that are done.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "run", None)
        for own in ([], ["--parallel=2"], ["--cell=0"]):
            changed = [*argv, "--config.base.epochs=9", "--config.fractions=(0.25,)", *own]
            assert sweep.command(changed) == ConfigError.exit_code
            (line,) = capsys.readouterr().err.splitlines()
            assert "config.epochs is " in line
            assert " there and 9 here): nothing is run" in line
    assert not (workdir / "phantom-scratch-0.25-seed0").exists()

    # Another task may share the folder, as may another seed that is trained otherwise.
    with pytest.MonkeyPatch.context() as patch:
        ran = []
        patch.setattr(finetune, "run", lambda config, workdir, _: ran.append(workdir.name))
        for other in ("--config.base.task=other", "--config.seeds=(5,)"):
            words = [*argv, "--config.base.epochs=9", "--config.scratch=true", other]
            assert sweep.command(words) == 0
    assert len(ran) == 4


def fake_runs(patch, outcomes):
    """Runs in place of training: a name is done unless `outcomes` holds an error for it."""
    ran = []

    def run(config, workdir, supervisor):
        ran.append(workdir.name)
        if error := outcomes.get(workdir.name):
            raise error
        workdir.mkdir(parents=True)
        (workdir / "STATUS").write_text("done\n")
        score = {"auc": 0.5 + config.seed / 7, "f1": 0.5, "accuracy": 0.5, "n": 8}
        names = ("task", "arm", "fraction", "seed", "test_split")
        results = {name: getattr(config, name) for name in names}
        for file in ("config.json", "results.json"):
            (workdir / file).write_text(json.dumps(results | {"val": score, "test": score}))

    patch.setattr(finetune, "run", run)
    patch.setattr(folder, "difference", lambda *_, **__: "")
    return ran


def test_broken_cells_are_named_tried_again_and_keep_none_of_the_others(
    tmp_path, argv, capsys, monkeypatch
):
    argv = [*argv, "--config.seeds=(0,1)"]
    names = [cell.name for cell in grid_of(argv)]
    outcomes = {names[1]: DivergedError("step 3: loss nan"), names[2]: DataError("no slices")}
    ran = fake_runs(monkeypatch, outcomes)
    assert sweep.command(argv) == DivergedError.exit_code
    assert ran == names
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of 4 cells broke, repeat the command to try them again" in line
    assert f"{names[1]} (step 3: loss nan)" in line
    assert f"{names[2]} (no slices)" in line
    assert [row["run"] for row in table(tmp_path / "grid")] == [names[0], names[3]]
    outcomes.clear()
    ran.clear()
    assert sweep.command(argv) == 0
    assert ran == names[1:3]


def test_an_error_that_is_no_users_breaks_its_cell_alone(tmp_path, argv, capsys, monkeypatch):
    names = [cell.name for cell in grid_of(argv)]
    ran = fake_runs(monkeypatch, {names[0]: ValueError("Input X\ncontains NaN")})
    run = finetune.run

    def begin(config, workdir, supervisor):
        if workdir.name == names[0]:
            workdir.mkdir(parents=True)
            lock.take(workdir)
        run(config, workdir, supervisor)

    monkeypatch.setattr(finetune, "run", begin)
    assert sweep.command(argv) == 1
    assert ran == names
    (line,) = capsys.readouterr().err.splitlines()
    assert f"1 of 2 cells broke, repeat the command to try them again: {names[0]}" in line
    assert "(ValueError: Input X contains NaN)" in line
    assert [row["run"] for row in table(tmp_path / "grid")] == names[1:]
    lock.release(tmp_path / "grid" / names[0])
    log = (tmp_path / "grid" / names[0] / "log.txt").read_text()
    assert "Traceback" in log
    assert "contains NaN" in log


@pytest.mark.parametrize("read_test", [True, False])
def test_the_rate_is_chosen_on_validation_before_the_cells_that_are_compared(
    tmp_path, argv, capsys, monkeypatch, read_test
):
    argv = [*argv, "--config.lrs=(0.001,0.01)", "--config.tuning_seeds=(5,6)"]
    argv += [] if read_test else ["--config.base.read_test=false"]
    names = [cell.name for cell in grid_of(argv)]
    assert sum(name.startswith("tuning/") for name in names) == 8
    given = {}

    def run(config, workdir, supervisor):
        given[workdir.name] = config
        workdir.mkdir(parents=True)
        (workdir / "STATUS").write_text("done\n")
        # From scratch the second rate is better, for the encoder the first.
        better = (config.optim.lr == 0.01) == (config.arm == "scratch")
        score = {"auc": 0.5 + 0.1 * better + config.seed / 100, "f1": 0.5, "accuracy": 0.5, "n": 8}
        results = {"task": config.task, "arm": config.arm, "fraction": config.fraction}
        results |= {"seed": config.seed, "val": score} | (
            {"test": score} if config.read_test else {}
        )
        for file in ("config.json", "results.json"):
            (workdir / file).write_text(json.dumps(results))

    monkeypatch.setattr(finetune, "run", run)
    monkeypatch.setattr(folder, "difference", lambda *_, **__: "")
    assert sweep.command([*argv, "--dry_run"]) == 0
    assert capsys.readouterr().out.count("waits for its learning rate") == 2
    assert sweep.command([*argv, "--cell=9"]) == ConfigError.exit_code
    assert f"run the tuning cells, as {names[4]}" in capsys.readouterr().err
    assert sweep.command(argv) == 0
    assert [name.split("-")[1] for name in given] == ["scratch"] * 4 + ["spark"] * 4 + [
        "scratch",
        "spark",
    ]
    assert given["phantom-scratch-0.5-seed0"].optim.lr == 0.01
    assert given["phantom-spark-0.5-seed0"].optim.lr == 0.001
    compared = ["phantom-scratch-0.5-seed0", "phantom-spark-0.5-seed0"]
    assert [row["run"] for row in table(tmp_path / "grid")] == (compared if read_test else [])
    assert sweep.command([*argv, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "# 10 cells: 10 done" in out
    line = next(
        line for line in out.splitlines() if "phantom-spark-0.5-seed0" in line and "--" in line
    )
    assert "--config.optim.lr" not in line  # the smoke preset's rate
    assert "--config.tuned_lrs=(0.001, 0.01)" in line


def test_runs_that_were_best_at_their_last_step_are_told(tmp_path, argv, capsys, monkeypatch):
    fake_runs(monkeypatch, {})
    assert sweep.command(argv) == 0
    name = grid_of(argv)[1].name
    path = tmp_path / "grid" / name / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"best_step": 9, "total_steps": 9}))
    capsys.readouterr()
    assert sweep.command(argv) == 0
    assert f"1 runs were best at their last step, {name} among them" in capsys.readouterr().out


def test_runs_are_renamed_where_they_are_of_the_encoder_alone(tmp_path):
    run = tmp_path / "encoder"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"hash": "a" * 16, "config": {}}))
    config = FinetuneConfig(encoder_run=str(run))

    def cell(name, otherwise):
        return Cell(name, config, "", 1.0, otherwise=otherwise)

    cells = [cell(f"{n}@a", n) for n in "bcdef"] + [cell("g", "g"), cell("h", "")]
    of_it, of_another = {"encoder_run": "a" * 16}, {"encoder_run": "b" * 16}
    for name, file, noted in (
        ("b", "data.json", of_it),
        ("c", "data.json", of_another),
        ("d", "data.json", {"encoder_run": None}),
        ("e", "data.json", of_it),
        ("g", "data.json", of_it),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(noted))
    (tmp_path / "d" / "results.json").write_text(json.dumps(of_it))  # features, scored
    (tmp_path / "e@a").mkdir()  # is there already
    assert folder.rename(cells, tmp_path) == ["b is b@a now", "d is d@a now"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"encoder", "b@a", "c", "d@a", "e", "e@a", "g"}
    assert folder.rename(cells, tmp_path) == []


@pytest.mark.parametrize("after", range(4))
def test_interrupted_after_any_cell_the_table_is_the_same(tmp_path, argv, monkeypatch, after):
    argv = [*argv, "--config.seeds=(0,1)"]
    names = [cell.name for cell in grid_of(argv)]
    outcomes = {names[after]: Preempted("now")}
    ran = fake_runs(monkeypatch, outcomes)
    assert sweep.command(argv) == Preempted.exit_code
    assert ran == names[: after + 1]
    outcomes.clear()
    assert sweep.command(argv) == 0
    whole = [*argv[:-2], f"--workdir={tmp_path / 'whole'}", argv[-1]]
    assert sweep.command(whole) == 0
    found = [(tmp_path / name / "results.csv").read_bytes() for name in ("grid", "whole")]
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 5


@pytest.mark.parametrize(
    "changes",
    [[], ["--config.frozen=true", "--config.counts=(8,16)"], ["--config.folds=3"]],
)
def test_dry_run_prints_ordinary_commands_that_give_the_very_configs(
    tmp_path, argv, capsys, changes
):
    argv = [word for word in argv if "fractions" not in word or "counts" not in str(changes)]
    argv += [
        *changes,
        "--config.base.method.view.hflip=0.25",
        "--config.base.select_by=ACCURACY",
    ]
    argv += [
        "--config.base.intensity.window_hu=(-100.0, 99.5)",
        "--config.base.freeze.scratch=true",
    ]
    cells = grid_of(argv)
    assert sweep.command([*argv, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "grid").exists()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(commands) == len(cells)
    for cell, (*start, module, file, changes) in zip(
        cells, [(*c[:2], c[2], c[3], c[4:]) for c in commands], strict=True
    ):
        assert (start, module) == (["python", "-m"], "ctssl_jax.main")
        command = flags.parse([module, file, *changes])
        assert config_record(command.config)["hash"] == config_record(cell.config)["hash"]
        assert command.config == cell.config
        assert command.workdir == tmp_path / "grid" / cell.name
    assert lines[-2] == f"# {len(cells)} cells: {len(cells)} to do"
    assert "once one is done" in lines[-1]


def test_every_value_that_a_flag_can_give_comes_through(tmp_path):
    file = "configs/finetune_covid_ct.py"
    config = importlib.import_module("configs.finetune_hemorrhage").get_config("as_run")
    config.task, config.hang_after_s = "two words", 0.5
    command = flags.parse(command_line(config, file, tmp_path / "a b"))
    assert (command.config, command.workdir) == (config, tmp_path / "a b")


def test_dry_run_says_what_is_left_and_its_cost(tmp_path, argv, capsys, monkeypatch):
    argv = [*argv, "--config.fractions=(0.25,1.0)", "--config.scratch=false"]  # and 0.5
    names = [cell.name for cell in grid_of(argv)]
    fake_runs(monkeypatch, {})
    assert sweep.command([*argv, "--cell=1"]) == 0
    run = tmp_path / "grid" / names[1]
    (run / "env.json").touch()
    os.utime(run / "env.json", (1000, 1000))
    results = json.loads((run / "results.json").read_text())
    results |= {"train_slices": 100, "epochs_trained": 9}
    (run / "results.json").write_text(json.dumps(results))
    os.utime(run / "results.json", (2800, 2800))  # half an hour
    rows = [{"step": 1, "images_per_second": 1.0}, {"step": 1, "val_auc": 0.5}]  # 900 s of training
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "grid" / names[0]).mkdir()
    for name, text in (("config.json", ""), ("STATUS", "failed:4\n")):
        (tmp_path / "grid" / names[0] / name).write_text(text)
    capsys.readouterr()
    assert sweep.command([*argv, "--dry_run", "--price_per_hour=2", "--parallel=3"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert lines == [
        f"# 0 {names[0]}: broken, about 8m",  # a third of 15 + 7.5 minutes
        f"# 1 {names[1]}: done",
        f"# 2 {names[2]}: to do, about 15m",  # of 15 + 30
        "# 3 cells: 1 broken, 1 done, 1 to do",
        "# to do: about 22m, 3 at a time, at 2 an hour 0.75",
    ]


def test_a_run_that_ended_before_it_began_took_no_known_time(tmp_path, argv, monkeypatch):
    fake_runs(monkeypatch, {})
    assert sweep.command([*argv, "--cell=0"]) == 0
    cells = grid_of(argv)
    run = tmp_path / "grid" / cells[0].name
    (run / "env.json").touch()
    os.utime(run / "results.json", (1000, 1000))
    assert set(folder.expected_seconds(cells, tmp_path / "grid").values()) == {None}


@pytest.mark.parametrize(
    ("flag", "code", "named"),
    [
        ("--parallel=0", 2, "--parallel=0"),
        ("--parallel=x", 2, "--parallel"),
        ("--cell=9", 2, "there are the cells 0 to 1"),
        ("--gpus=0,1", 2, "--gpus goes with --parallel"),
        ("--price_per_hour=-1", 2, "--price_per_hour=-1.0"),
        ("--paralel=2", 2, "paralel"),
        ("--config.encoders=/nowhere", 3, "no run at /nowhere"),
        ("--config.encoders=my runs/spark", 2, "a value with spaces needs quotes of its own"),
        ("--config.folds=2", 2, "folds=2: must be 3 or more"),
        (
            "--config.folds=3",
            3,
            "has the splits train, val, test; prepare it with --folds=3",
        ),
    ],
)
def test_what_will_not_do_is_named_before_any_run(tmp_path, argv, capsys, flag, code, named):
    assert sweep.command([*argv, flag]) == code
    err = capsys.readouterr().err
    assert named in err
    assert err.count("\n") == 1
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("content", [b"patient,label\n1,0\n", b"\xff\xfe\0", b"task,arm\n"])
@pytest.mark.parametrize("flags", [[], ["--parallel=2"], ["--cell=0"], ["--dry_run"]])
def test_a_table_that_is_no_sweeps_is_left_alone(tmp_path, argv, capsys, content, flags):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "results.csv").write_bytes(content)
    assert sweep.command([*argv, *flags]) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "results.csv is none of a sweep: move it, or give another --workdir" in line
    assert [path.name for path in (tmp_path / "grid").iterdir()] == ["results.csv"]
    assert (tmp_path / "grid" / "results.csv").read_bytes() == content


def test_a_table_of_an_older_sweep_is_replaced(tmp_path, argv, monkeypatch):
    (tmp_path / "grid").mkdir()
    older = "task,arm,classifier,fraction,train_slices,train_patients,seed,best_epoch,run\n"
    (tmp_path / "grid" / "results.csv").write_text(older)
    fake_runs(monkeypatch, {})
    assert sweep.command(argv) == 0
    assert len(table(tmp_path / "grid")) == 2


def test_config_of_another_kind_is_named(capsys, tmp_path):
    assert sweep.command(["sweep", "--config=configs/spark.py:smoke", f"--workdir={tmp_path}"]) == 2
    assert "give one of a study, as ablation:cases" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folds_path(tmp_path_factory):
    """The phantom in three folds of two patients."""
    path = tmp_path_factory.mktemp("data") / "folds"
    source = phantom.make_source(patients=6, slices=8, size=64, seed=0)
    prepare(source, path, key=PUBLIC_KEY, fractions=fold_fractions(3))
    return path


def test_folds_are_told_apart_in_the_table(tmp_path, argv, folds_path, monkeypatch):
    argv = [*argv, "--config.folds=3", f"--config.base.data.path={folds_path}"]
    ran = fake_runs(monkeypatch, {})
    assert sweep.command(argv) == 0
    assert ran == [
        f"phantom-{arm}-0.5-seed0-fold{fold}" for fold in range(3) for arm in ("scratch", "spark")
    ]
    assert [(row["arm"], row["test_split"]) for row in table(tmp_path / "grid")] == [
        (arm, f"fold{fold}") for arm in ("scratch", "spark") for fold in range(3)
    ]


@pytest.mark.slow
def test_cross_validation_from_folds_to_report(tmp_path, argv, folds_path):
    flags = ["--config.folds=3", f"--config.base.data.path={folds_path}", "--config.frozen=true"]
    argv, workdir = [*argv, *flags], tmp_path / "grid"
    assert sweep.command([*argv, "--cell=0"]) == 0
    assert sweep.command(argv) == 0
    rows = table(workdir)
    assert len(rows) == 3 * (2 + 2 * 2)  # two arms; their frozen features by two classifiers
    finetuned = [row for row in rows if row["classifier"] == "finetuned"]
    for fold in range(3):
        own = [row["run"] for row in rows if row["test_split"] == f"fold{fold}"]
        assert len({(workdir / run / "subset.json").read_text() for run in own}) == 1
    (task,) = compare(find_runs([workdir])).tasks
    assert (task.folds, task.test_cases, task.test_patients) == (3, 48, 6)
    for cell in task.cells:
        runs = [row["run"] for row in finetuned if row["arm"] == cell.arm]
        scored = [
            read_predictions(workdir / run / "predictions.csv", f"fold{fold}")
            for fold, run in enumerate(runs)
        ]
        labels = np.concatenate([own.labels for own in scored])
        scores = np.concatenate([own.scores[:, 1] for own in scored])
        assert cell.test("auc") == pytest.approx([roc_auc_score(labels, scores)])


@pytest.mark.slow
def test_killed_at_any_moment_and_repeated_the_table_is_the_same(tmp_path, argv):
    argv = [*argv[1:-1], "--config.fractions=(0.25,)", "--parallel=2"]  # and 0.5
    environment = {**os.environ, "XLA_FLAGS": compiler_options.flags()}

    def start(workdir):
        words = [sys.executable, "-m", "launch.sweep", *argv, f"--workdir={workdir}"]
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=600) == 0
    for number, seconds in ((signal.SIGKILL, 12), (signal.SIGTERM, 18), (signal.SIGKILL, 25)):
        process = start(tmp_path / "killed")
        time.sleep(seconds)
        process.send_signal(number)
        process.wait(timeout=60)
    assert start(tmp_path / "killed").wait(timeout=600) == 0
    found = [(tmp_path / name / "results.csv").read_bytes() for name in ("whole", "killed")]
    assert found[0] == found[1]
    assert found[0].count(b"\n") == 5


@pytest.mark.parametrize("parallel", [[], ["--parallel=2"]])
def test_what_every_cell_would_be_refused_for_is_told_once_before_the_first(
    tmp_path, argv, capsys, monkeypatch, parallel
):
    ran = fake_runs(monkeypatch, {})
    monkeypatch.setattr(sweep.pool, "run", lambda *_: ran.append("a process"))
    wrong = ["--config.seeds=(0,1,2)", "--config.base.encoder.depth=50", *parallel]
    assert sweep.command([*argv, *wrong]) == ConfigError.exit_code
    err = capsys.readouterr().err
    assert "encoder.depth=50, but that of the encoder in" in err
    assert err.endswith("is 18: set encoder.depth=18\n")
    assert err.count("\n") == 1
    assert not ran
    assert not (tmp_path / "grid").exists()


def test_what_leaks_is_refused_with_the_flag_of_a_sweep(tmp_path, argv, phantom_path, capsys):
    leaky = tmp_path / "leaky"
    shutil.copytree(phantom_path, leaky)
    audit = read_json(leaky / "audit.json")  # without its sum
    found = [{"check": "near", "splits": ["train", "test"], "count": 1}]
    (leaky / "audit.json").write_text(json.dumps({**audit, "verdict": "fail", "findings": found}))
    words = [word for word in argv if "data.path" not in word]
    assert sweep.command([*words, f"--config.base.data.path={leaky}"]) == DataError.exit_code
    assert capsys.readouterr().err.endswith("set --config.base.data.accept_leakage=true\n")
