"""The time machine: nobody sees the future, relatives stay out of the pool, parts are kept, the page tells it."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.exceptions import InputError
from tasks.report_data import read_stages
from tasks.report_time_machine import read_time_machine, time_machine_section
from tasks.schemas import ORDERED, TIME_MACHINE, TIME_MACHINE_LISTS
from tasks.screening_kept import keep_best
from tasks.screening_plan import Plan
from tasks.settings import GridSettings, ScreeningSettings, TimeMachineSettings
from tasks.time_machine import BOTH, LISTS, OUTPUT, make_plan
from tasks.time_machine_data import choose_years, look_back, read_history, read_years
from tasks.workspace import Workspace
from tasks.workspace_check import check_workspace

SETTINGS = TimeMachineSettings(
    years=(1970,), bnas="tiny", s2snet="tiny", epochs=1, top=(2, 4), min_trained=2, min_found=2
)
YEARS = {  # first report; the others of the workspace's crystals have none
    "NbN": 1950,
    "ZrN": 1950,
    "TiC": 1955,
    "HfN": 1965,
    "ScN": 1965,
    "NbC": 1972,
    "TiN": 1975,
    "TaC": 1983,
    "MoC": 1985,
    "AlNi": 1985,
    "ZnCu": 1985,
    "YS": 1991,
}


@pytest.fixture(scope="module")
def workspace(screened: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The screened workspace with years, a doped relative of NbN reported later, and one without a year."""
    folder = tmp_path_factory.mktemp("history") / "copy"
    shutil.copytree(screened.local("."), folder)
    copy = Workspace(folder)
    rows = [
        row | {"year_first": YEARS.get(row["formula"])}
        for row in copy.read_table("crystals/ordered.parquet").to_pylist()
    ]
    parent = next(row for row in rows if row["formula"] == "NbN")
    doped = {"supercon_formula": "Nb0.9Ti0.1N", "match": "doped", "tc_kelvin": 15.0}
    rows += [parent | doped | {"material_id": "doped", "year_first": 1990}]
    rows += [parent | doped | {"material_id": "undated", "parent_id": "other", "year_first": None}]
    copy.write_table("crystals/ordered.parquet", pa.Table.from_pylist(rows, schema=ORDERED))
    return copy


@pytest.fixture(scope="module")
def finished(workspace: Workspace, prefect_harness) -> Workspace:
    from flows.validate import time_machine

    report = time_machine(workspace.url, SETTINGS)
    assert report.counts["years"] == 1
    return workspace


def names(history, rows) -> set[str]:
    ids, formulas = history.column("material_id"), history.column("formula")
    return {ids[row] if ids[row] in {"doped", "undated"} else formulas[row] for row in rows}


def test_nobody_sees_the_future(workspace: Workspace):
    history = read_history(workspace, SETTINGS)
    moment = look_back(history, 1970, 0.0, seed=0)
    assert names(history, moment.train) == {"NbN", "ZrN", "TiC", "HfN", "ScN"}
    assert not set(moment.train) & set(moment.pool)
    later = names(history, moment.pool[~np.isnan(moment.found)])
    assert later == {"NbC", "TiN", "TaC", "MoC", "YS"}
    never = names(history, moment.pool[np.isnan(moment.found)])
    assert never >= {"VC", "NiAl", "LaAs"} or never >= {"VC", "AlNi", "LaAs"}


def test_relatives_and_undated_superconductors_are_in_no_pool(workspace: Workspace):
    history = read_history(workspace, SETTINGS)
    for year in (1940, 1970):
        pool = names(history, look_back(history, year, 0.0, seed=0).pool)
        assert not pool & {"doped", "undated"}
    assert "NbN" in names(history, look_back(history, 1940, 0.0, seed=0).pool)
    assert "NbN" not in names(history, look_back(history, 1970, 0.0, seed=0).pool)


def test_what_reports_lack_is_drawn_by_lot_whatever_became_of_it(workspace: Workspace):
    history = read_history(workspace, SETTINGS)
    drawn: set[str] = set()
    for seed in range(20):
        moment = look_back(history, 1970, 2.0, seed)
        assert moment.background == 4  # 3 superconductors, 2 others; 6 others are wanted
        assert (moment.tc_kelvin[-4:] == 0).all()
        assert not set(moment.train) & set(moment.pool)
        drawn |= names(history, moment.train[-4:])
    assert drawn & {"NbC", "TiN", "TaC", "MoC", "YS"}
    assert drawn & {"VC", "WN", "LaAs", "HfRu", "CsXe"}


def test_years_come_from_a_table_where_reports_have_none(workspace: Workspace, tmp_path: Path):
    table = tmp_path / "years.csv"
    table.write_text("id,formula,Tc,Time,doi\n1,N1Nb1,16.0,1952,x\n2,CNb,11.1,12,x\n")
    assert read_years(str(table)) == {"N0.5 Nb0.5": 1952.0}
    rows = [row | {"year_first": None} for row in workspace.read_table("crystals/ordered.parquet").to_pylist()]
    bare = Workspace(tmp_path / "bare")
    bare.write_table("crystals/ordered.parquet", pa.Table.from_pylist(rows, schema=ORDERED))
    history = read_history(bare, SETTINGS.model_copy(update={"year_table": str(table)}))
    assert history.years[~np.isnan(history.years)].tolist() == [1952.0]
    with pytest.raises(InputError, match=r"0 of 10 superconducting materials have a year .* --year-table FILE"):
        choose_years(read_history(bare, TimeMachineSettings()), TimeMachineSettings())


def test_years_that_cannot_be_judged_are_told_with_the_counts(workspace: Workspace):
    good, refused = choose_years(read_history(workspace, SETTINGS), SETTINGS.model_copy(update={"years": (1950, 1970)}))
    assert good == [1970]
    assert refused[0].item == "1950"
    assert refused[0].reason.startswith("0 superconductors and 0 others were reported before, ")


def test_every_model_of_every_year_is_judged(finished: Workspace):
    table = finished.read_table(OUTPUT)
    assert table.schema.equals(TIME_MACHINE)
    rows = [row for row in table.to_pylist() if row["pool"] == "all" and row["top"] == 2]
    models = {(row["year"], row["inputs"]): set() for row in rows}
    for row in rows:
        models[row["year"], row["inputs"]].add(row["model"])
        assert row["expected"] == pytest.approx(2 * row["pool_found"] / row["pool_materials"])
        assert row["enrichment_low"] <= row["enrichment"] <= row["enrichment_high"]
    assert models[1970, "crystals"] >= {"S2SNet", "Magpie, random forest", "Magpie, gradient boosting"}
    assert models[1970, "bands"] >= {BOTH, "BNAS", "S2SNet", "band features, random forest"}
    assert set(models) == {(1970, "crystals"), (1970, "bands")}


def test_lists_follow_their_scores_and_know_what_was_found(finished: Workspace):
    lists = finished.read_table(LISTS)
    assert lists.schema.equals(TIME_MACHINE_LISTS)
    chosen = [r for r in lists.to_pylist() if (r["year"], r["inputs"], r["model"]) == (1970, "crystals", "S2SNet")]
    scores = [row["score"] for row in chosen]
    assert scores == sorted(scores, reverse=True)
    found = {row["formula"]: row["year_found"] for row in chosen if row["year_found"]}
    assert found.items() <= {"NbC": 1972, "TiN": 1975, "TaC": 1983, "MoC": 1985, "YS": 1991}.items()
    hits = sum(row["year_found"] is not None for row in chosen[:2])
    judged = finished.read_table(OUTPUT).to_pylist()
    assert hits == next(
        r["hits"]
        for r in judged
        if (r["year"], r["inputs"], r["model"], r["pool"], r["top"]) == (1970, "crystals", "S2SNet", "all", 2)
    )


def test_parts_are_kept_and_other_settings_name_other_parts(finished: Workspace):
    plan = make_plan(finished, SETTINGS)
    assert all(finished.exists(part.file) for part in plan.parts)
    longer = make_plan(finished, SETTINGS.model_copy(update={"epochs": 2}))
    kept = {part.name: finished.exists(part.file) for part in longer.parts}
    assert kept["1970-crystals-baselines"]
    assert not kept["1970-s2snet"]


def test_the_page_speaks_of_networks_and_of_the_best_baseline(finished: Workspace):
    found = read_time_machine(finished)
    assert [lists.inputs for lists in found.tables] == ["crystals", "bands"]
    assert found.tables[0].rows[0].model == "S2SNet"
    assert found.tables[1].rows[0].model == BOTH
    assert "where a draw by lot finds" in found.verdicts[0]
    assert "baselines, " in found.verdicts[0]
    section = time_machine_section(finished)
    assert section["run"]
    assert section["figure"]["url"].startswith("data:image/svg+xml")


def test_a_screening_takes_it_along_to_its_collection(finished: Workspace, screened: Workspace, tmp_path: Path):
    place = Workspace(tmp_path / "c")
    settings, grid, nothing = ScreeningSettings(), GridSettings(), Plan(chunks=())
    keep_best(screened, place, nothing, settings, grid)
    assert not time_machine_section(place)["run"]
    keep_best(finished, place, nothing, settings, grid)
    assert read_time_machine(place) == read_time_machine(finished)
    assert time_machine_section(place)["run"]
    assert [stage.stage for stage in read_stages(place)] == ["time-machine"]
    assert check_workspace(place) == []
    place.write_bytes(OUTPUT, b"cut short")
    keep_best(finished, place, nothing, settings, grid)
    assert check_workspace(place) == []


def test_a_workspace_without_it_has_no_section(screened: Workspace):
    assert read_time_machine(screened) is None
