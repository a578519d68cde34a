"""Lists the commands of this package, and runs one by its name."""

import sys
from pathlib import Path

from ctssl_jax import verbs

USAGE = (
    """python -m data_prep.NAME ..., or ctssl prep NAME ...; --help after NAME tells its flags"""
)

if __name__ == "__main__":
    commands = verbs.commands_in("data_prep", Path(__file__).parent)
    sys.exit(verbs.main("data_prep", USAGE, commands, sys.argv))
