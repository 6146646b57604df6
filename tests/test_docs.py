"""What the documents say of the code is what the code says."""

import re
from pathlib import Path

import pytest

from tasks.cleaning import RULES
from tasks.settings import settings_table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_that_of_the_code():
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == settings_table(), "run: .venv/bin/python -m tasks.settings > docs/settings.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_rule_of_the_clean_stage_is_told_in_its_order():
    table = (ROOT / "docs" / "data.md").read_text().split("### Rules")[1].split("\n\n")[1]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(RULES)


def test_every_dependency_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    names = {re.match(r"[\w-]+", name)[0].lower() for name in re.findall(r'^    "([^"]+)",$', text, re.MULTILINE)}
    told = (ROOT / "docs" / "dependencies.md").read_text().lower()
    missing = {name for name in names if f"| {name} " not in told and f"| `{name}` " not in told}
    assert not missing, f"docs/dependencies.md does not name {sorted(missing)}"
