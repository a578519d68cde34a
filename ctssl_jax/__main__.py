"""The command `ctssl`, or `python -m ctssl_jax`: the commands of the project, each by a verb.

Flags and exit codes are those of the module that a verb stands for.
"""

import sys

from ctssl_jax import verbs
from ctssl_jax.verbs import Verb

USAGE = """ctssl VERB ...: runs a command of ctssl_jax; ctssl VERB --help tells its flags"""
VERBS = {
    "prep": Verb("data_prep", "scans in, dataset folder out: ctssl prep lists the sources"),
    "train": Verb("ctssl_jax.main", "pre-trains, fine-tunes or evaluates what a config says"),
    "sweep": Verb("launch.sweep", "the study: every start at every training size, several seeds"),
    "plan": Verb("launch.plan", "what more annotations would bring, and what an encoder saves"),
    "report": Verb("ctssl_jax.report", "one page of the runs of some folders"),
    "predict": Verb("ctssl_jax.predict", "what was fine-tuned, or an encoder, on new scans"),
    "export": Verb("ctssl_jax.interop", "weights of a run for PyTorch", ("export",)),
    "convert": Verb("ctssl_jax.interop", "a checkpoint of PyTorch to safetensors", ("convert",)),
    "import": Verb("ctssl_jax.interop", "an encoder of others as a run", ("import",)),
    "launch": Verb("launch", "several processes, measurements: ctssl launch lists them"),
}


def main() -> int:
    """The command; returns its exit code."""
    return verbs.main("ctssl", USAGE, VERBS, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
