"""Reports through the command line: fetched, read by named columns, and what the rules did."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from flows.display import print_rules
from tasks.cleaning import OUTPUT, clean_supercon
from tasks.settings import CleaningSettings
from tasks.workspace import Workspace
from tests.tasks.file_server import serve_file
from tests.tasks.mdr_files import mdr_text

ROWS = [
    {"element": "Nb", "tc": "9.2", "t1": "9.1"},
    {"element": "Ta", "t1": "4.4", "utc": "k"},
    {"element": "Cu", "tcn": "0.01"},
    {"element": "Li", "t1": "20", "pmax": "48"},
    {"element": "Bi2Sr2CaCu2OY", "t1": "80"},
]


def shown(workspace):
    console = Console(file=io.StringIO(), width=120)
    print_rules(console, Workspace(workspace))
    return console.file.getvalue()


def test_what_the_rules_did_is_shown_rule_by_rule(tmp_path):
    assert shown(tmp_path) == "", "nothing was cleaned yet"
    source = tmp_path / "reports.csv"
    source.write_text("formula,tc,tcn,pmax\nNb,9.2,,\nNb3Xx,9,,\nLi,20,,48\nCu,,0.1,\nAu,0,,\n,3,,\n")
    clean_supercon.fn(str(tmp_path), str(source), CleaningSettings())
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown(tmp_path).splitlines() if "│" in line]
    assert lines == [
        ["", "rows read", "6", ""],
        ["no_formula", "no formula", "5", "1"],
        ["pressure", "not measured at ambient pressure", "4", "1"],
        ["unreadable_formula", "a text that is no formula", "3", "1"],
        ["", "a Tc that counts", "1", ""],
        ["", "no superconductivity down to a known temperature", "1", ""],
        ["", "no Tc reported, no lowest temperature known", "1", ""],
    ]


def test_the_datasheet_from_its_publisher_to_the_table_of_rules(tmp_path):
    data = mdr_text(ROWS).encode()
    with serve_file(data, "cut 3000", (429, {"Retry-After": "0"})) as served:
        environment = os.environ | {
            "MEISSNER_MDR__URL": served.url,
            "MEISSNER_MDR__SHA256": hashlib.sha256(data).hexdigest(),
            "MEISSNER_MDR__CACHE": str(tmp_path / "cache"),
            "COLUMNS": "150",
        }
        command = [Path(sys.executable).with_name("meissner"), "refresh", "--supercon", "mdr", "--tc-column", "T1"]
        command += ["--until", "clean", "--workspace", tmp_path / "w"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert result.returncode == 0, result.stderr
        assert served.requests == [None, "bytes=3000-", "bytes=3000-"]
    assert "3 of 5, 2 refused" in result.stdout
    assert "unknown_amount" in result.stdout
    assert "not measured at ambient pressure" in result.stdout
    table = Workspace(tmp_path / "w").read_table(OUTPUT).to_pylist()
    assert [(row["formula"], row["tc_kelvin"], row["lowest_kelvin"]) for row in table] == [
        ("Nb", 9.1, None),
        ("Ta", 4.4, None),
        ("Cu", 0, 0.01),
    ]
    assert table[0]["tc_definitions"] == ["zero resistance"]
