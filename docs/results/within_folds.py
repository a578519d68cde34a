"""The differences to scratch of a cross-validated results.csv, within folds.

    python docs/results/within_folds.py docs/results/head.csv

AUC is that of each fold's test cases, averaged over folds; the interval is Student's t over seeds,
paired. It holds neither the luck of the test patients, of whom the table has no scores, nor that of
another pre-training.
"""

import csv
import sys
from collections import defaultdict
from math import sqrt
from statistics import mean, stdev

from scipy.stats import t


def main(path: str) -> None:
    """Prints a line for each arm."""
    aucs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            aucs[row["arm"]][row["seed"]].append(float(row["test_auc"]))
    arms = {arm: {seed: mean(of) for seed, of in seeds.items()} for arm, seeds in aucs.items()}
    scratch = arms.pop("scratch")
    print(f"scratch: {mean(scratch.values()):.3f}")
    for arm, by_seed in arms.items():
        gaps = [auc - scratch[seed] for seed, auc in by_seed.items()]
        half = t.ppf(0.975, len(gaps) - 1) * stdev(gaps) / sqrt(len(gaps))
        low, high = mean(gaps) - half, mean(gaps) + half
        print(f"{arm}: {mean(by_seed.values()):.3f}, {mean(gaps):+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main(sys.argv[1])
