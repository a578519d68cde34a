"""The command: reads run folders, writes the report, says on the screen what was left out."""

if __name__ == "__main__":
    from ctssl_jax.hosts import signals

    signals.end_at_signals()

import sys
from collections.abc import Sequence

from ctssl_jax import command
from ctssl_jax.errors import printable
from ctssl_jax.report import write_report
from ctssl_jax.report.runs import Run, last_was_best
from ctssl_jax.report.words import leakage


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code (see `ctssl_jax.errors`)."""
    parser = command.Parser(
        prog="python -m ctssl_jax.report",
        description="Writes FOLDER/report.html, one offline page, from finished and other runs.",
        epilog="example: python -m ctssl_jax.report runs --out=report",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders of them")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the page goes")
    parser.add_argument(
        "--publish",
        metavar="FOLDER",
        help="also copy there what the page's numbers come from, to be given away: configs, logs, "
        "results and the score of every case with its patient's pseudonym; no weights, no pictures",
    )

    def work() -> None:
        flags = parser.parse_args(arguments)
        runs = write_report(flags.runs, flags.out, flags.publish)
        left_out = tell(runs)
        if flags.publish:
            print(f"{flags.publish}: {len(runs) - left_out} runs published")
        told = f"{len(runs)} runs, {left_out} left out of the averages"
        print(f"{flags.out}/report.html: {told}")

    return command.run("ctssl_jax.report", work)


def tell(runs: Sequence[Run]) -> int:
    """Says on stderr what the page leaves out or marks; returns how many runs were left out."""
    left_out = [run for run in runs if run.problem]
    for run in left_out:
        told = printable(f"{run.folder}: {run.problem}")
        print(f"left out of the averages: {told}", file=sys.stderr)
    if marked := [run for run in runs if leakage(run.results or run.data)]:
        print(f"{len(marked)} runs are on data that leaks into the test: marked", file=sys.stderr)
    if late := [run for run in runs if not run.problem and last_was_best(run)]:
        said = "were at their best when they ended: not finished learning, give them more steps"
        print(f"{len(late)} runs {said}", file=sys.stderr)
    return len(left_out)


if __name__ == "__main__":
    sys.exit(main())
