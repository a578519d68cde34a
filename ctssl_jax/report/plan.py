"""The page of a plan: the section of the report about more annotations, by itself."""

from collections.abc import Sequence
from pathlib import Path

from ctssl_jax.report import require_installed, write_page
from ctssl_jax.report.page import templates
from ctssl_jax.report.sections.annotations import Annotations


def write_plan(
    plans: Sequence[Annotations], facts: Sequence[tuple[str, str]], out: str | Path
) -> None:
    """Writes `out`/plan.html and `out`/figures/*.

    Args:
      plans: one section each.
      facts: how they were found, as (term, value).
      out: a folder.

    Raises:
      ConfigError: the `report` extra is not installed, or another page is being written there.
      StorageError: the page cannot be written.
    """
    require_installed()
    page = templates().get_template("plan.html").render(plans=plans, facts=facts)
    write_page(Path(out), "plan.html", page, [found.picture for found in plans])
