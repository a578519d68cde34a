"""What an earlier prediction left in the folder of the results."""

from pathlib import Path

import pytest

from ctssl_jax.errors import ConfigError
from ctssl_jax.predict import earlier
from ctssl_jax.run import folder as run_folder

OF_A_CALL = (
    *("cases.csv", "slices.csv", "pictures/a.png", "pictures/b.png"),
    *("config.json", "data.json", "results.json", "STATUS"),
)
OF_FEATURES = ("features.csv", "features.npz", "neighbours/a.png", "neighbours/a.csv")
OF_OTHERS = (
    "notes.txt",
    "pictures/mine.png",
    "neighbours/mine.csv",
    "dataset/manifest.json",
    "a.png",
)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path):
    for name in (*OF_A_CALL, *OF_FEATURES, *OF_OTHERS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for table in ("cases.csv", "features.csv"):
        (tmp_path / table).write_text("case,patient\na,p\nb,q\n../a,r\n")
    record = {"type": "PredictConfig", "config": {}, "hash": "0"}
    run_folder.write_json(tmp_path / "config.json", record)
    return tmp_path


def test_its_own_files_go_and_no_others(out):
    earlier.take_predictions(out)
    assert files(out) == {*OF_FEATURES, *OF_OTHERS}
    earlier.take_features(out)
    assert files(out) == set(OF_OTHERS)
    earlier.take_predictions(out)  # of a folder that holds none


@pytest.mark.parametrize("kill", range(len(OF_A_CALL)))
def test_a_call_that_was_killed_is_ended_by_the_next(out, kill, monkeypatch):
    real, done = Path.unlink, []

    def unlink(path, **how):
        if len(done) == kill:
            raise KeyboardInterrupt
        done.append(path)
        real(path, **how)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        earlier.take_predictions(out)
    monkeypatch.undo()
    earlier.take_predictions(out)
    assert files(out) == {*OF_FEATURES, *OF_OTHERS}


@pytest.mark.parametrize("kind", ["FinetuneConfig", "PretrainConfig", None])
def test_the_files_of_a_run_are_not_touched(out, kind):
    (out / "config.json").unlink()
    if kind:
        record = {"type": kind, "config": {}, "hash": "0"}
        run_folder.write_json(out / "config.json", record)
    before = files(out)
    with pytest.raises(ConfigError, match="which no prediction wrote: give another --out"):
        earlier.take_predictions(out)
    assert files(out) == before


def test_a_table_of_another_kind_is_not_written_over(out):
    (out / "cases.csv").write_text("id,age\n1,70\n")
    with pytest.raises(ConfigError, match=r"cases\.csv is no table of this command's"):
        earlier.take_predictions(out)
