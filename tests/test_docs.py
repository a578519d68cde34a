"""The pages lead where they say, and the first one leads to all."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def links(page):
    """The files of the project that a page names as links."""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return {(page.parent / link).resolve() for link in found if "://" not in link}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    assert [link for link in links(page) if not link.exists()] == []


def test_the_first_page_of_the_docs_leads_to_all_and_the_readme_to_it():
    first = ROOT / "docs" / "README.md"
    assert {*ROOT.glob("docs/*.md"), ROOT / "docs/results/README.md"} - links(first) == {first}
    assert first in links(ROOT / "README.md")
