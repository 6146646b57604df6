"""The stage train-bnas on synthetic grids: what it stores, that it resumes, and what it refuses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load

from flows.train_bnas import train_bnas
from models.bnas import CONFIGS, Bnas
from models.exceptions import CheckpointError, ModelInputError, TrainingError
from models.fusion import FUSION, TWINS
from tasks.bnas_data import Labelled, Part, choose_network, cross_validations, make_plan, read_labelled
from tasks.bnas_ensemble import BnasEnsemble
from tasks.epochs import parts_under_way
from tasks.exceptions import InputError, MissingStageError
from tasks.model_store import load_model, model_folder
from tasks.schemas import FOLDS, PREDICTIONS
from tasks.settings import GridSettings, TrainingSettings
from tasks.shards import read_grids
from tasks.train_bnas import BAND_FOREST, curves_file, load_bnas, train_part
from tasks.training_figures import write_training_figures
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace
from tests.tasks.grid_workspaces import bands_row

SETTINGS = TrainingSettings(config="tiny", folds=2, ensemble=2, device="cpu")
BASELINES = {
    "mean",
    "same element set",
    "nearest composition",
    "element fractions, network",
    BAND_FOREST,
    FUSION,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_harness: None) -> tuple[Workspace, Any]:
    workspace = make_grid_workspace(tmp_path_factory.mktemp("bnas"), count=16)
    return workspace, train_bnas(workspace.url, SETTINGS, 1)


def test_report_accounts_for_every_material(trained: tuple) -> None:
    _, report = trained
    assert (report.stage, report.rows_in, report.rows_refused) == ("train-bnas", 16, 0)
    assert report.counts["superconductors"] == 10
    assert {"r2_log_all random", "r2_log_all chemical-system"} <= set(report.counts)


@pytest.mark.parametrize("processes", [1, 2])
def test_epochs_of_folds_under_way_reach_the_flow(
    tmp_path: Path, prefect_harness: None, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    seen = []

    def look(*given: Any) -> float:
        seen.append(parts_under_way(*given))
        return seen[-1]

    monkeypatch.setattr("flows.train_bnas.parts_under_way", look)
    monkeypatch.setattr("tasks.progress.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("tasks.epochs.WRITE_SECONDS", 0)
    workspace = make_grid_workspace(tmp_path, count=16)
    train_bnas(workspace.url, SETTINGS.model_copy(update={"epochs": 40, "ensemble": 1}), processes)
    assert 0 < max(seen) < processes + 1
    assert workspace.list("models/**/*.epochs") == []


def test_every_model_is_scored_on_every_split_with_intervals(trained: tuple) -> None:
    workspace, _ = trained
    metrics = load_model(workspace, "bnas").metrics
    assert set(metrics["scores"]) == set(SETTINGS.splits)
    for models in metrics["scores"].values():
        assert BASELINES | {"bnas", "Magpie, random forest", "Magpie, gradient boosting"} <= set(models)
        for scores in models.values():
            assert (
                scores["mae_kelvin_all"]["low"] <= scores["mae_kelvin_all"]["value"] <= scores["mae_kelvin_all"]["high"]
            )
            assert 0 <= scores["roc_auc"]["value"] <= 1
            assert 0 <= scores["accuracy"]["low"] <= scores["accuracy"]["value"] <= scores["accuracy"]["high"] <= 1
    for split, families in metrics["families"].items():
        assert sum(family["materials"] for family in families.values()) == metrics["materials"]
        for family in families.values():
            assert set(family["scores"]) == set(metrics["scores"][split])
        parts = [(family["materials"], family["scores"]["bnas"]["mae_kelvin_all"]) for family in families.values()]
        mean = sum(count * score["value"] for count, score in parts) / metrics["materials"]
        assert mean == pytest.approx(metrics["scores"][split]["bnas"]["mae_kelvin_all"]["value"])
    assert all(fold["systems"] == fold["parents"] == 0 for fold in metrics["leakage"]["chemical-system"])
    assert metrics["calibration"]["split"] == "chemical-system"
    for split, gain in metrics["bands_add"].items():
        models = metrics["scores"][split]
        expected = models[FUSION]["r2_log_all"]["value"] - models[TWINS[1]]["r2_log_all"]["value"]
        assert gain["value"] == pytest.approx(expected)
        assert gain["low"] <= gain["value"] <= gain["high"]


def test_predictions_are_out_of_fold_and_once_a_material(trained: tuple) -> None:
    workspace, report = trained
    folder = model_folder("bnas", report.counts["version"])
    table, folds = (workspace.read_table(f"{folder}/{name}.parquet") for name in ("predictions", "folds"))
    assert table.schema.equals(PREDICTIONS)
    assert folds.schema.equals(FOLDS)
    sides = {(r["split"], r["fold"], r["material_id"]): r["side"] for r in folds.to_pylist()}
    for split in SETTINGS.splits:
        own = table.filter(pc.and_(pc.equal(table["model"], "bnas"), pc.equal(table["split"], split)))
        assert sorted(own["material_id"].to_pylist()) == [f"m-{n:03d}" for n in range(16)]
        assert {sides[split, r["fold"], r["material_id"]] for r in own.to_pylist()} == {"test"}
    assert min(table["tc_predicted_kelvin"].to_pylist()) >= 0


def test_ensemble_answers_with_intervals_and_an_image_spread(trained: tuple) -> None:
    workspace, _ = trained
    _, grids = read_grids(workspace)
    ensemble = load_bnas(workspace)
    answer = ensemble.predict(grids[:5])
    assert answer.tc_kelvin.shape == (5,)
    assert (answer.tc_low_kelvin <= answer.tc_kelvin).all()
    assert (answer.tc_kelvin <= answer.tc_high_kelvin).all()
    assert (answer.tc_image_spread_kelvin >= 0).all()
    again = ensemble.predict(grids[:5])
    assert np.array_equal(answer.tc_kelvin, again.tc_kelvin)
    turned = np.roll(grids[:5].transpose(0, 1, 3, 2, 4)[..., ::-1], 1, axis=-1)
    assert ensemble.predict(turned).tc_kelvin == pytest.approx(answer.tc_kelvin, rel=1e-4)
    assert len(ensemble.predict(grids[:0]).tc_kelvin) == 0


def test_interval_is_as_wide_as_the_held_out_errors_ask(trained: tuple) -> None:
    workspace, report = trained
    table = workspace.read_table(f"{model_folder('bnas', report.counts['version'])}/predictions.parquet")
    own = table.filter(pc.and_(pc.equal(table["model"], "bnas"), pc.equal(table["split"], "chemical-system")))
    errors = np.abs(np.log1p(own["tc_kelvin"].to_numpy()) - np.log1p(own["tc_predicted_kelvin"].to_numpy()))
    half = load_bnas(workspace, coverage=0.8)
    assert half.half_width == pytest.approx(np.sort(errors)[math.ceil(17 * 0.8) - 1], rel=1e-5)
    with pytest.raises(ModelInputError, match="needs at least 99 held-out materials, there are 16"):
        load_bnas(workspace, coverage=0.99)


def test_a_network_that_sees_compositions_takes_them_from_the_index_and_asks_for_them(tmp_path: Path) -> None:
    workspace = make_grid_workspace(tmp_path, count=16)
    settings = SETTINGS.model_copy(update={"config": "best", "epochs": 1, "splits": ("random",)})
    plan = make_plan(workspace, settings)
    train_part(workspace.url, settings, plan, plan.folds[0])
    assert np.isfinite(workspace.read_table(plan.folds[0].file)["tc_predicted_kelvin"].to_numpy()).all()
    train_part(workspace.url, settings, plan, plan.members[0])
    network = Bnas(plan.config).eval()
    network.load_state_dict(load(workspace.read_bytes(plan.members[0].file)))
    ensemble = BnasEnsemble(plan.version, plan.config, [network], half_width=0.5, coverage=0.9)
    index, grids = read_grids(workspace)
    answer = ensemble.predict(grids, "cpu", formulas=index["formula"].to_pylist())
    assert len(set(answer.tc_kelvin)) > 8
    assert len(set(ensemble.predict(grids, "cpu", formulas=["Nb3Sn"] * 16).tc_kelvin - answer.tc_kelvin)) > 8
    with pytest.raises(ModelInputError, match="sees compositions as well: give the formula of each grid"):
        ensemble.predict(grids, "cpu")
    assert ensemble.patch_attention(grids[0]).shape == (1, 2, 2, 2)


def test_curves_and_figures_stand_beside_the_model(trained: tuple) -> None:
    workspace, report = trained
    folder = model_folder("bnas", report.counts["version"])
    curves = workspace.read_table(f"{folder}/curves.parquet")
    parts = ["chemical-system-0", "chemical-system-1", "ensemble-0", "ensemble-1", "random-0", "random-1"]
    assert sorted(set(curves["part"].to_pylist())) == parts
    assert len(curves) == len(parts) * 2, "the tiny recipe has two epochs"
    last = {row["part"]: row["validation_loss"] for row in curves.to_pylist() if row["epoch"] == 2}
    assert [last[part] is None for part in parts] == [False, False, True, True, False, False]
    for part in parts:
        assert list(workspace.local(f"{folder}/tensorboard/{part}").glob("events.out.tfevents.*"))
    for name in ("scores", "predictions", "calibration", "curves"):
        assert workspace.read_bytes(f"{folder}/figures/{name}.svg").startswith(b"<?xml")


def test_figures_are_drawn_once(trained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = trained
    monkeypatch.setattr("tasks.training_figures.training_figures", None)
    files = write_training_figures(workspace, "bnas")
    assert {"scores", "predictions", "calibration", "curves"} <= {Path(file).stem for file in files}
    assert all(workspace.exists(file) for file in files)


def test_rollout_stands_on_the_grid_with_mean_one(trained: tuple) -> None:
    workspace, _ = trained
    found = load_bnas(workspace).rollout(read_grids(workspace)[1][0], "periodic")
    assert found.shape == (8, 8, 8)
    assert found.mean() == pytest.approx(1)


def test_second_run_computes_nothing(trained: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, first = trained
    monkeypatch.setattr("tasks.workers.run_in_worker", lambda *_, **__: pytest.fail("a part was computed again"))
    report = train_bnas(workspace.url, SETTINGS, 1)
    assert report.reused
    assert report.outputs == first.outputs


def test_killed_run_goes_on_to_the_same_bytes(trained: tuple) -> None:
    workspace, first = trained
    folder = model_folder("bnas", first.counts["version"])
    for name in ("parts/random-1.parquet", "parts/member-0.safetensors", "metrics.json", "weights-0.safetensors"):
        workspace.remove(f"{folder}/{name}")
    workspace.remove("stages/train-bnas/manifest.json")
    report = train_bnas(workspace.url, SETTINGS, 1)
    assert not report.reused
    assert report.outputs == first.outputs
    assert not workspace.list(f"{folder}/parts/*.checkpoint")


def test_worker_process_gives_the_same_bytes(trained: tuple) -> None:
    from tasks.workers import close_workers, run_in_worker

    workspace, _ = trained
    plan = make_plan(workspace, SETTINGS)
    part = plan.folds[0]
    before = workspace.read_bytes(part.file)
    workspace.remove(part.file)
    run_in_worker(train_part, workspace.url, SETTINGS, plan, part, processes=2)
    close_workers()
    assert workspace.read_bytes(part.file) == before


def test_other_weights_under_the_configuration_are_refused(trained: tuple, tmp_path: Path) -> None:
    workspace, report = trained
    name = f"{model_folder('bnas', report.counts['version'])}/config.json"
    config = workspace.read_json(name)
    workspace.write_json(name, config | {"network": config["network"] | {"depth": 1}})
    try:
        with pytest.raises(CheckpointError, match="do not fit the network of its configuration"):
            load_bnas(workspace)
    finally:
        workspace.write_json(name, config)


def few(rows: list[dict]) -> list[dict]:
    return rows[:6]


def unlabelled(rows: list[dict]) -> list[dict]:
    return [row | {"tc_kelvin": None} for row in rows]


def no_superconductor(rows: list[dict]) -> list[dict]:
    return [row | {"tc_kelvin": 0.0} for row in rows]


def only_superconductors(rows: list[dict]) -> list[dict]:
    return [row | {"tc_kelvin": 4.2} for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (few, "at least 10 materials .* has 6: 4 superconductors and 2 others"),
        (unlabelled, "has 0: 0 superconductors and 0 others"),
        (no_superconductor, "has 16: 0 superconductors and 16 others"),
        (only_superconductors, "has 16: 16 superconductors and 0 others"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_too_little_to_learn_from_is_told(tmp_path: Path, change: Callable, message: str) -> None:
    workspace = make_grid_workspace(tmp_path, count=16, change=change)
    with pytest.raises(InputError, match=message):
        make_plan(workspace, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"config": "huge"}, InputError, "no configuration 'huge'; choose one of best, paper, starter, tiny"),
        ({"splits": ("alphabet",)}, ModelInputError, "not one of random"),
        ({"device": "abacus"}, TrainingError, "not one of auto, cpu, cuda"),
        ({"folds": 40}, ModelInputError, "40 folds need at least 40 materials"),
    ],
    ids=["config", "split", "device", "folds"],
)
def test_impossible_settings_are_told(tmp_path: Path, changes: dict, error: type, message: str) -> None:
    workspace = make_grid_workspace(tmp_path, count=16)
    with pytest.raises(error, match=message):
        make_plan(workspace, SETTINGS.model_copy(update=changes))


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    workspace, states = make_grid_workspace(tmp_path, count=16), {}
    for precision in ("auto", "float32", "bf16"):
        settings = SETTINGS.model_copy(update={"precision": precision})
        plan = make_plan(workspace, settings)
        train_part(workspace.url, settings, plan, plan.members[0])
        states[plan.version] = load(workspace.read_bytes(plan.members[0].file))
        curves = workspace.read_table(curves_file(plan.members[0]))
        assert np.isfinite(curves["loss"].to_numpy()).all()
    exact, reduced = states.values()  # auto is float32 on a CPU, the same version
    assert {value.dtype for value in reduced.values()} == {torch.float32}
    shifts = [float((exact[name] - reduced[name]).abs().max()) for name in exact]
    assert 0 < max(shifts) < 0.01


def test_arithmetic_of_the_settings_reaches_the_recipe() -> None:
    plain = choose_network(SETTINGS)[1]
    assert plain == CONFIGS["tiny"][1]
    changed = choose_network(SETTINGS.model_copy(update={"precision": "bf16", "compiled": True}))[1]
    assert (changed.precision, changed.compiled) == ("bf16-mixed", True)


@pytest.mark.usefixtures("prefect_harness")
def test_little_memory_is_told_in_the_log_of_the_run_and_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Bnas.forward

    def forward(network: Bnas, energies: torch.Tensor, fractions: torch.Tensor | None = None) -> torch.Tensor:
        if len(energies) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return whole(network, energies, fractions)

    monkeypatch.setattr(Bnas, "forward", forward)
    workspace = make_grid_workspace(tmp_path, count=16)
    settings = SETTINGS.model_copy(update={"splits": ("random",), "ensemble": 1, "epochs": 1})
    train_bnas(workspace.url, settings, 1)
    notes = load_model(workspace, "bnas").metrics["notes"]
    assert set(notes) == {"random-0", "random-1", "ensemble-0"}
    told = "batches go in parts of 4 samples from here on"
    for where in ("epoch 1, step 1", "the validation after epoch 1", "a prediction"):
        assert f"Out of memory in {where}: {told}" in notes["random-0"]
    assert any(told in record.getMessage() and "item=random-0" in record.getMessage() for record in caplog.records)
    answer = load_bnas(workspace, coverage=0.8).predict(read_grids(workspace)[1], "cpu")
    assert np.isfinite(answer.tc_kelvin).all()


def test_missing_grids_are_told(tmp_path: Path) -> None:
    with pytest.raises(MissingStageError, match=r"grids/index\.parquet is not in the workspace"):
        make_plan(Workspace(tmp_path), SETTINGS)


@pytest.mark.parametrize("split", ["random", "chemical-system", "family", "year"])
def test_every_split_keeps_relatives_apart(tmp_path: Path, split: str) -> None:
    labelled = read_labelled(make_grid_workspace(tmp_path, count=24))
    groups = labelled.groups
    folds = cross_validations(labelled, SETTINGS.model_copy(update={"splits": (split,)}))[split]
    assert len(folds) >= 2
    for fold in folds:
        shared = set(groups[fold.train]) & set(groups[fold.test])
        assert split == "random" or not shared


def test_version_follows_data_and_settings(tmp_path: Path) -> None:
    workspace = make_grid_workspace(tmp_path, count=16)
    version = make_plan(workspace, SETTINGS).version
    assert make_plan(workspace, SETTINGS).version == version
    assert make_plan(workspace, SETTINGS.model_copy(update={"seed": 1})).version != version
    index = workspace.read_table("grids/index.parquet").to_pylist()
    index[3]["tc_kelvin"] += 0.1
    schema = workspace.read_table("grids/index.parquet").schema
    workspace.write_table(
        "grids/index.parquet", type(workspace.read_table("grids/index.parquet")).from_pylist(index, schema)
    )
    assert make_plan(workspace, SETTINGS).version != version


def test_measured_composition_names_the_material() -> None:
    import pyarrow as pa

    table = pa.table({"supercon_formula": ["La1.85Sr0.15CuO4", None], "formula": ["La15SrCu8O32", "Nb"]})
    assert Labelled(table).formulas == ["La1.85Sr0.15CuO4", "Nb"]


def test_parts_have_names_for_people() -> None:
    assert Part(kind="member", number=2, file="f").name == "ensemble-2"
    assert Part(kind="fold", split="year", number=0, file="f").name == "year-0"


def test_a_table_of_bands_with_labels_is_all_that_a_training_needs(tmp_path: Path, prefect_harness: None) -> None:
    """Formulas, Tc and crystals come from the table; grids, network and scores stand in a collection."""
    rows = [bands_row(f"m{n:02d}", [0.1 * n - 0.8, 0.6]) for n in range(16)]
    elements = ["Al", "Nb", "V", "Ta", "Mo", "W", "Ti", "Zr"]
    for n, row in enumerate(rows):
        row |= {"formula": elements[n % 8], "tc_kelvin": float(n % 4)}
        row["structure"] = row["structure"].replace('"Cu"', f'"{elements[n % 8]}"')
    table = pa.Table.from_pylist(rows).drop(["bands_hash"])
    (tmp_path / "my bands").mkdir()
    pq.write_table(table, tmp_path / "my bands" / "bands.parquet")
    place, grid = tmp_path / "w", GridSettings(mesh=8)
    report = train_bnas(str(place), SETTINGS, data=str(tmp_path / "my bands"), grid=grid)
    assert (report.rows_in, report.counts["superconductors"]) == (16, 12)
    inside = Workspace(place / "collections" / "my-bands")
    index = {row["material_id"]: row for row in read_grids(inside)[0].to_pylist()}
    assert (index["m05"]["formula"], index["m05"]["tc_kelvin"], index["m05"]["family"]) == ("W", 1.0, "element")
    models = load_model(inside, "bnas").metrics["scores"]["random"]
    assert set(models) >= {"Magpie and cell, gradient boosting", "size only"}, "baselines see the crystals"
    assert train_bnas(str(place), SETTINGS, data=str(tmp_path / "my bands"), grid=grid).reused
