"""How many more annotations: what they would bring, and what an encoder saves.

    python -m launch.plan --data=DATASET --encoders=RUN[,RUN...] --workdir=OUT [--target=0.9]
    python -m launch.plan --sweeps=RUNS[,RUNS...] --workdir=OUT

Of a labelled dataset: probes of the frozen features of every encoder, and of random ones, on many
nested subsets of the patients, tested on patients that are held out; several runs of one method
are its pre-trainings. Of finished sweeps: the fine-tunings of their run folders. The curves are
carried on to four times the patients at hand, with intervals. docs/planner.md says how often these
held the truth. Writes OUT/plan.html, plan.json, plan.csv and figures/.

Exit codes: 0 done; 2 usage; 3 a dataset or run that cannot be used, or too few patients to foretell
anything; 5 something cannot be written.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import argparse
import os
import sys
from pathlib import Path

from ctssl_jax import command
from ctssl_jax.errors import ConfigError
from ctssl_jax.hosts import distributed, platform

NAME = "launch.plan"
OF_PROBES = ("name", "orders", "seed", "size", "accept_leakage", "accept_unfinished")
"""Flags that have no effect on sweeps."""


def parser() -> command.Parser:
    """Of the command's flags."""
    own = command.Parser(prog=f"python -m {NAME}", description=__doc__)
    own.add_argument("--data", type=Path, help="a labelled dataset folder, with folds or a test")
    own.add_argument("--name", default="", help="of the task, on the page (the dataset's)")
    own.add_argument(
        "--encoders",
        action=command.List,
        default="",
        metavar="RUN,...",
        help="pre-training run folders",
    )
    own.add_argument(
        "--sweeps",
        action=command.List,
        default="",
        metavar="RUNS,...",
        help="folders of fine-tunings",
    )
    own.add_argument("--workdir", type=Path, required=True, help="a folder for the plan")
    own.add_argument(
        "--target", action=command.List, default="", metavar="AUC,...", help="to be reached, as 0.9"
    )
    own.add_argument("--orders", type=int, default=8, help="random orders of the patients (8)")
    own.add_argument("--seed", type=int, default=0, help="of the orders")
    own.add_argument(
        "--size", type=int, default=0, help="side of the input in pixels (as in pre-training)"
    )
    own.add_argument(
        "--accept_unfinished", action="store_true", help="take encoders whose runs are not done"
    )
    own.add_argument(
        "--accept_leakage",
        action="store_true",
        help="plan although the dataset leaks, or an encoder has seen its test cases",
    )
    return own


def checked(flags: argparse.Namespace) -> argparse.Namespace:
    """The flags with their lists as lists.

    Raises:
      ConfigError: some are missing, do not go together or are out of range.
    """
    flags.encoders, flags.sweeps = (
        [word for word in text.split(",") if word] for text in (flags.encoders, flags.sweeps)
    )
    if not (flags.data or flags.encoders or flags.sweeps):
        raise ConfigError("give --data with --encoders, or --sweeps, or both")
    if bool(flags.data) != bool(flags.encoders):
        missing = "--encoders" if flags.data else "--data"
        raise ConfigError(
            f"{missing} is missing: probes want a dataset and the encoders to compare"
        )
    try:
        flags.target = [float(word) for word in flags.target.split(",") if word]
    except ValueError:
        raise ConfigError(f"--target={flags.target}: give one AUC or more, as 0.85,0.9") from None
    if any(not 0.5 < target < 1 for target in flags.target):
        raise ConfigError(f"--target={flags.target}: an AUC is above 0.5 and below 1")
    usual = parser().get_default
    given = [name for name in OF_PROBES if getattr(flags, name) != usual(name)]
    if given and not flags.data:
        raise ConfigError(f"--{given[0]} is of probes: give --data and --encoders, or leave it out")
    if flags.orders < 2:
        raise ConfigError(f"--orders={flags.orders}: give 2 or more, to tell luck from learning")
    if flags.size and (flags.size < 32 or flags.size > 1024):
        raise ConfigError(f"--size={flags.size}: must be 32 to 1024 pixels")
    return flags


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (see `ctssl_jax.errors`)."""

    def work() -> None:
        flags = checked(parser().parse_args(arguments))
        if flags.data:
            platform.set_cpu_flags()
            platform.quiet_libraries()
            distributed.require_devices()
            platform.enable_compilation_cache()
        from launch.plan import make  # late: a mistyped flag is answered at once

        make.plan(flags)

    return command.run(NAME, work)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
