"""What all commands of data preparation share: flags, errors, the closing table."""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ctssl_jax import command as frame
from ctssl_jax.dataset.canvas import SMALLEST
from ctssl_jax.dataset.cases import plural
from ctssl_jax.dataset.verdict import read_verdict
from ctssl_jax.errors import ConfigError, DataError
from data_prep import effects, names, show_pairs
from data_prep.audit import audit
from data_prep.cases import CaseOf
from data_prep.irregular import Irregular
from data_prep.not_duplicates import read_not_duplicates
from data_prep.patients import PatientBy
from data_prep.pipeline.dry_run import dry_run
from data_prep.pipeline.exclude import load_excluded
from data_prep.pipeline.prepare import Manifest, prepare, refuse_taken
from data_prep.pipeline.records import DEFAULT_KEY_FILE, PUBLIC_KEY, load_key
from data_prep.pipeline.split import fold_fractions, split_fractions
from data_prep.readers.hounsfield import Values
from data_prep.source import Source


def new_parser(
    name: str, doc: str, example: str, *, source: str = "", val: float = 0.1, test: float = 0.1
) -> argparse.ArgumentParser:
    """Returns a parser with the flags that all sources have.

    Args:
        name: Name of the module, for `python -m data_prep.NAME`.
        doc: One line of help.
        example: Flags of an example call.
        source: Help of --source; without it the command has no --source and no --key.
        val: Share of the patients in val without --val_fraction.
        test: Share of the patients in test without --test_fraction.
    """
    call = f"python -m data_prep.{name}"
    parser = frame.Parser(
        prog=call,
        description=doc,
        epilog=f"example: {call} {example}",
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
    for split, share in (("val", val), ("test", test)):
        # Without a default, so that what is asked for can be told from what is not.
        text = f"share of patients (default: {share:g})"
        parser.add_argument(f"--{split}_fraction", type=float, default=argparse.SUPPRESS, help=text)
    parser.set_defaults(usual_fractions={"val_fraction": val, "test_fraction": test})
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        help="for cross-validation: splits fold0, fold1, ... of equally many patients in place of "
        "train, val and test; 0: these",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient")
    parser.add_argument(
        "--join_duplicates",
        action="store_true",
        help="patients who share equal or nearly equal slices count as one for the split, so that "
        "the audit passes",
    )
    parser.add_argument(
        "--not_duplicates",
        type=Path,
        metavar="FILE",
        help="pairs.csv of --show_pairs with `no` in the column `duplicate` of those that are of "
        "different people: the audit does not count them, and records that",
    )
    parser.add_argument(
        "--show_pairs",
        type=Path,
        metavar="FOLDER",
        help="write the equal and nearly equal slices that the audit finds there, to look at; a "
        "folder of your own, in no dataset: it shows patients",
    )
    parser.add_argument(
        "--exclude_patients_of",
        action=frame.List,
        default="",
        metavar="DATASET[,DATASET...]",
        help="leave out all patients of these datasets, by name (made with the same --key) and by "
        "pictures, so that what is pre-trained on this one can be tested on them",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="say within a minute what is there, which flags it needs and what would be refused; "
        "writes nothing",
    )
    parser.add_argument(
        "--canvas",
        type=int,
        default=0,
        help="reduce larger slices to so many pixels a side, once, to the values that a run with "
        "this data.canvas gives its network; 0: store them as they are",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; 0: all in this one, which a damaged file may then take with it",
    )
    parser.add_argument(
        "--max_rejected",
        type=float,
        default=0.05,
        help="exit with code 3 if a larger share of the images is damaged or irregular",
    )
    parser.add_argument(
        "--show_paths",
        action="store_true",
        help="print where each rejected file is; paths may name patients",
    )
    parser.add_argument(
        "--show_cases",
        action="store_true",
        help="print where each case is that was kept, by its pseudonym; paths may name patients",
    )
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help="work on Apache Beam with these pipeline options, "
        "e.g. --beam='--runner=FlinkRunner --parallelism=64'",
    )
    return parser


def add_patient_regex(parser: argparse.ArgumentParser, without: str) -> None:
    """Adds the flag that says how to find the patient in the path of a file."""
    parser.add_argument(
        "--patient_regex",
        default="",
        help="searched in each file name and, where it is not found there, in the path relative "
        "to --source, with / between folders; the first group is the patient, as in "
        f"'(p[0-9]+)/'; {without}",
    )


def add_patient_by(parser: argparse.ArgumentParser, without: Collection[PatientBy] = ()) -> None:
    """Adds the flag that says what counts as a patient."""
    parser.add_argument(
        "--patient_by",
        choices=[choice.value for choice in PatientBy if choice not in without],
        default=PatientBy.AUTO.value,
        help="auto: the PatientID, or what paths or table say, refused where that cannot be; id: "
        "the same as it stands; joined: identifiers that share a study or differ in spelling only "
        "count as one"
        + ("" if PatientBy.STUDY in without else "; study: each study of DICOM is a patient"),
    )


def add_positive(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that names the class that scores are of."""
    parser.add_argument(
        "--positive",
        default="",
        metavar="CLASS",
        help="the class of two that F1, AUC and the like are of; without it the last in order",
    )


def add_case(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what a label is of."""
    parser.add_argument(
        "--case",
        choices=[choice.value for choice in CaseOf if choice is not CaseOf.CASE],
        default=CaseOf.AUTO.value,
        help="what one label is of, which everything then counts. auto: what the rows of --labels "
        "name, or its column case; without a table a DICOM series, a volume, or a single image",
    )
    parser.add_argument(
        "--case_name",
        default="",
        metavar="WORD",
        help="what you call that, in the singular: nodule; without it scan, slice, study or "
        "patient",
    )
    parser.add_argument(
        "--slice_labels",
        default="",
        metavar="FILE",
        help="CSV of labels of single slices, beside those of their cases, with the columns file "
        "or sop, and label, in the same classes",
    )


def add_irregular(
    parser: argparse.ArgumentParser, what: str, default: Irregular = Irregular.REJECT
) -> None:
    """Adds the flag that says what happens to `what`, series or volumes that are not regular."""
    parser.add_argument(
        "--irregular",
        choices=[choice.value for choice in Irregular],
        default=default.value,
        help=f"{what}. reject: left out; accept_2d: its slices are kept as they are, nothing is "
        "interpolated. Both are listed in findings.csv",
    )


def add_values(parser: argparse.ArgumentParser, choices: Sequence[Values]) -> None:
    """Adds the flag that says what the values of scans are."""
    grey = "; grey8: 0 to 255" if Values.GREY8 in choices else ""
    parser.add_argument(
        "--values",
        choices=[choice.value for choice in choices],
        default=Values.AUTO.value,
        help="auto: Hounsfield units, and scans that do not look like it are rejected; hu: "
        "Hounsfield units though nothing is like air or soft tissue, as in heads without their "
        f"skull; what no CT can have is rejected all the same{grey}",
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


def run_source(
    make_source: Callable[[argparse.Namespace], Source],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the flags, prepares the dataset, prints its tables; returns the exit code."""

    def task(args: argparse.Namespace) -> None:
        if "source" in args and not args.source.exists():
            raise DataError("--source does not exist")
        if not names.is_text(str(args.out.absolute())):
            raise ConfigError("--out: its path must be UTF-8")
        refuse_taken(args.out)
        if not 0 <= args.max_rejected <= 1:
            raise ConfigError(f"--max_rejected={args.max_rejected}: must be 0 to 1")
        if args.canvas and args.canvas < SMALLEST:
            raise ConfigError(
                f"--canvas={args.canvas}: must be 0 (no change) or {SMALLEST} or more"
            )
        if args.workers < 0:
            raise ConfigError(f"--workers={args.workers}: must be 0 (this process) or more")
        fractions = _fractions(args)
        source = make_source(args)
        words = sys.argv[1:] if argv is None else argv
        effects.require_effects(words, effects.Situation(source, args, fractions))
        if args.show_pairs:
            show_pairs.require_own_folder(args.show_pairs, [args.out])
        apart = read_not_duplicates(args.not_duplicates) if args.not_duplicates else frozenset()
        key = _key(args)
        others = [Path(name) for name in args.exclude_patients_of.split(",") if name]
        excluded = load_excluded(others, key) if others else None
        patient_by = PatientBy(getattr(args, "patient_by", PatientBy.AUTO))
        if args.dry_run:
            print(
                dry_run(
                    source,
                    key,
                    fractions,
                    workers=args.workers,
                    max_rejected=args.max_rejected,
                    excluded=excluded.patients if excluded else frozenset(),
                    patient_by=patient_by,
                )
            )
            return
        manifest = prepare(
            source,
            args.out,
            key=key,
            fractions=fractions,
            seed=args.seed,
            canvas=args.canvas,
            join=args.join_duplicates,
            workers=args.workers,
            max_rejected=args.max_rejected,
            beam=args.beam,
            show_paths=args.show_paths,
            show_cases=args.show_cases,
            excluded=excluded,
            not_duplicates=apart,
            patient_by=patient_by,
        )
        print(table(manifest))
        print((args.out / "quality.txt").read_text(), end="")
        if args.show_pairs:
            audit(args.out, apart=apart, show=args.show_pairs)
        print(read_verdict(args.out).advice(args.out))

    return run(task, parser, argv)


def _key(args: argparse.Namespace) -> bytes:
    """The key of the pseudonyms; a dry run makes none."""
    if "key" not in args:
        return PUBLIC_KEY
    if args.dry_run and args.key is None and not DEFAULT_KEY_FILE.expanduser().exists():
        return PUBLIC_KEY
    return load_key(args.key)


def _fractions(args: argparse.Namespace) -> dict[str, float]:
    """The share of the patients that each split is to get.

    Raises:
        ConfigError: If the flags do not agree, or there are too few folds.
    """
    given = {name: value for name, value in vars(args).items() if name in args.usual_fractions}
    if not args.folds:
        shares = args.usual_fractions | given
        return split_fractions(shares["val_fraction"], shares["test_fraction"])
    if given:
        flags = " and ".join(f"--{name}={value:g}" for name, value in given.items())
        raise ConfigError(f"--folds={args.folds} and {flags}: give one or the other")
    return fold_fractions(args.folds)


def run(
    task: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses the flags and does the task; returns the exit code.

    What a user can mend is one line on stderr, without a traceback.
    """
    name = parser.prog.removeprefix("python -m ")
    return frame.run(name, lambda: task(parser.parse_args(argv)))


def table(manifest: Manifest) -> str:
    """Returns what was written, as text: splits, and in each the cases of each class."""
    classes, units = manifest["classes"], ["slices", "patients", "series"]
    cases, word = manifest["cases"], plural(manifest["case"]["word"])
    of_cases = [word if word not in units else "cases"] if cases else []
    rows = [["split", *of_cases, *units, *classes]]
    for split, n in manifest["splits"].items():
        counted = cases.get(split, {"labels": n["labels"]})
        rows.append([split, *(str(counted["count"]) for _ in of_cases)])
        rows[-1] += [str(count) for count in (*(n[unit] for unit in units), *counted["labels"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    if "excluded_patients" in manifest:
        left = manifest["excluded_patients"]
        names, content = left["patients_by_name"], left["patients_by_content"]
        lines.append(
            f"patients left out, --exclude_patients_of: {names + content:,} excluded "
            f"({names:,} by name, {content:,} by their pictures)"
        )
        if otherwise := left.get("patients_spelled_otherwise", 0):
            lines.append(
                f"  {otherwise:,} of these by name are spelled otherwise than in the dataset"
            )
        if not names + content:
            lines.append("  none of its patients is in this source: is that so?")
    lines += [f"note: {manifest['note']}"] if "note" in manifest else []
    return "\n".join(lines)
