"""The pages lead where they say, and the first one leads to all."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ROOMS = ("launch", "configs", "data_prep", "ctssl_jax", "tests", "docs", "examples", ".ci")
HOMES = (ROOT, ROOT / "ctssl_jax", ROOT / "data_prep")  # from which pages name paths
# Of the code that docs/deviations.md compares with.
THEIRS = {
    "Pre-Training/Data_Preprocessing/LIDC_3DDICOM_to_2Dpng.py",
    *("byol/byol_module.py", "callbacks/byol_updates.py"),
    *("moco/moco2_module.py", "swav/swav_module_lidc.py"),
}


def links(page):
    """The files of the project that a page names as links."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if "://" not in link}


def paths(page):
    """What a page has in backticks that is said to be a file or folder of this project.

    That is what begins in one of its folders, or is a module; for contributors, a folder, too.
    """
    found = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+)?)`", page.read_text(encoding="utf-8"))
    for path in found:
        first, _, rest = path.partition("/")
        folder = not rest and page.name == "CONTRIBUTING.md"
        if folder or first in ROOMS or (path.endswith(".py") and path not in THEIRS):
            yield path


# The changelog tells of the past.
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.stem != "CHANGELOG"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_path_is_there(page):
    there = {path for path in paths(page) if any((home / path).exists() for home in HOMES)}
    assert set(paths(page)) - there == set()


def test_paths_are_found_wherever_they_begin():
    assert {"hosts/sharding.py", "data_prep/", "readers/", "nn/"} <= set(
        paths(ROOT / "CONTRIBUTING.md")
    )
    assert sum(len(list(paths(page))) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if not link.exists()] == []


def test_the_first_page_of_the_docs_leads_to_all_and_the_readme_to_it():
    first = ROOT / "docs" / "README.md"
    assert {*ROOT.glob("docs/*.md"), ROOT / "docs/results/README.md"} - links(first) == {first}
    assert first in links(ROOT / "README.md")
