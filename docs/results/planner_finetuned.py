"""The planner's proof on fine-tunings: a few patients foretell what networks of more would reach.

    python docs/results/planner_finetuned.py nodules --source=nodule-centres --labels=labels.csv
        --encoders=spark=RUN,moco=RUN --work=FOLDER [--draws=11] [--first=0]

Again and again N patients are drawn for training, with others for validation and a test: those at
hand, fine-tuned at three sizes from scratch and from each encoder, three times each. Networks of
the N and as many further patients, and of 4 N where there are enough, follow, tested on patients
whom the planner has not seen. `python -m launch.benchmark_planner --sweeps=...` then compares; the
flags for it are printed after each draw. What is done is kept: repeat the command to go on.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

KEY = Path(__file__).with_name("study.key")
SEEDS = 3
GREY = ["--config.base.intensity.mean=(0.35,)", "--config.base.intensity.std=(0.25,)"]


class Task(NamedTuple):
    """How a task is asked: patients of each kind, and flags of its preparation and its runs."""

    at_hand: int
    val: int
    test: int
    preparation: tuple[str, ...]
    recipe: tuple[str, ...]


TASKS = {
    "nodules": Task(
        *(40, 10, 100),
        ("--case_name=nodule", "--positive=malignant"),
        (
            *("--config=configs/ablation.py:cases", "--config.base.data.canvas=32"),
            *("--config.base.method.view.size=32", "--config.base.method.slices=3"),
            "--config.base.batch_size=8",
        ),
    ),
}


def main() -> None:
    """Draws, prepares and fine-tunes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--source", required=True, help="folder of the images")
    parser.add_argument(
        "--labels", required=True, help="CSV of the columns case, label and patient"
    )
    parser.add_argument("--encoders", required=True, help="pre-training runs, METHOD=RUN,...")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--draws", type=int, default=11, help="of the patients")
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    asked = parser.parse_args()
    with Path(asked.labels).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for draw in range(asked.first, asked.first + asked.draws):
        of = asked.work / f"{asked.task}-{draw}"
        for name, parts in drawn(TASKS[asked.task], rows, draw).items():
            prepare(asked, rows, parts, of / name)
            fine_tune(asked, draw, of / name, at_hand=name == "hand")
        print(f"--sweeps={asked.task}={of}/hand:{of}/later", flush=True)


def drawn(task: Task, rows: list[dict[str, str]], draw: int) -> dict[str, dict[str, str]]:
    """The split of each patient of each dataset: those at hand, and "later/2", "later/4"."""
    rng = np.random.default_rng([draw, 7])
    labels = {row["patient"]: row["label"] for row in rows}
    order = {
        label: [name for name, own in labels.items() if own == label] for label in labels.values()
    }
    # Classes in proportion among any first ones: a patient's place is a quantile of its class.
    places = {
        name: (place + rng.random()) / len(own)
        for own in order.values()
        for place, name in enumerate(rng.permutation(own))
    }
    names = sorted(places, key=places.__getitem__)
    train, rest = names[: task.at_hand], names[task.at_hand :]
    val, rest = rest[: task.val], rest[task.val :]
    test, rest = rest[: task.test], rest[task.test :]
    of = {"hand": _parts(train, val, test)}
    for times in (2, 4):
        further = (times - 1) * task.at_hand
        if len(rest) >= further + task.test // 2:
            most = 3 * task.at_hand if len(rest) >= 3 * task.at_hand + task.test // 2 else further
            of[f"later/{times}"] = _parts(train + rest[:further], val, rest[most:])
    return of


def _parts(*names: list[str]) -> dict[str, str]:
    splits = zip(("train", "val", "test"), names, strict=True)
    return {name: split for split, own in splits for name in own}


def prepare(
    asked: argparse.Namespace, rows: list[dict[str, str]], parts: dict[str, str], out: Path
) -> None:
    """A dataset folder of the patients that have a part."""
    if (out / "dataset").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    own = [{**row, "split": parts[name]} for row in rows if (name := row["patient"]) in parts]
    with (out / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, own[0], lineterminator="\n")
        table.writeheader()
        table.writerows(own)
    run(
        *("-m", "data_prep.folder", f"--source={asked.source}", f"--labels={out}/labels.csv"),
        *(*TASKS[asked.task].preparation, f"--out={out}/dataset", f"--key={KEY}"),
    )


def fine_tune(asked: argparse.Namespace, draw: int, out: Path, at_hand: bool) -> None:
    """Three sizes and seeds of the patients at hand; of more patients all, once."""
    task = TASKS[asked.task]
    sizes = (task.at_hand // 4, task.at_hand // 2, task.at_hand)
    size = (
        f"--config.counts=({','.join(map(str, sizes))})" if at_hand else "--config.fractions=(1.0,)"
    )
    seeds = range(SEEDS) if at_hand else range(draw, draw + 1)
    run(
        *("-m", "launch.sweep", *task.recipe, *GREY, f"--config.base.data.path={out}/dataset"),
        *(f"--config.base.task={asked.task}-{draw}", "--config.base.encoder.depth=18"),
        *("--config.base.freeze.epochs=0", "--config.base.subset_by=patient"),
        *("--config.base.bn_images=128", "--config.base.steps=80"),
        *("--config.base.validate_every=16", "--config.base.optim.lr=3e-4"),
        *(size, f"--config.seeds=({','.join(map(str, seeds))},)"),
        *(f"--config.encoders={encoder}" for encoder in asked.encoders.split(",")),
        *("--config.scratch=True", f"--workdir={out}/runs"),
    )


def run(*arguments: str) -> None:
    """A command of the project, which must end well."""
    subprocess.run([sys.executable, *arguments], check=True)


if __name__ == "__main__":
    main()
