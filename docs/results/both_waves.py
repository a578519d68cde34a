"""Both waves of the second study together: each arm minus scratch, and SparK minus each other.

    python docs/results/both_waves.py WAVE [WAVE ...] [--task=nodules-1e-3] [--patients=16]

WAVE: a folder of run folders, as `second.tar.xz` and `second_wave.tar.xz` unpack. Within a wave the
runs of a seed share their subset of patients, so that an arm is set beside another's run of that
seed: AUC of nodules with 16 patients, or with all, averaged over the folds. The interval is
Student's t over the pre-trainings, which holds the luck of pre-training, of fine-tuning and of the
subset, and not that of the test patients, who are the same throughout. The plan did not have it at
first: see its foot.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from ctssl_jax.report.runs import find_runs


def main() -> None:
    """Prints a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("waves", nargs="+", type=Path, metavar="WAVE")
    parser.add_argument("--task", default="nodules", help="another than nodules at the rate 3e-4")
    parser.add_argument("--patients", default="16", help="to learn from, or all")
    asked = parser.parse_args()
    found: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, wave in enumerate(asked.waves):
        for run in find_runs([wave]):
            if run.kind != "fine-tuning" or run.problem:
                continue
            patients = str(run.config["count"] or "all")
            if (run.config["task"], patients) == (asked.task, asked.patients):
                place = number, run.config["seed"]
                found[run.config["arm"]][place].append(run.results["test"]["auc"])
    if not found:
        parser.error(f"no fine-tuning of {asked.task} with {asked.patients} patients")
    others = sorted(found.keys() - {"scratch", "spark"})
    for arm, base in [(arm, "scratch") for arm in ("spark", *others)] + [
        ("spark", other) for other in others
    ]:
        places = sorted(found[arm].keys() & found[base].keys())
        if not places:
            continue
        gains = [np.mean(found[arm][place]) - np.mean(found[base][place]) for place in places]
        middle, error = np.mean(gains), stats.sem(gains)
        low, high = middle + np.array(stats.t.interval(0.95, len(gains) - 1)) * error
        each = ", ".join(f"{gain:+.3f}" for gain in gains)
        print(f"{arm} - {base}: {middle:+.3f} ({low:+.3f} to {high:+.3f}), n {len(gains)}: {each}")


if __name__ == "__main__":
    main()
