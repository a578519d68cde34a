"""Whatever is read back is checked: every file of a run, flipped, emptied, cut, as a FIFO or gone.

Then a reader gives what was written, or ends in one line with a documented exit code. Nothing is
loaded wrong, nothing hangs, nothing is a traceback.
"""

import dataclasses
import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from ctssl_jax import finetune, pretrain
from ctssl_jax.data import open_dataset
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.methods.base import abstract_encoder
from ctssl_jax.report.runs import read_run
from ctssl_jax.run import checkpoint, leakage, likeness
from ctssl_jax.run import folder as run_folder

pytestmark = [
    pytest.mark.usefixtures("tiny_encoder"),
    # Orbax drops the coroutines of a restore that fails.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LINES = (ConfigError, DataError, StorageError)
FLIPS = 5


@pytest.fixture(autouse=True)
def _collected():
    """What Orbax has dropped complains in the test that dropped it, and not in a later one."""
    yield
    gc.collect()


def flip(number: int) -> Callable[[Path], None]:
    """Turns one bit of a byte, of `FLIPS` that are spread over the file."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        place = len(content) * (2 * number + 1) // (2 * FLIPS)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)

    return damage


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def nest(path: Path) -> None:
    path.write_text("[" * 100_000)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove(path: Path) -> None:
    path.unlink()


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES = {
    **{f"flip{number}": flip(number) for number in range(FLIPS)},
    **{each.__name__: each for each in (empty, cut, nest, fifo, device, remove)},
}


def files_of(run: Path) -> list[str]:
    """What a reader may come across, but the lock, which holds nothing."""
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and path.name != "lock"
    )


def copied(run: Path, place: Path, name: str, damage: Callable[[Path], None]) -> Path:
    """A copy of a run with one damaged file."""
    made = place / "run"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(run, made, copy_function=os.link)
    (made / name).unlink()
    shutil.copy(run / name, made / name)
    if (made / name).stat().st_size:
        damage(made / name)
    return made


def is_one_line(error: Exception) -> bool:
    return "\n" not in str(error) and bool(str(error))


def same(found, wanted) -> bool:
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def tried(run: Path, place: Path, read: Callable[[Path], object], wanted, only: str, every: bool):
    """Reads a run with files damaged, each in some ways or in `every`; how often that was refused.

    `wanted` is what the undamaged run gives.
    """
    refused, wrong = 0, []
    names = [name for name in files_of(run) if name.startswith(only)]
    for number, name in enumerate(names):
        ways = dict(DAMAGES)
        if name in ("data.json", "seen.npy") and "pretraining" in str(run):
            del ways["remove"]  # then what the encoder saw is "unknown", and every result says so
        arrays = [f"flip{flipped}" for flipped in range(FLIPS)]
        once = arrays if "/d/" in name else [list(ways)[number % len(ways)]]
        for kind in ways if every else once:
            try:
                found = read(copied(run, place, name, DAMAGES[kind]))
            except LINES as error:
                refused += 1
                if not is_one_line(error):
                    wrong.append((name, kind, error))
            except Exception as error:
                wrong.append((name, kind, repr(error)))
            else:
                if not same(found, wanted):
                    wrong.append((name, kind, "loaded wrong"))
    assert not wrong, wrong[:10]
    return refused


EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"]
)


@EVERY
def test_an_encoder_is_what_was_saved_or_refused(runs, tmp_path, every):
    def read(run):
        return checkpoint.load_encoder(run, tiny.ENCODER, 1)

    wanted = read(runs["pretraining"])
    assert jax.tree.map(np.shape, wanted) == jax.tree.map(
        np.shape, abstract_encoder(tiny.ENCODER, 1)
    )
    step = f"checkpoints/{checkpoint.latest_step(runs['pretraining'])}"
    for part in ("encoder", "meta"):
        assert tried(runs["pretraining"], tmp_path, read, wanted, f"{step}/{part}", every) >= 1


def restorer(template) -> Callable[[Path], object]:
    def read(run: Path):
        checkpoints = checkpoint.Checkpoints(run)
        try:
            return checkpoints.restore(template).state
        finally:
            checkpoints.close()

    return read


@EVERY
def test_a_state_is_what_was_saved_or_refused(runs, configs, tmp_path, every):
    from ctssl_jax.hosts import sharding
    from ctssl_jax.run.opening import open_pretraining

    opened = open_pretraining(configs["pretraining"])
    program = pretrain.make_program(opened.config, opened.kept.slices, opened.dataset.intensity)
    abstract = jax.eval_shape(program.init, jax.random.key(0))
    places = sharding.state_shardings(abstract, sharding.make_mesh())
    read = restorer(sharding.abstract(abstract, places))
    wanted = read(runs["pretraining"])
    assert int(wanted.step) == 4
    assert tried(runs["pretraining"], tmp_path, read, wanted, "checkpoints/4", every) >= 5


@EVERY
def test_best_weights_are_what_was_saved_or_refused(runs, configs, tmp_path, every):
    from ctssl_jax.hosts import sharding
    from ctssl_jax.methods.base import TrainState

    def read(run):
        best = checkpoint.BestWeights(run)
        try:
            return best.read(), best.restore(state, sharding.make_mesh()).params
        finally:
            best.close()

    method = dataclasses.replace(configs["finetuning"].method, classes=2)
    encoder = configs["finetuning"].encoder.build(configs["finetuning"].precision)
    initial = jax.jit(lambda key: method.init(encoder, key, 1))(jax.random.key(0))
    state = TrainState(0, initial.params, initial.batch_stats, (), ())
    wanted = read(runs["finetuning"])
    assert set(wanted[0]) >= {"epoch", "step", "auc"}
    assert tried(runs["finetuning"], tmp_path, read, wanted, "best", every) >= 1


@EVERY
def test_a_finished_run_says_what_it_found_or_is_refused(runs, configs, tmp_path, every):
    """Repeating its command; where STATUS is damaged, its end is computed again."""
    config = dataclasses.replace(configs["finetuning"], encoder_run=str(runs["pretraining"]))

    def read(run):
        return str(finetune.run(config, run))

    wanted = read(runs["finetuning"])
    refused = 0
    for name in files_of(runs["finetuning"]):
        if "/" not in name:
            refused += tried(runs["finetuning"], tmp_path, read, wanted, name, every)
    assert refused >= 4


@EVERY
def test_what_is_known_of_an_encoder_is_right_or_refused(runs, configs, tmp_path, every):
    """Config, data and signatures of a pre-training run, as fine-tuning reads them."""
    from ctssl_jax.run.opening import open_labelled, results_header

    finetuning = runs["finetuning"]

    def read(run):
        config = dataclasses.replace(configs["finetuning"], encoder_run=str(run))
        header = results_header(open_labelled(config), finetuning)
        return str((header, run_folder.recipe(str(run))))

    wanted = read(runs["pretraining"])
    for name in ("config.json", "data.json", "seen.npy"):
        assert tried(runs["pretraining"], tmp_path, read, wanted, name, every) >= 1


def test_what_a_prediction_asks_of_a_run_is_right_or_refused(runs, phantom_path, tmp_path):
    """Features of validation, and signatures of what was learnt and seen; older runs have none."""

    def read(run):
        learnt = leakage.learnt_of(run, dataset)
        seen = leakage.require_unseen(dataset, ("test",), str(run), accept=True)
        return likeness.read_reference(run), str((learnt, seen))

    dataset = open_dataset(phantom_path)
    wanted, told = read(runs["finetuning"]), list[str]()
    assert wanted[0] is not None
    for name in (likeness.FILE, leakage.LEARNT, leakage.SEEN):
        for kind in set(DAMAGES) - {"remove"}:
            made = copied(runs["finetuning"], tmp_path, name, DAMAGES[kind])
            try:
                found = read(made)
            except StorageError as error:
                told.append(f"{name} {error}")
            else:
                assert same(found, wanted), (name, kind)
    assert len(told) >= 3 * 4
    assert all("\n" not in line and "prepare" not in line for line in told)
    assert all(line.split()[0] in line.split(" ", 1)[1] for line in told)


@EVERY
def test_a_report_and_a_sweep_leave_out_what_is_damaged(runs, tmp_path, every, capsys):
    """One damaged cell stops neither, and its numbers are in neither unless they are right."""

    def read(run):
        found = read_run(run)
        rows = folder.write_table(tmp_path) or (tmp_path / "results.csv").read_text()
        return str((found.results, found.cases)) if not found.problem else rows.count("tiny,")

    def tell(run):
        found = read(run)
        if isinstance(found, int):
            assert found in (
                0,
                1,
            )  # the table has it where the report wants a file that it does not
            raise StorageError("left out")
        return found

    from launch.sweep import folder

    wanted = tell(copied(runs["finetuning"], tmp_path, "env.json", lambda path: None))
    for name in files_of(runs["finetuning"]):
        if "/" not in name:
            tried(runs["finetuning"], tmp_path, tell, wanted, name, every)
    assert tried(runs["finetuning"], tmp_path, tell, wanted, "results.json", True) >= 8


@EVERY
def test_a_dataset_is_what_was_prepared_or_refused(phantom_path, configs, tmp_path, every):
    """Its records, manifest, audit, signatures and statistics, as a run reads them."""
    from ctssl_jax.augment import Intensity, Standardise
    from ctssl_jax.dataset.signatures import load_signatures
    from ctssl_jax.run.opening import open_pretraining

    def read(path):
        config = dataclasses.replace(
            configs["pretraining"],
            data=dataclasses.replace(configs["pretraining"].data, path=str(path)),
            intensity=Intensity(standardise=Standardise.DATASET),
        )
        opened = open_pretraining(config)
        source = opened.dataset.source("train")
        records = [record["image"] for record in source.__getitems__(range(len(source)))]
        seen = [np.asarray(column) for column in dataclasses.astuple(signatures(path))]
        return records, seen, str((opened.config.intensity, opened.audit, opened.dataset.classes))

    def signatures(path):
        return load_signatures(path, "train")

    wanted = read(phantom_path)
    for name in files_of(phantom_path):
        if name.endswith(".npz") or any(part in name for part in ("train", "manifest", "audit")):
            assert tried(phantom_path, tmp_path, read, wanted, name, every) >= 0
    assert tried(phantom_path, tmp_path, read, wanted, "manifest.json", True) >= 5
