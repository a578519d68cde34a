"""The command: a fine-tuned network on new scans, or an encoder's features of them.

    python -m ctssl_jax.predict --run=RUN --source=FOLDER --out=OUT
    python -m ctssl_jax.predict --run=RUN --data=DATASET --out=OUT --pictures=8
    python -m ctssl_jax.predict --run=RUN --source=FOLDER --labels=scans.csv --out=OUT
    python -m ctssl_jax.predict --run=ENCODER_RUN --source=FOLDER --out=OUT --features

`--source` is DICOM, NIfTI or images, which `data_prep.folder` prepares into OUT/dataset as the
run's own data were, with its refusals; one bad scan does not keep the others. Writes cases.csv,
slices.csv and pictures; with labels it is an external test, results.json, which the report reads.
Killed while it prepares, the same command goes on; later `--data=OUT/dataset` takes what is there.

Exit codes: 0 done; 2 usage; 3 a run or scans that cannot be used; 5 something cannot be written.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ctssl_jax import command
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import distributed, platform
from ctssl_jax.predict import PASSED_ON

OF_PREDICTIONS = ("pictures", "slices", "threshold_by", "threshold_at")
"""Flags that have no effect on features."""


def parser() -> command.Parser:
    """Of the command's flags."""
    own = command.Parser(prog="python -m ctssl_jax.predict", description=__doc__)
    own.add_argument("--run", type=Path, required=True, help="the folder of a fine-tuning run")
    which = own.add_mutually_exclusive_group(required=True)
    which.add_argument("--source", type=Path, help="folder of DICOM, NIfTI or images")
    which.add_argument("--data", type=Path, help="a dataset folder made by data_prep")
    own.add_argument("--out", type=Path, required=True, help="a folder for the results")
    own.add_argument("--labels", help="of --source, as data_prep.folder takes it: a test")
    told_already = ("labels", "key", "workers")
    for name in (name for name in PASSED_ON if name not in told_already):
        own.add_argument(f"--{name}", help="of --source, as data_prep.folder takes it")
    own.add_argument("--key", help="of --source: file with the key of the pseudonyms")
    own.add_argument("--workers", help="of --source: processes that prepare it")
    own.add_argument(
        "--threshold_by",
        choices=("sensitivity", "specificity"),
        default="sensitivity",
        help="what the threshold is to reach on the run's validation (default: sensitivity)",
    )
    own.add_argument(
        "--threshold_at", type=float, default=0.9, help="how much of it (default: 0.9)"
    )
    own.add_argument(
        "--pictures",
        default="",
        metavar="N or CASE,...",
        help="draw the N likeliest cases, or these of cases.csv: top slices with Grad-CAM",
    )
    own.add_argument(
        "--slices", type=int, default=5, help="slices in a picture, at most (default: 5)"
    )
    own.add_argument(
        "--show_paths",
        action="store_true",
        help="of --source: print where each case and each rejected file is; paths may name "
        "patients",
    )
    own.add_argument(
        "--features",
        action="store_true",
        help="write features.npz and features.csv of any run's encoder, and predict nothing",
    )
    own.add_argument(
        "--neighbours",
        default="",
        metavar="CASE,...",
        help="with --features: draw these cases and those nearest to them",
    )
    return own


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (see `ctssl_jax.errors`)."""

    def work() -> None:
        own = parser()
        flags = own.parse_args(arguments)
        _require_effects(flags, own.given)
        platform.set_cpu_flags()
        platform.quiet_libraries()
        distributed.require_devices()
        platform.enable_compilation_cache()
        # Late: a mistyped flag is answered at once, and JAX starts with its flags set.
        from ctssl_jax.predict import run

        if flags.features:
            run.features(flags)
        else:
            run.predict(flags)

    return command.run("ctssl_jax.predict", work)


def _require_effects(flags: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a flag that would have no effect, or is none of what it may be."""
    of_source = [name for name in (*PASSED_ON, "show_paths") if getattr(flags, name)]
    if flags.data and of_source:
        raise ConfigError(f"--{of_source[0]} is of --source: a dataset is prepared already")
    if not 0 < flags.threshold_at <= 1:
        raise ConfigError(f"--threshold_at={flags.threshold_at}: must be above 0 and at most 1")
    if flags.slices < 1:
        raise ConfigError(f"--slices={flags.slices}: must be at least 1")
    idle = [name for name in OF_PREDICTIONS if name in given]
    if flags.features and idle:
        raise ConfigError(f"--{idle[0]} is of predictions: leave it or --features out")
    if "slices" in given and not flags.pictures:
        raise ConfigError("--slices is of pictures: give --pictures, or leave it out")
    if flags.neighbours and not flags.features:
        raise ConfigError("--neighbours needs --features")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
