"""Screening of tables: the flow on a real S3 server that fails now and then, damaged files, kills, the report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tasks.bands import BUNDLED_TABLE
from tasks.events import subscribe
from tasks.exceptions import InputError, RemoteError
from tasks.grid_sources import collection
from tasks.grids import make_grid
from tasks.mp_bands import read_mp_bands
from tasks.mp_grids import list_rows
from tasks.mp_identifiers import table_identifier
from tasks.report import build_report
from tasks.report_data import read_scores
from tasks.screening import RESULT, join_parts, missing_chunks, plan_screening, screening_place
from tasks.screening_chunks import open_networks, screen_materials, screen_to_part
from tasks.screening_kept import KEPT, keep_best, read_source_rows
from tasks.settings import ClusterSettings, GridSettings, MpBandSettings, ReportSettings, ScreeningSettings
from tasks.shards import read_grids
from tasks.workspace import Workspace
from tests.tasks.faulty_s3 import faulty
from tests.tasks.test_mp_bands import CRYSTALS, SCHEMA, plane_waves, write_table
from tests.tasks.test_mp_grids import HTTP, many

MEISSNER = Path(sys.executable).with_name("meissner")
SMALL = GridSettings(mesh=8)  # as much as the small network takes
SETTINGS = ScreeningSettings(chunk=4, best=0)


@pytest.fixture(scope="module")
def rows():
    return {name: plane_waves(name, *crystal) for name, crystal in CRYSTALS.items()}


@pytest.fixture
def home(screened: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(screened.local("."), tmp_path / "w")
    return Workspace(tmp_path / "w")


@pytest.fixture
def place(home: Workspace) -> Workspace:
    return collection(home, "c")


def screened_rows(home, place, plan, settings=SETTINGS, grid=SMALL):
    for chunk in plan.chunks:
        screen_to_part(home, chunk, settings, place, grid)
    join_parts(place, plan, settings)
    refused = place.read_table("stages/screen/rejected.parquet").to_pylist()
    return place.read_table(RESULT).to_pylist(), {row["item"]: row for row in refused}


def names(numbers):
    return [table_identifier(str(number)) for number in numbers]


@pytest.mark.usefixtures("prefect_harness")
def test_a_table_is_screened_and_the_report_is_made_in_its_collection(home: Workspace, rows, tmp_path: Path):
    from flows.screening import screen

    table = str(tmp_path / "table")
    metals = many(rows["mp-131"], range(1, 6))
    bad = {**metals[0], "identifier": "aaragged", "spin_up_bands": [[1.0], [1.0, 2.0]]}
    write_table(table, [*metals, bad, {**metals[0], "identifier": "lines", "path_convention": "hinuma"}])
    settings = ScreeningSettings(best=2, kept=1, max_distance=9.0, ids=str(tmp_path / "ids"))
    (tmp_path / "ids").write_text("\n".join([*names(range(1, 6)), "aaragged", "mp-404"]))
    events = []
    with subscribe(events.append), pytest.raises(Exception, match="2 of 7 materials were refused"):
        screen(home.url, settings, (f"mp:{table}",))
    assert [(event.done, event.total) for event in events if event.stage == "screen" and event.total == 6] == [
        (0, 6), (0, 6), (6, 6)
    ]  # fmt: skip
    place = screening_place(home, [f"mp:{table}"], None, settings)
    assert place.url.endswith("collections/screen-mp")
    found = place.read_table(RESULT).to_pylist()
    assert sorted(row["material_id"] for row in found) == sorted(names(range(1, 6)))
    assert [row["images"] for row in found] == [24, 24, 1, 1, 1]
    assert {(row["formula"], row["space_group"], row["hazards"][0]) for row in found} == {
        ("Po", "Pm-3m", "radioactive: Po")
    }
    refused = {row["item"]: row["reason"] for row in place.read_table("stages/screen/rejected.parquet").to_pylist()}
    assert "has no run of mp-404" in refused["mp-404"]
    assert "spin_up_bands is not a rectangular table" in refused["aaragged"]

    top = found[0]["material_id"]
    index, grids = read_grids(place)
    assert index["material_id"].to_pylist() == [top]
    bands = next(one for batch in read_mp_bands(table) for one in batch.bands if one.material_id == top)
    assert (grids[0] == make_grid(bands, GridSettings()).energies).all()
    files = build_report(place, ReportSettings(top=1))
    page, chain = files["report/index.html"].decode(), json.loads(files["report/provenance.json"])[top]
    assert list(chain) == ["source row", "structure", "bands", "grid", "split", "weights", "code"]
    source = chain["source row"]
    assert (source["table"], source["row_group"]) == (table, 0)
    assert pq.read_table(f"{table}/{Path(source['file']).name}")["identifier"][source["row"]].as_py() == top
    assert "<b>source row</b>" in page
    assert chain["bands"]["engine"] == "Materials Project"
    assert chain["bands"]["engine_version"] == f"table listed {source['listed']}"
    assert "seconds" not in chain["bands"]
    assert "could not be drawn" not in page
    number = 1 + names(range(1, 6)).index(top)
    assert f'<a href="https://materialsproject.org/materials/mp-{number}" rel="noopener noreferrer">{top}</a>' in page
    assert f">mp-{number} at the Materials Project</a>" in page
    assert f">{len(set(read_scores(home, 'bnas').predictions['material_id'].to_pylist()))}<" in page  # trained on

    before, kept = (place.local(name).stat().st_mtime_ns for name in (RESULT, KEPT))
    with pytest.raises(Exception, match="2 of 7"):
        screen(home.url, settings, (f"mp:{table}",))
    report = screen(home.url, settings.model_copy(update={"max_refused_share": 0.5}), (f"mp:{table}",))
    assert report.rows_refused == 2
    assert place.local(RESULT).stat().st_mtime_ns >= before
    assert place.local(KEPT).stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="holds grids already; screen them by --collection alone"):
        place.remove(KEPT)
        screening_place(home, [f"mp:{table}"], None, settings)


def test_damaged_files_and_row_groups_are_refused_and_the_rest_goes_on(home, place, rows, tmp_path: Path):
    whole = pa.Table.from_pylist(many(rows["mp-131"], range(12)), schema=SCHEMA)
    (tmp_path / "t").mkdir()
    pq.write_table(whole, tmp_path / "t/a.parquet", row_group_size=4)
    group = pq.ParquetFile(tmp_path / "t/a.parquet").metadata.row_group(1)
    bands = next(
        group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith("spin_up_bands")
    )
    data = bytearray((tmp_path / "t/a.parquet").read_bytes())
    start = bands.dictionary_page_offset or bands.data_page_offset
    data[start : start + bands.total_compressed_size] = b"\xff" * bands.total_compressed_size
    (tmp_path / "t/a.parquet").write_bytes(data)
    (tmp_path / "t/b.parquet").write_bytes((tmp_path / "t/a.parquet").read_bytes()[:-1000])
    plan = plan_screening(home, SETTINGS, place, [f"mp:{tmp_path / 't'}"])
    found, refused = screened_rows(home, place, plan)
    assert sorted(row["material_id"] for row in found) == names([*range(4), *range(8, 12)])
    (file,) = (item for item in refused if item.endswith("b.parquet"))
    assert "damaged" in refused.pop(file)["reason"]
    assert sorted(refused) == names(range(4, 8))
    assert all("row group 1 of" in row["reason"] for row in refused.values())


def test_a_server_that_fails_in_passing_costs_nothing_and_one_that_goes_on_only_its_rows(
    home, place, rows, s3_server, s3_endpoint, monkeypatch
):
    url = f"{s3_server('faults')}/bands"
    for numbers in (range(4), range(4, 8)):
        write_table(url, many(rows["mp-131"], numbers), mode="append", **HTTP)
    with faulty(s3_endpoint) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        faults.add("_delta_log", "503", 1)
        plan = plan_screening(home, SETTINGS, place, [f"mp:{url}"])
        second = plan.chunks[1]
        faults.add(".parquet", "503", 1)
        faults.add(".parquet", "reset", 1)
        assert screen_to_part(home, plan.chunks[0], SETTINGS, place, SMALL) == 0
        assert [what for what, _ in faults.seen] == ["503", "503", "reset"]
        faults.add(second.items[0].url.rpartition("/")[2], "503", 1000)
        with pytest.raises(RemoteError, match="does not answer"):
            screen_to_part(home, second, SETTINGS, place, SMALL)
        assert screen_to_part(home, second, SETTINGS, place, SMALL, last=True) == 4
        assert missing_chunks(place, plan.chunks) == [second]
        faults.plans.clear()
        assert screen_to_part(home, second, SETTINGS, place, SMALL) == 0
    assert missing_chunks(place, plan.chunks) == []


def test_elements_and_dates_choose_rows(rows, tmp_path: Path):
    def listed(table, *any_of, since=None):
        items, _ = list_rows(table, MpBandSettings(since=since), any_of)
        return {item.material_id for item in items}

    today = datetime.now(UTC).date()
    table = write_table(str(tmp_path / "t"), rows.values())
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    ids = {crystal[2]: table_identifier(name) for name, crystal in CRYSTALS.items()}
    assert listed(table, "Cu", "Ti", "Nb") == {ids["Cu"], ids["Ti"]}
    assert listed(table, since=today) == set(ids.values())
    assert listed(table, since=tomorrow) == set()
    dated = pa.Table.from_pylist(list(rows.values()), schema=SCHEMA)
    times = pa.array([datetime(2020 + place, 1, 1, tzinfo=UTC) for place in range(3)], pa.timestamp("us", "UTC"))
    told = dated.append_column("last_updated", times).append_column("theoretical", pa.array([True, False, None]))
    write_deltalake(str(tmp_path / "d"), told.append_column("energy_above_hull", pa.array([0.0, 0.1, None])))
    assert listed(str(tmp_path / "d"), since=date(2021, 1, 1)) == {ids["Ti"], ids["Po"]}
    facts = [(i.theoretical, i.energy_above_hull_ev) for i in list_rows(str(tmp_path / "d"), MpBandSettings())[0]]
    assert facts == [(True, 0.0), (False, 0.1), (None, None)]
    (tmp_path / "p").mkdir()
    pq.write_table(dated, tmp_path / "p/a.parquet")
    with pytest.raises(InputError, match="does not tell when its rows changed"):
        listed(str(tmp_path / "p"), since=today)


def test_what_a_table_tells_reaches_the_candidates_and_trained_formulas_are_named(home, place, rows, tmp_path: Path):
    table = pa.Table.from_pylist([rows["mp-131"], rows["mp-30"]], schema=SCHEMA)
    told = table.append_column("theoretical", pa.array([True, None]))
    write_deltalake(str(tmp_path / "t"), told.append_column("energy_above_hull", pa.array([0.25, None])))
    plan = plan_screening(home, SETTINGS, place, [f"mp:{tmp_path / 't'}"])
    found = {row["formula"]: row for row in screened_rows(home, place, plan)[0]}
    assert (found["Po"]["theoretical"], found["Po"]["energy_above_hull_ev"]) == (True, 0.25)
    assert (found["Cu"]["theoretical"], found["Cu"]["energy_above_hull_ev"]) == (None, None)
    asked = open_networks(home, SETTINGS)
    for own, origin in ((True, "ensemble"), (False, "in-sample")):
        assert asked.origin("bnas", {"material_id": "other", "formula": "NbN"}, own=own) == origin


def test_files_of_bands_are_screened(home, place, shared_data):
    source = str(shared_data / "vasp" / "MgB2" / "vasprun.xml.gz")
    far = ScreeningSettings(max_distance=99)
    plan = plan_screening(home, far, place, [source])
    (row,), refused = screened_rows(home, place, plan, far, GridSettings())
    assert not refused
    assert (row["formula"], row["space_group"], row["images"]) == ("MgB2", "P6/mmm", 24)
    assert keep_best(home, place, plan, ScreeningSettings(kept=0), GridSettings()) == 0
    assert keep_best(home, place, plan, ScreeningSettings(kept=1), GridSettings()) == 1
    assert read_source_rows(place) == {row["material_id"]: {"file": source, "kind": "vasprun"}}
    (bands,) = place.read_table(BUNDLED_TABLE, ["engine", "engine_version"]).to_pylist()
    assert bands == {"engine": "not calculated here (vasprun)", "engine_version": "unknown"}
    with pytest.raises(InputError, match="choose rows of a table or grids"):
        plan_screening(home, ScreeningSettings(elements=("Mg",)), place, [source])


def test_batches_give_what_single_materials_give(home, place, rows, tmp_path: Path):
    write_table(str(tmp_path / "t"), [*many(rows["mp-131"], range(3)), rows["mp-30"], rows["mp-72"]])
    together = plan_screening(home, ScreeningSettings(), place, [f"mp:{tmp_path / 't'}"])
    alone = plan_screening(home, ScreeningSettings(chunk=1), place, [f"mp:{tmp_path / 't'}"])
    assert (len(together.chunks), len(alone.chunks)) == (1, 5)
    batch = screen_materials(home, together.chunks[0], ScreeningSettings(), place, SMALL)[0]
    single = [screen_materials(home, chunk, ScreeningSettings(), place, SMALL)[0] for chunk in alone.chunks]
    for one, other in zip(batch.to_pylist(), pa.concat_tables(single).to_pylist(), strict=True):
        assert {name: other[name] if not isinstance(other[name], float) else 0 for name in other} == {
            name: one[name] if not isinstance(one[name], float) else 0 for name in one
        }
        floats = [name for name in one if isinstance(one[name], float)]
        assert [one[name] for name in floats] == pytest.approx([other[name] for name in floats], rel=1e-4, abs=1e-4)


@pytest.mark.slow  # five commands, each with a Prefect server
@pytest.mark.timeout(1500)
def test_a_command_killed_three_times_ends_with_the_same_bytes(home: Workspace, rows, tmp_path: Path):
    table = str(tmp_path / "table")
    for start in range(0, 60, 20):
        write_table(table, many(rows["mp-72"], range(start, start + 20)), mode="append")
    environment = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    environment |= {"MEISSNER_GRID__MESH": "24", "MEISSNER_WORKERS": "1", "COLUMNS": "250"}
    shutil.copytree(home.local("."), tmp_path / "calm")

    def command(workspace):
        options = ["--chunk", "3", "--best", "6", "--workspace", str(workspace)]
        return [str(MEISSNER), "screen", f"mp:{table}", *options]

    parts = home.local("collections/screen-mp/candidates/parts")
    for kill in range(1, 4):
        running = subprocess.Popen(command(home.url), env=environment, start_new_session=True)
        deadline = time.monotonic() + 180
        while len(list(parts.glob("*.json"))) < 2 * kill:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    whole = [path for path in parts.glob("*.parquet") if not path.name.endswith("-rejected.parquet")]
    there = {path.name: path.stat().st_mtime_ns for path in whole}
    assert 3 <= len(there) < 20  # a kill may have come between a part's first file and its last
    for workspace in (home.url, tmp_path / "calm"):
        ended = subprocess.run(command(workspace), env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    assert there == {name: (parts / name).stat().st_mtime_ns for name in there}
    results = [Path(w, "collections/screen-mp", RESULT).read_bytes() for w in (home.url, tmp_path / "calm")]
    assert results[0] == results[1]
    assert pq.read_table(pa.BufferReader(results[0])).num_rows == 60


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness")
def test_processes_and_slurm_jobs_give_the_same_bytes(home: Workspace, rows, slurm, tmp_path: Path, monkeypatch):
    from flows.screening import screen

    monkeypatch.setattr("flows.screening.WORTH_A_PROCESS", 20)
    table = str(tmp_path / "table")
    write_table(table, many(rows["mp-72"], range(90)))
    settings = ScreeningSettings(chunk=15, best=6, kept=1)
    jobs = ClusterSettings(
        kind="slurm", jobs=2, memory="2GiB", interface="lo", wall_time="00:20:00", logs=str(tmp_path / "logs")
    )
    results = {}
    for name, options in {"one": {}, "processes": {"processes": 2}, "slurm": {"cluster": jobs}}.items():
        shutil.copytree(home.local("."), tmp_path / name)
        screen(str(tmp_path / name), settings, (f"mp:{table}",), grid=SMALL, **options)
        results[name] = (tmp_path / name / "collections/screen-mp" / RESULT).read_bytes()
    assert len(set(results.values())) == 1
    assert pq.read_table(pa.BufferReader(results["slurm"])).num_rows == 90
    assert len(list((tmp_path / "logs").iterdir())) >= 2, "each job wrote to its own file"
