"""The rooms and their doors: what may import what, and what every task and flow must be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "tasks", "models")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_imports_point_one_way():
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize("path", _modules("models"), ids=str)
def test_models_know_nothing_of_orchestration_or_storage(path):
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & {"prefect", "jobflow", "fsspec", "tasks", "flows"}


@pytest.mark.parametrize("path", _modules("flows"), ids=str)
def test_a_flow_function_reads_at_a_glance(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{node.name} is too long"


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_says_what_it_is(room):
    for path in _modules(room):
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_constraints_pin_versions_and_name_no_address():
    lines = (ROOT / "deployments" / "constraints.txt").read_text().splitlines()
    assert len(lines) > 100
    assert all("==" in line and "/" not in line for line in lines)
