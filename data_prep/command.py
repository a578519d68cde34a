"""What all commands of data preparation share: flags, errors, the closing table."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctssl_jax.errors import DataError, UserError
from data_prep.records import load_key, refuse_taken
from data_prep.split import split_fractions

Manifest = dict[str, Any]


def new_parser(
    name: str, doc: str, example: str, *, source: str = "", val: float = 0.1, test: float = 0.1
) -> argparse.ArgumentParser:
    """Returns a parser with the flags that all sources have.

    Args:
        name: Name of the module, for `python -m data_prep.NAME`.
        doc: One line of help.
        example: Flags of an example call.
        source: Help of --source; without it the command has no --source and no --key.
        val: Default of --val_fraction.
        test: Default of --test_fraction.
    """
    call = f"python -m data_prep.{name}"
    parser = argparse.ArgumentParser(
        prog=call,
        description=doc,
        epilog=f"example: {call} {example}",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if source:
        parser.add_argument("--source", type=Path, required=True, help=source)
        parser.add_argument(
            "--key",
            type=Path,
            help="file with the secret key of the pseudonyms; "
            "without it ~/.config/ctssl_jax/pseudonym.key, made on first use",
        )
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to make")
    parser.add_argument("--val_fraction", type=float, default=val, help="share of patients")
    parser.add_argument("--test_fraction", type=float, default=test, help="share of patients")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient")
    return parser


def common_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What every source is prepared with, from the flags."""
    return {
        "source": args.source,
        "out": args.out,
        "key": load_key(args.key),
        "fractions": split_fractions(args.val_fraction, args.test_fraction),
        "seed": args.seed,
    }


def add_patient_regex(parser: argparse.ArgumentParser, item: str) -> None:
    """Adds the flag that says how to find the patient in the name of an image or file."""
    parser.add_argument(
        "--patient_regex",
        default="",
        help=f"searched in each file name; the first group is the patient. "
        f"Without it each {item} counts as its own patient",
    )


def add_split_by(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that chooses between the splits of the source and a split by patient."""
    parser.add_argument(
        "--split_by",
        choices=("official", "patient"),
        default="official",
        help="official: the splits of the source, for which the fractions do not count; "
        "patient: all pooled and split anew, so that no patient is in two splits",
    )


def run(
    prepare: Callable[[argparse.Namespace], Manifest],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the flags, prepares the dataset, prints its table; returns the exit code.

    What a user can mend is one line on stderr, without a traceback.
    """
    args = parser.parse_args(argv)
    try:
        if "source" in args and not args.source.exists():
            raise DataError(f"--source {args.source} does not exist")
        refuse_taken(args.out)
        manifest = prepare(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(table(manifest))
    return 0


def table(manifest: Manifest) -> str:
    """Returns what was written, as text: splits, classes, rejected by reason."""
    classes = manifest["classes"]
    rows = [["split", "slices", "patients", "series", *classes]]
    for split, n in manifest["splits"].items():
        rows.append([split, *(str(n[k]) for k in ("slices", "patients", "series"))])
        rows[-1] += [str(count) for count in n["labels"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    rejected = manifest["rejected"]
    lines.append(f"rejected: {sum(rejected.values())}" + (" (see rejected.csv)" * bool(rejected)))
    lines += [f"  {count:>6}  {reason}" for reason, count in rejected.items()]
    lines += [f"note: {manifest['note']}"] if "note" in manifest else []
    return "\n".join(lines)
