"""The command that asks the trained networks about single files, as a person runs it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from tasks.tight_binding import write_wannier90_hr
from tasks.tight_binding_models import one_band_cuprate
from tasks.workspace import Workspace
from tests.tasks.screening_workspace import screened  # noqa: F401

MEISSNER = Path(sys.executable).with_name("meissner")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A new crystal, one that was trained on, a file that holds none, and a model without its Fermi level."""
    folder = tmp_path_factory.mktemp("files")
    for symbols, length in (("VC", 4.16), (("Nb", "N"), 4.40)):
        sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
        crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(length), list(symbols), sites)
        crystal.to(str(folder / f"{''.join(symbols)}.cif"))
    (folder / "bad.cif").write_text("this is no crystal")
    write_wannier90_hr(one_band_cuprate(), folder / "layer_hr.dat")
    return {path.name: path for path in folder.iterdir()}


def predict(workspace: Workspace, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(MEISSNER), "predict", *map(str, arguments), "--workspace", workspace.url]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def printed(screened: Workspace, files: dict[str, Path]) -> dict[str, subprocess.CompletedProcess[str]]:  # noqa: F811
    """The same four files in each form."""
    asked = [files[name] for name in ("VC.cif", "bad.cif", "layer_hr.dat", "NbN.cif")]
    return {form: predict(screened, *asked, "--efermi", "0.3", *form.split()) for form in ("", "--json", "--csv")}


def test_a_bad_file_has_its_sentence_and_the_others_their_answers(printed):
    for result in printed.values():
        assert result.returncode == 0
        assert result.stderr.count("meissner: ") == 1
        assert "bad.cif" in result.stderr
        assert result.stderr.endswith("\n1 of 4 files was refused.\n")
    rows = json.loads(printed["--json"].stdout)
    assert [Path(row["file"]).name for row in rows] == ["VC.cif", "bad.cif", "layer_hr.dat", "NbN.cif"]
    assert [row["error"] is None for row in rows] == [True, False, True, True]
    assert rows[1]["error"] in printed["--json"].stderr
    assert rows[0]["formula"] == "VC"
    assert rows[0]["probability_low"] <= rows[0]["probability"] <= rows[0]["probability_high"]
    assert [row["probability_origin"] for row in rows] == ["ensemble", None, None, "in-sample"]
    assert rows[2]["tc_low_kelvin"] <= rows[2]["tc_kelvin"] <= rows[2]["tc_high_kelvin"]


def test_the_table_shows_the_rows_of_the_json(printed):
    crystal, _, model, trained = json.loads(printed["--json"].stdout)
    shown = printed[""].stdout
    names = ("VC.cif", "layer_hr.dat", "NbN.cif")
    lines = {name: next(line for line in shown.splitlines() if name in line) for name in names}
    assert f"{crystal['probability']:.2f}" in lines["VC.cif"]
    assert f"{crystal['distance']:.2f}" in lines["VC.cif"]
    interval = f"({model['tc_low_kelvin']:.1f} to {model['tc_high_kelvin']:.1f})"
    assert f"{model['tc_kelvin']:.2f} {interval}" in lines["layer_hr.dat"]
    assert f"none; nearest {crystal['nearest_formula']}" in lines["VC.cif"]
    assert "S2SNet" not in lines["VC.cif"]
    assert "S2SNet" in lines["NbN.cif"]
    assert f"{trained['known_formula']} (exact)" in lines["NbN.cif"]
    assert "bad.cif" not in shown
    assert crystal["note"] == trained["note"]
    assert [shown.count(row["note"]) for row in (crystal, model)] == [1, 1]


def test_the_csv_reads_back_as_the_rows_of_the_json(printed):
    read = pd.read_csv(io.StringIO(printed["--csv"].stdout))
    rows = json.loads(printed["--json"].stdout)
    assert list(read.columns) == list(rows[0])
    for name in ("file", "error", "formula", "probability", "probability_origin", "tc_kelvin", "distance", "note"):
        found = [None if pd.isna(value) else value for value in read[name]]
        assert found == [row[name] for row in rows]


def test_without_any_answer_the_exit_code_is_2(screened: Workspace, files: dict[str, Path], tmp_path: Path):  # noqa: F811
    result = predict(screened, files["bad.cif"], files["layer_hr.dat"], "--json")
    assert result.returncode == 2
    assert [row["probability"] for row in json.loads(result.stdout)] == [None, None]
    assert "names no Fermi level: give it with --efermi" in result.stderr
    untrained = predict(Workspace(tmp_path / "empty"), files["VC.cif"])
    assert untrained.returncode == 2
    assert untrained.stderr.startswith("meissner: ")
    assert untrained.stdout == ""


def test_partial_occupancies_are_refused_or_ordered_as_asked(screened, tmp_path):  # noqa: F811
    file = tmp_path / "alloy.cif"
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3), [{"Nb": 0.5, "V": 0.5}, "N"], sites).to(str(file))
    refused = predict(screened, file)
    assert refused.returncode == 2
    assert "partial occupancy; --disorder order" in refused.stderr
    ordered = predict(screened, file, "--disorder", "order", "--json")
    assert ordered.returncode == 0, ordered.stderr
    (row,) = json.loads(ordered.stdout)
    assert row["formula"] == "NbVN2"
    assert 0 < row["probability"] < 1
    assert "asked about an ordered cell of the partial occupancies, Nb" in row["note"]


def test_names_in_brackets_are_shown_and_notes_name_their_files(screened, files, tmp_path):  # noqa: F811
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    asked = [tmp_path / "[red]alloy.cif", tmp_path / "other.cif"]
    for file, second in zip(asked, ("V", "Ti"), strict=True):
        alloy = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.3), [{"Nb": 0.5, second: 0.5}, "N"], sites)
        file.write_text(alloy.to(fmt="cif"))
    result = predict(screened, *asked, files["VC.cif"], files["NbN.cif"], "--disorder", "order")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    table, _, notes = result.stdout.partition("other.cif")
    assert "[red]alloy.cif" in table
    assert "\n[red]alloy.cif: S2SNet was asked about an ordered cell" in notes
    assert "\nother.cif: S2SNet was asked about an ordered cell" in notes
    assert "\nVC.cif, NbN.cif: BNAS reads bands" in notes


def test_what_is_no_file_to_predict_has_a_sentence(screened, tmp_path):  # noqa: F811
    for name in ("crystals.zip", "crystals.csv", "notes.docx"):
        (tmp_path / name).touch()
    reasons = {
        "*.nothing": "Cannot read {}: there is no such file or folder",
        "absent.csv": "Cannot read {}: there is no such file or folder",
        ".": "{} is a folder; give its files: {}/*",
        "crystals.zip": "{} is an archive; unpack it and give its files: FOLDER/*",
        "crystals.csv": "{} is no file that is read, by its name; allowed are *.cif, POSCAR*, ",
        "notes.docx": "*.json, vasprun.xml, *_hr.dat, and these with .gz",
    }
    result = predict(screened, *(tmp_path / name for name in reasons))
    assert result.returncode == 2
    *lines, count = result.stderr.splitlines()
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert reason.format(*[tmp_path / name] * 2) in line
    assert count == "6 of 6 files were refused."


def test_json_and_csv_exclude_each_other(screened, files):  # noqa: F811
    result = predict(screened, files["VC.cif"], "--json", "--csv")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "meissner: --json and --csv exclude each other; give one of them\n"
