"""Lists the commands of this package, and runs one by its name."""

import sys
from pathlib import Path

from ctssl_jax import verbs

USAGE = """python -m launch.NAME ..., or ctssl launch NAME ...; --help after NAME tells its flags"""

if __name__ == "__main__":
    commands = verbs.commands_in("launch", Path(__file__).parent)
    sys.exit(verbs.main("launch", USAGE, commands, sys.argv))
