"""Run folders in, one offline page out: `python -m ctssl_jax.report RUNS... --out=FOLDER`.

Reads what runs wrote and nothing else: no data, no checkpoint, no JAX. Read
`comparison/compare.py` for what is computed, `page.py` for how it is worded.
"""

import os
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import make_private
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.figures.picture import Numbers, Picture
from ctssl_jax.report.page import render
from ctssl_jax.report.publish import publish
from ctssl_jax.report.runs import Run, find_runs
from ctssl_jax.report.sections.external import external_tests
from ctssl_jax.report.sections.neighbours import neighbours_section
from ctssl_jax.report.sections.pretraining import pretraining_section
from ctssl_jax.report.sections.study import task_pictures
from ctssl_jax.report.words import section_titles
from ctssl_jax.run import lock as run_lock

LISTED = re.compile(rb"<!-- figures: ([\w. @-]*) -->\s*\Z")


def write_report(
    places: Iterable[str | Path], out: str | Path, published: str | Path | None = None
) -> list[Run]:
    """Writes `out`/report.html and `out`/figures/*; the same runs give the same bytes.

    With `published` also a folder of that name, from which this function finds the same numbers
    (`report.publish`).

    Returns every run found; those with a `problem` are listed on the page but not averaged.

    Raises:
      DataError: there is no run, or none that counts to be published.
      ConfigError: the `report` extra is not installed, or another report is written there.
      StorageError: `out` or `published` cannot be written.
    """
    require_installed()
    comparison = compare(find_runs(places))
    if published:
        publish(comparison.runs, Path(published))
    titles = section_titles(comparison.tasks)
    studies = [
        task_pictures(task, title, index)
        for index, (task, title) in enumerate(zip(comparison.tasks, titles, strict=True), start=1)
    ]
    pretraining = [
        pretraining_section(run, f"pretraining-{index}")
        for index, run in enumerate(
            (run for run in comparison.runs if run.kind == "pre-training" and run.metrics), start=1
        )
    ]
    external = external_tests(comparison.runs)
    evaluations = [run for run in comparison.runs if run.kind == "evaluation"]
    neighbours = [
        found
        for index, run in enumerate(evaluations, start=1)
        if (found := neighbours_section(run, f"neighbours-{index}"))
    ]
    pictures: list[Picture | Numbers] = [
        *(file for study in studies for file in study.files()),
        *(picture for section in pretraining for picture in section.pictures()),
        *(found.picture for found in neighbours),
        *(picture for test in external for _, picture in test.cases_drawn),
    ]
    page = render(comparison, studies, pretraining, neighbours, external)
    write_page(Path(out), "report.html", page, pictures)
    return comparison.runs


def require_installed() -> None:
    """Raises `ConfigError` where the `report` extra is not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"report: {missing[0]} is missing; pip install 'ctssl_jax[report]'")


def write_page(out: Path, name: str, page: str, pictures: Sequence[Picture | Numbers]) -> None:
    """Writes a page and the folder `figures` beside it, where nothing of the page before stays.

    Raises:
      ConfigError: another page is being written there.
      StorageError: it cannot be written.
    """
    try:
        make_private(out)
        with run_lock.alone(out):
            figures = out / "figures"
            figures.mkdir(exist_ok=True)
            files = {file: data for one in pictures for file, data in one.files().items()}
            for file, content in files.items():
                _replace(figures / file, content)
            for file in _listed(out / name) - set(files):
                (figures / file).unlink(missing_ok=True)
            _replace(out / name, f"{page}<!-- figures: {' '.join(sorted(files))} -->\n".encode())
    except OSError as error:
        raise StorageError(
            f"--out: {out} cannot be written ({error.strerror}); name another folder."
        ) from None


def _listed(page: Path) -> set[str]:
    """The files that a page lists at its end as its figures; none of an older one."""
    found = LISTED.search(page.read_bytes()) if page.exists() else None
    return set(found[1].decode().split()) if found else set()


def _replace(path: Path, content: bytes) -> None:
    """Puts a file in place in one move, so that nobody ever reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
