"""Grids of the Materials Project's table: the real command on a real S3 server, killed and run again; which rows."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks import mp_grids
from tasks.events import subscribe
from tasks.exceptions import InputError
from tasks.grid_sources import collection
from tasks.grids import make_grid
from tasks.mp_bands import PUBLIC_TABLE, read_mp_bands
from tasks.mp_grids import as_tables, list_rows, make_table_chunk, plan_table
from tasks.mp_identifiers import table_identifier
from tasks.settings import GridSettings, MpBandSettings
from tasks.shards import read_grids, read_records
from tasks.workspace import Workspace
from tests.postgres import free_port
from tests.tasks.test_mp_bands import CRYSTALS, SCHEMA, plane_waves, write_table

MEISSNER = Path(sys.executable).with_name("meissner")
SETTINGS = GridSettings(mesh=8, chunk=4)
ANY = MpBandSettings()
HTTP = {"storage_options": {"AWS_ALLOW_HTTP": "true"}}


@pytest.fixture(scope="module")
def rows():
    return {name: plane_waves(name, *crystal) for name, crystal in CRYSTALS.items()}


def many(row, numbers):
    """The same bands under many names, each with a Fermi level of its own."""
    return [
        {**row, "identifier": table_identifier(str(number)), "efermi": row["efermi"] + number / 1000}
        for number in numbers
    ]


@pytest.fixture
def place(tmp_path):
    return collection(Workspace(tmp_path / "w"), "c")


def command(url, workspace, *options):
    return [str(MEISSNER), "grid", f"mp:{url}", "--collection", "c", "--workspace", str(workspace), *options]


@pytest.fixture
def environment():
    """Small shards; the variables of the S3 server are set before."""
    small = {"MEISSNER_GRID__MESH": "24", "MEISSNER_GRID__CHUNK": "4", "MEISSNER_WORKERS": "1", "COLUMNS": "250"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_HOME")}
    return kept | small


@pytest.mark.slow  # two commands, each with a Prefect server
def test_killed_command_goes_on_and_then_nothing_is_left(s3_server, rows, tmp_path, environment, place):
    url = f"{s3_server('parsed')}/core/bandstructures"
    titanium = many(rows["mp-72"], range(100))
    bad = {**titanium[0], "identifier": "ragged", "spin_up_bands": [[1.0], [1.0, 2.0]]}
    lines = {**titanium[1], "path_convention": "hinuma"}
    for part in (titanium[:40], [*titanium[40:], bad, titanium[0], lines]):
        write_table(url, part, mode="append", **HTTP)
    started = command(url, tmp_path / "w", "--max-gap", "0.1")
    running = subprocess.Popen(started, env=environment, start_new_session=True)
    records = tmp_path / "w/collections/c/grids/shards"
    deadline = time.monotonic() + 120
    while len(list(records.glob("*.json"))) < 3:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = {path.name: path.read_bytes() for path in records.glob("*.json")}
    assert 3 <= len(before) < 26, "killed before its last shard"
    assert not place.exists("grids/index.parquet")
    times = {name: (records / name).stat().st_mtime_ns for name in before}

    ended = subprocess.run(started, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "100 grids, 2 refused" in ended.stdout
    assert times == {name: (records / name).stat().st_mtime_ns for name in before}
    refused = pq.read_table(place.local("stages/grid/rejected.parquet")).to_pylist()
    assert {row["item"]: row["reason"].split(": ")[1].split(",")[0] for row in refused} == {
        "ragged": "spin_up_bands is not a rectangular table of numbers",
        "aaaaaaaa": "the table holds aaaaaaaa more than once; its first row counts",
    }
    index, grids = read_grids(place)
    assert index["material_id"].to_pylist() == sorted(row["identifier"] for row in titanium)
    assert set(index["formula"].to_pylist()) == {"Ti"}
    bands = {one.material_id: one for batch in read_mp_bands(url, max_gap_ev=0.1) for one in batch.bands}
    for row in (0, 57, 99):
        name = index["material_id"][row].as_py()
        assert np.array_equal(grids[row], make_grid(bands[name], GridSettings(mesh=24)).energies)

    settings = GridSettings(mesh=24, chunk=4)
    assert plan_table(place, url, settings, MpBandSettings(max_gap_ev=0.1)).chunks == []


def test_rows_are_chosen_by_gap_elements_names_and_number(tmp_path, rows):
    gaps = {"mp-30": 0.0, "mp-72": 0.15, "mp-131": None}
    alloy = {**rows["mp-30"], "identifier": table_identifier("mp-9"), "band_gap": 0.05}
    alloy["structure"] = {
        **alloy["structure"],
        "sites": [
            {**alloy["structure"]["sites"][0], "species": [{"element": one, "occu": 1}]} for one in ("Nb", "Ti", "Ti")
        ],
    }
    empty = {**alloy, "identifier": "nostructure", "structure": None}
    url = write_table(str(tmp_path / "t"), [*({**rows[name], "band_gap": gap} for name, gap in gaps.items()), alloy])
    write_table(url, [empty], mode="append")
    file = tmp_path / "ids.txt"
    file.write_text("mp-72\naaaaaaaj\n\nmp-404\n")

    def listed(**choice):
        items, refused = list_rows(url, MpBandSettings(**choice))
        return {item.material_id for item in items}, [one.reason.split(" has ")[1] for one in refused]

    cu, ti, po, nbti = map(table_identifier, ("mp-30", "mp-72", "mp-131", "mp-9"))
    assert listed() == ({cu, ti, po, nbti, "nostructure"}, [])
    assert listed(max_gap_ev=0.1) == ({cu, po, nbti, "nostructure"}, [])
    assert listed(elements=("Ti",)) == ({ti, nbti}, [])
    assert listed(elements=("Nb", "Ti")) == ({nbti}, [])
    assert len(listed(limit=2)[0]) == 2
    missing = "no run of mp-404 (aaaaaapo)"
    assert listed(ids=str(file)) == ({"mp-72", "aaaaaaaj"}, [missing])
    large = "a gap of 0.150 eV for mp-72 (aaaaaacu), above the limit of 0.1 eV"
    assert listed(ids=str(file), max_gap_ev=0.1) == ({"aaaaaaaj"}, [large, missing])
    other = "a uniform run of mp-72 (aaaaaacu), which the other choices (elements, since) leave out"
    assert listed(ids=str(file), elements=("Nb",)) == ({"aaaaaaaj"}, [other, missing])
    without, with_metals = sorted((tmp_path / "t").glob("*.parquet"), key=lambda part: part.stat().st_size)
    without.write_bytes(b"cut short")  # by the table's statistics it holds "nostructure" alone
    assert listed(ids=str(file))[1][-1] == missing
    with_metals.write_bytes(b"cut short")
    assert listed(ids=str(file))[1][-1] == f"{missing} in what can be read of it"
    with pytest.raises(InputError, match=r"\['Xx'\] of mp_bands.elements are no chemical symbols"):
        listed(elements=("Nb", "Xx"))


def test_structures_as_text_tell_their_elements(tmp_path, rows):
    import json

    import pyarrow as pa
    from deltalake import write_deltalake

    table = pa.Table.from_pylist(list(rows.values()), schema=SCHEMA)
    for text in (json.dumps, lambda structure: json.dumps(structure, separators=(",", ":"))):
        texts = pa.array([text(row["structure"]) for row in rows.values()])
        place = SCHEMA.names.index("structure")
        write_deltalake(str(tmp_path), table.set_column(place, "structure", texts), mode="overwrite")
        items, _ = list_rows(str(tmp_path), MpBandSettings(elements=("Ti",)))
        assert [item.material_id for item in items] == [table_identifier("mp-72")]


def test_row_groups_are_read_once_and_shards_keep_to_a_task(tmp_path, rows, place, monkeypatch):
    monkeypatch.setattr(mp_grids, "TASK_ROWS", (8, 10))
    (tmp_path / "t").mkdir()
    table = write_table(str(tmp_path / "delta"), many(rows["mp-131"], range(40)))
    whole = pq.read_table(next(Path(table).glob("*.parquet")))
    pq.write_table(whole.slice(0, 15), tmp_path / "t/a.parquet", row_group_size=3)  # five row groups
    pq.write_table(whole.slice(15), tmp_path / "t/b.parquet", row_group_size=25)
    plan = plan_table(place, str(tmp_path / "t"), SETTINGS, ANY)
    sizes = [[len(shard.items) for shard in chunk.shards] for chunk in plan.chunks]
    assert sizes == [[4, 4, 1], [4, 4, 4, 4], [4, 4, 2], [4, 1]]
    assert plan.missing == 40
    for chunk in plan.chunks:
        make_table_chunk(place, chunk, SETTINGS)
    slots = [slot for record in read_records(place) for slot in record.slots]
    assert [slot.material_id for slot in slots] == [table_identifier(str(number)) for number in range(40)]
    assert plan_table(place, str(tmp_path / "t"), SETTINGS, ANY).chunks == []
    assert plan_table(place, table, SETTINGS, ANY).chunks == []  # the same rows in other files
    limited = plan_table(place, table, SETTINGS, MpBandSettings(limit=7))
    assert (len(limited.items), limited.missing) == (7, 0)


def test_names_of_the_source():
    assert as_tables(["runs/", "mp", "mp:s3://mine/bands/", "mp"]) == (("runs/",), (PUBLIC_TABLE, "s3://mine/bands"))


@pytest.mark.usefixtures("prefect_harness")
def test_a_server_that_comes_back_is_asked_again(s3_server, rows, tmp_path, monkeypatch):
    from moto.server import ThreadedMotoServer

    from flows.grids import grid_source

    monkeypatch.setattr(mp_grids, "TASK_ROWS", (4, 4))
    url = f"{s3_server('late')}/bands"
    write_table(url, many(rows["mp-131"], range(12)), **HTTP)
    port = free_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)  # with the same buckets
    threading.Timer(3.0, server.start).start()
    events = []
    with subscribe(events.append):
        report = grid_source(str(tmp_path), (f"mp:{url}",), "c", SETTINGS)
    server.stop()
    assert report.counts["grids"] == 12
    assert [event.done for event in events if event.total == 12] == [0, 4, 8, 12]


def test_choices_without_the_table_are_refused(tmp_path):
    from typer.testing import CliRunner

    from flows.cli import app

    result = CliRunner().invoke(app, ["grid", str(tmp_path), "--limit", "3", "--workspace", str(tmp_path)])
    assert "choose rows of the Materials Project's table" in str(result.exception)
