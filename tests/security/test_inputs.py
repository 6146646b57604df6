"""What is read from others cannot run code, reach other files, or grow without end."""

import ast
import bz2
import gzip
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.bands import failure_name, part_name
from tasks.exceptions import InputError, WorkspaceError
from tasks.vasprun import read_vasprun
from tasks.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for room in ("flows", "tasks", "models", "deployments") for path in (ROOT / room).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "joblib", "cloudpickle", "dill", "shelve", "marshal"}
LAUGHS = b'<!ENTITY a0 "ha">' + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))
BOMB = b"<?xml version='1.0'?><!DOCTYPE modeling [" + LAUGHS + b"]><modeling><generator>&a9;</generator></modeling>"
OPENERS = {".xml": open, ".xml.gz": gzip.open, ".xml.bz2": bz2.open, ".xml.xz": lzma.open}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def unsafe_reads(text):
    """What in a module would unpickle what it reads."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in UNPICKLERS]
    for name, words in calls(tree):
        last = name.rpartition(".")[2]
        if name == "torch.load" and words.get("weights_only") != "True":
            found.append(name)
        if words.get("allow_pickle", "False") != "False" or last in {"read_pickle", "unsafe_load", "full_load"}:
            found.append(name)
        if words.get("persist_result") == "True" or {"result_serializer", "result_storage"} & set(words):
            found.append(f"{name}: results of Prefect are not kept, or kept as JSON")
        if name == "yaml.load" or (last in {"eval", "exec"} and name in {"eval", "exec"}):
            found.append(name)
    return found


def test_nothing_is_unpickled():
    found = {str(path.relative_to(ROOT)): unsafe_reads(path.read_text()) for path in SOURCES}
    assert len(found) > 100
    assert {name: reads for name, reads in found.items() if reads} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "import pandas as pd; pd.read_pickle('x')",
        "import yaml; yaml.load(text)",
        "task(persist_result=True)",
        "flow(result_serializer='pickle')",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert unsafe_reads(text)


def test_results_of_prefect_would_be_json():
    code = (
        "from flows.server import QUIET; import os; os.environ.update(QUIET);"
        "from prefect.settings import get_current_settings as s; r = s().results;"
        "print(r.default_serializer, r.persist_by_default)"
    )
    unset = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_RESULTS")}
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True, check=True)
    assert done.stdout == "json False\n"


@pytest.mark.parametrize("ending", OPENERS)
def test_a_billion_laughs_are_not_expanded(tmp_path, ending):
    path = tmp_path / f"vasprun{ending}"
    with OPENERS[ending](path, "wb") as file:
        file.write(BOMB)
    started = time.process_time()
    with pytest.raises(InputError, match=r"declares a document type, which vasprun\.xml never has"):
        read_vasprun(path)
    assert time.process_time() - started < 5


def test_an_entity_cannot_name_a_file(tmp_path):
    (tmp_path / "secret").write_text("5planted5")
    path = tmp_path / "vasprun.xml"
    path.write_text(
        f'<?xml version="1.0" encoding="ISO-8859-1"?>\n<!-- VASP -->\n<!DOCTYPE modeling [<!ENTITY x SYSTEM '
        f'"file://{tmp_path}/secret">]>\n<modeling><generator>&x;</generator></modeling>'
    )
    with pytest.raises(InputError, match="document type") as told:
        read_vasprun(path)
    assert "5planted5" not in str(told.value)


IDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "mp-1\x00",
    "con:aux",
    "..\\..\\x",
    "é" * 300,
    "-rf *",
]


@pytest.mark.parametrize("name", IDS, ids=lambda name: ascii(name)[:20])
@pytest.mark.parametrize("file", [part_name, failure_name], ids=lambda function: function.__name__)
def test_an_id_stays_in_its_folder(tmp_path, name, file):
    place = Workspace(tmp_path / "workspace")
    place.write_bytes(file(name), b"x")
    inside = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(inside) == 1
    assert inside[0].resolve().is_relative_to((tmp_path / "workspace" / file("mp-1")).parent)
    assert file(name) != file(name + "x"), "two ids never share a file"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_the_workspace_refuses_names_outside_of_it(tmp_path, name):
    with pytest.raises(WorkspaceError, match="not a name inside the workspace"):
        Workspace(tmp_path).write_bytes(name, b"x")
