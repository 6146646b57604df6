"""Versions are listed and compared as they were stored; the promoted one is used; one step leads back."""

import json
import shutil

import pytest

from tasks.exceptions import InputError
from tasks.model_store import chosen_version, promote, promoted_version, rollback
from tasks.model_versions import HEADLINE, compare_versions, find_version, list_versions, read_version, tell_in_use
from tasks.prediction import INDEX, SUPERCONDUCTORS, Predictor
from tasks.screening import RESULT, SHAPING, join_parts, plan_screening, screen_to_part
from tasks.screening_plan import pin_networks
from tasks.settings import ScreeningSettings
from tasks.stages import read_report
from tasks.workspace import Workspace
from tests.tasks.screening_workspace import save_networks, screened  # noqa: F401 - a fixture


@pytest.fixture
def two(screened, tmp_path):  # noqa: F811
    """The finished workspace with a second, later version of both networks."""
    shutil.copytree(screened.root, tmp_path / "w")
    workspace = Workspace(tmp_path / "w")
    labelled = [row for row in workspace.read_table(INDEX).to_pylist() if row["tc_kelvin"] is not None]
    before = {name: chosen_version(workspace, name) for name in HEADLINE}
    save_networks(workspace, labelled, seed=1)
    return workspace, before, {name: chosen_version(workspace, name) for name in HEADLINE}


def test_without_a_promotion_the_latest_is_in_use_and_with_one_it_is_that(two):
    workspace, before, after = two
    assert before["bnas"] != after["bnas"]
    assert promoted_version(workspace, "bnas") is None
    promote(workspace, "bnas", before["bnas"])
    assert chosen_version(workspace, "bnas") == before["bnas"]
    assert chosen_version(workspace, "s2snet") == after["s2snet"]
    assert Predictor(workspace).bnas.version == before["bnas"]
    assert {row.version: (row.in_use, row.latest, row.promoted) for row in list_versions(workspace, "bnas")} == {
        before["bnas"]: (True, False, True),
        after["bnas"]: (False, True, False),
    }


def test_after_a_training_it_is_told_which_version_is_in_use(two):
    workspace, before, after = two
    old, new = before["s2snet"], after["s2snet"]
    assert tell_in_use(workspace, "s2snet", None) == f"Screening and prediction ask {new}"
    assert tell_in_use(workspace, "s2snet", new) == f"Screening and prediction ask {new}, as before"
    told = tell_in_use(workspace, "s2snet", old)
    assert told.startswith(f"Screening and prediction ask {new} from now on, in place of {old} (")
    assert told.endswith(f"; back: meissner models promote --workspace {workspace.url} {old}")
    for version, value in ((old, 0.84), (new, 0.31)):
        metrics = workspace.read_json(f"models/s2snet/{version}/metrics.json")
        metrics["scores"]["chemical-system"]["s2snet"]["roc_auc"]["value"] = value
        workspace.write_json(f"models/s2snet/{version}/metrics.json", metrics)
    told = tell_in_use(workspace, "s2snet", old)
    assert f"in place of {old} (0.31 on folds chemical-system, where that had 0.84); back: " in told
    promote(workspace, "s2snet", old)
    assert tell_in_use(workspace, "s2snet", old) == (
        f"Screening and prediction still ask {old}, which was promoted; "
        f"change that: meissner models promote --workspace {workspace.url} {new}"
    )


def test_a_rollback_is_one_step_and_there_is_none_before_the_first(two):
    workspace, before, after = two
    with pytest.raises(InputError, match="no earlier promotion of bnas to go back to: none was ever promoted"):
        rollback(workspace, "bnas")
    promote(workspace, "bnas", before["bnas"])
    promote(workspace, "bnas", after["bnas"])
    promote(workspace, "bnas", after["bnas"])  # twice is once
    assert rollback(workspace, "bnas") == before["bnas"] == chosen_version(workspace, "bnas")
    with pytest.raises(InputError, match=f"only {before['bnas']} was ever promoted"):
        rollback(workspace, "bnas")
    with pytest.raises(InputError, match=r"No version 'zz' of bnas .* there are: "):
        promote(workspace, "bnas", "zz")


def test_screening_uses_the_promoted_versions_and_says_so(two):
    workspace, before, _after = two
    for name in HEADLINE:
        promote(workspace, name, before[name])
    settings = pin_networks(workspace, ScreeningSettings(limit=3, chunk=2))
    plan = plan_screening(workspace, settings)
    promote(workspace, "bnas", two[2]["bnas"])  # while the work is under way
    for chunk in plan.chunks:
        screen_to_part(workspace, chunk, settings)
    join_parts(workspace, plan, settings)
    table = workspace.read_table(RESULT)
    assert set(table["bnas_version"].to_pylist()) == {before["bnas"]}
    assert set(table["s2snet_version"].to_pylist()) == {before["s2snet"]}
    told = json.loads(table.schema.metadata[b"meissner"])
    assert told["networks"] == before
    assert told["data"] == {name: workspace.fingerprint(name) for name in (SUPERCONDUCTORS, INDEX)}
    assert told["settings"] == settings.model_dump(mode="json", include=SHAPING)
    assert read_report(workspace, "screen").code_version == told["code"]["screening"]


def test_two_versions_are_compared_by_origin_and_scores(two):
    workspace, before, after = two
    found = compare_versions(workspace, before["bnas"][:6], after["bnas"])
    assert found["version"] == (before["bnas"], after["bnas"])
    one, other = (read_version(workspace, "bnas", version) for version in (before["bnas"], after["bnas"]))
    assert found["score r2_log_all, random"] == (
        one.scores["random"]["r2_log_all"],
        other.scores["random"]["r2_log_all"],
    )
    assert "parameter network.depth" not in found, "both networks have the same shape"
    assert one.headline == ("chemical-system", one.scores["chemical-system"]["r2_log_all"])
    assert one.software["meissner"]
    with pytest.raises(InputError, match="nothing to compare"):
        compare_versions(workspace, before["bnas"], after["s2snet"])
    with pytest.raises(InputError, match="No version begins with 'zz'"):
        find_version(workspace, "zz")
    with pytest.raises(InputError, match="No version begins with ''"):
        find_version(workspace, "")


def test_the_commands_list_compare_promote_and_roll_back(two, meissner):
    workspace, before, after = two
    here = "--workspace", workspace.root

    def states():
        code, shown, _ = meissner("models", "list", "--json", *here)
        assert code == 0
        return {row["version"]: row["in_use"] for row in json.loads(shown) if row["name"] == "bnas"}

    assert states() == {before["bnas"]: False, after["bnas"]: True}
    for version in (before, after):
        code, shown, _ = meissner("models", "promote", version["bnas"][:6], *here)
        assert code == 0
        assert shown.startswith(f"bnas {version['bnas']} is in use from now on; back: meissner models rollback bnas")
        assert states()[version["bnas"]]
    code, shown, _ = meissner("models", "list", *here)
    lines = {version: next(line for line in shown.splitlines() if version in line) for version in states()}
    score = read_version(workspace, "bnas", after["bnas"]).headline[1]
    assert code == 0
    assert "in use, promoted, latest" in lines[after["bnas"]]
    assert f"{score:.3f}" in lines[after["bnas"]]
    assert "in use" not in lines[before["bnas"]]
    assert meissner("models", "rollback", "bnas", *here)[:2] == (0, f"bnas {before['bnas']} is in use again\n")
    assert states() == {before["bnas"]: True, after["bnas"]: False}
    code, shown, _ = meissner("models", "compare", before["bnas"], after["bnas"], *here)
    assert code == 0
    first, second = (read_version(workspace, "bnas", one["bnas"]).headline[1] for one in (before, after))
    row = next(line for line in shown.splitlines() if "score r2_log_all, chemical-system" in line)
    assert f"{first:.4g}" in row
    assert f"{second:.4g}" in row
    assert f"{second - first:+.3g}" in row
    code, shown, _ = meissner("models", "compare", before["bnas"], after["bnas"], "--json", *here)
    assert code == 0
    assert json.loads(shown)["version"] == [before["bnas"], after["bnas"]]


def test_a_wrong_version_or_network_is_one_sentence_and_exit_code_2(two, meissner, tmp_path):
    workspace, before, _after = two
    here = "--workspace", workspace.root
    mistakes = {
        ("promote", "zz", *here): "No version begins with 'zz' in the workspace",
        ("compare", before["bnas"], "zz", *here): "No version begins with 'zz' in the workspace",
        ("rollback", "cnn", *here): "The network 'cnn' is not one of bnas, s2snet",
        ("rollback", "bnas", *here): "none was ever promoted",
    }
    for arguments, sentence in mistakes.items():
        code, shown, told = meissner("models", *arguments)
        assert (code, shown, told.count("\n")) == (2, "", 1)
        assert told.startswith("meissner: ")
        assert sentence in told
    assert promoted_version(workspace, "bnas") is None
    code, shown, _ = meissner("models", "list", "--workspace", tmp_path / "new")
    assert code == 0
    assert "No trained network" in shown
