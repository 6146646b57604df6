"""What the documents say of the code is what the code says."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pyarrow as pa
import pytest
from nbclient import NotebookClient

from deployments.formats_page import TABLES, formats_page
from tasks import schemas
from tasks.cleaning import RULES
from tasks.settings import settings_table
from tests.tasks.screening_workspace import screened  # noqa: F401 - a fixture

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


def test_the_formats_page_is_that_of_the_schemas():
    page = (ROOT / "docs" / "formats.md").read_text()
    assert page == formats_page(), "run: .venv/bin/python -m deployments.formats_page > docs/formats.md"


def test_every_schema_has_its_section():
    named = {name for name, value in vars(schemas).items() if isinstance(value, pa.Schema)}
    assert set(TABLES) == named


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code():
    quoted = re.findall(r"^> `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    known = set(_sentences())
    assert len(quoted) > 15
    assert [message for message in quoted if message not in known] == []


def _sentences() -> Iterator[str]:
    """Every text of the code, with … in place of what is put into it."""
    for room in ("flows", "tasks", "models"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                    yield re.sub(r"\{\w+(:\w+)?\}", "…", node.value)  # a text that is filled in by format()


def test_the_site_is_built_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "deployments/mkdocs.yml"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*command, "-d", tmp_path], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    home = (tmp_path / "index.html").read_text()
    assert "Quick start" in home
    loaded = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', home)
    assert not loaded, "a page that opens without a network loads nothing from elsewhere"
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / page.stem / "index.html").exists() or page.stem == "index"


def test_the_tutorial_runs(tmp_path, screened, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MEISSNER_WORKSPACE", screened.url)
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("bands that cross E_F: 3" in text for text in shown)  # MgB2: two sigma bands and a pi band
    (answer,) = (cell["outputs"][0]["data"]["text/html"] for cell in notebook.cells if "import predict" in cell.source)
    for text in ("MgB2", "P6/mmm", "probability_low", "nearest_formula"):
        assert text in answer
