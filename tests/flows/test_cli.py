import os
import subprocess
import sys
from pathlib import Path

import pytest

MEISSNER = Path(sys.executable).with_name("meissner")
COMMANDS = (
    "discover",
    "refresh",
    "train",
    "pretrain",
    "retry",
    "dataset",
    "audit",
    "tune",
    "benchmark",
    "grid",
    "jobflow-remote",
    "keep",
    "screen",
    "predict",
    "explain",
    "validate",
    "report",
    "ui",
    "deploy",
    "up",
    "status",
    "models",
    "workspace",
    "doctor",
)


def meissner(*arguments, **environment):
    command = [str(MEISSNER), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"COLUMNS": "250", **environment}
    )


def test_help_names_each_command_with_an_example():
    shown = meissner("--help").stdout
    for command in COMMANDS:
        assert f" {command} " in shown
    assert shown.count("Example: meissner") == len(COMMANDS)


def test_help_imports_nothing_heavy():
    code = "import sys, flows.cli; print([m for m in ('torch', 'prefect', 'pymatgen') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_prefect_waits_for_the_address_of_its_server():
    code = "import sys, flows.display, flows.interrupt, flows.server; print('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_completion_is_offered():
    shown = meissner(_MEISSNER_COMPLETE="complete_bash", COMP_WORDS="meissner di", COMP_CWORD="1").stdout
    assert shown.strip() == "discover"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["refresh", "--until", "lunch"], "--until 'lunch' is not one of clean, crystals, match, order, bands, grid"),
        (["discover", "--profile", "nowhere"], "Profile 'nowhere' is neither one of ['starter'] nor a TOML file"),
        (["train", "bnas", "--compiled", "--precision", "half"], "Setting 'bnas.precision': Input should be 'auto', "),
        (["train", "bnas", "--folds", "1"], "Setting 'bnas.folds': Input should be greater than or equal to 2"),
        (["screen", "--workspace", "/proc/nothing"], "Cannot write"),
    ],
    ids=["stage", "profile", "precision", "setting", "workspace"],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, sentence):
    result = meissner(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("meissner: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_stage_without_its_input_is_one_sentence_and_exit_code_2(tmp_path):
    result = meissner("train", "bnas", "--workspace", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("meissner: grids/index.parquet is not in the workspace")
    assert result.stderr.count("\n") == 1


def test_doctor_tells_what_is_there(tmp_path):
    shown = meissner("doctor", "--workspace", tmp_path / "new").stdout
    assert "prefect" in shown
    assert "gpaw" in shown
    assert "not yet" in shown
    assert "writable" in shown
    assert "vasp.command" in shown


def test_doctor_tells_how_vasp_would_be_started(tmp_path):
    (tmp_path / "potcars" / "POT_GGA_PAW_PBE").mkdir(parents=True)
    profile = tmp_path / "profile.toml"
    profile.write_text(f'[vasp]\ncommand = "env vasp_std"\npotcars = "{tmp_path}/potcars"\n')
    shown = "".join(meissner("doctor", "--profile", profile, "--workspace", tmp_path / "new").stdout.split())
    assert "vasp│yes│envvasp_std;POTCARsin" in shown


BAD_SUPERCON = {
    "missing column": ("formula,year\nMgB2,2001\n", "tc"),
    "empty file": ("", "empty"),
}


@pytest.mark.parametrize("name", BAD_SUPERCON)
def test_bad_reports_end_at_the_door(tmp_path, name):
    text, word = BAD_SUPERCON[name]
    source = tmp_path / "reports.csv"
    source.write_text(text)
    result = meissner("refresh", "--supercon", source, "--until", "clean", "--workspace", tmp_path / "w")
    assert result.returncode == 2
    assert str(source) in result.stderr
    assert word in result.stderr.lower()
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "w" / "supercon").exists()


def test_a_workspace_with_brackets_in_its_name_is_shown_whole(tmp_path):
    place = tmp_path / "[red]runs"
    place.mkdir()
    for arguments in (("models", "list"), ("workspace", "gc")):
        shown = meissner(*arguments, "--workspace", place)
        assert shown.returncode == 0, shown.stderr
        assert "[red]runs" in shown.stdout
