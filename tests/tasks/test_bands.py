"""Stage "bands": adoption, choice, storing, failures, and reading, with an engine of free electrons."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobflow import Flow, JobStore, Maker, job, run_locally
from maggma.stores import MemoryStore
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks import bands
from tasks.bands import adopt_bands, forget_failures, plan_calculations, prepare_calculations, read_bands
from tasks.crystals import structure_hash, structure_to_json
from tasks.engines import Availability, PassingEngineError
from tasks.engines.document import band_row, hash_bands
from tasks.exceptions import EngineError, InputError
from tasks.schemas import BANDS, ORDERED
from tasks.settings import BandSettings
from tasks.workspace import Workspace

CELLS = {
    "Al-225": Structure(Lattice.from_parameters(2.8635, 2.8635, 2.8635, 60, 60, 60), ["Al"], [[0, 0, 0]]),
    "Nb-229": Structure(Lattice.cubic(3.3), ["Nb"], [[0, 0, 0]]),
    "CsCl/BeCu": Structure(Lattice.cubic(2.7), ["Be", "Cu"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "TiAl": Structure(Lattice.cubic(3.2), ["Ti", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "row": Structure(Lattice.orthorhombic(3, 3, 30), ["Pb"] * 10, [[0, 0, z / 10] for z in range(10)]),
}
KPOINTS = [[x / 4, y / 4, z / 4] for x in range(4) for y in range(4) for z in range(4)]


@dataclass
class FreeElectrons(Maker):
    """An engine that answers at once: plane waves of the empty lattice."""

    name: str = "free electrons"
    version: str = "1"
    settings_json: str = '{"bands": 18}'
    reason: str = ""
    failing: str = ""  # "Nb-229: message": that material's calculation fails

    def available(self):
        return Availability(not self.reason, self.reason)

    def make(self, structure, material_id):
        if "Be" in structure.composition and self.failing == "refuse Be":
            raise EngineError("free electrons: no PAW data set for Be")
        calculated = calculate(structure, material_id, self)
        calculated.metadata = {"material_id": material_id, "formula": structure.composition.reduced_formula}
        return Flow([calculated], output=calculated.output)


@job
def calculate(structure, material_id, engine):
    if engine.failing.startswith(f"{material_id}:"):
        kind = PassingEngineError if "killed" in engine.failing else EngineError
        raise kind(engine.failing.split(": ")[1])
    waves = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    vectors = (np.array(KPOINTS)[:, None] + waves) @ structure.lattice.reciprocal_lattice.matrix
    energies = np.sort(3.81 * (vectors**2).sum(axis=2), axis=1)[:, :18].T.round(5)
    result = {
        "kpoints": KPOINTS,
        "weights": [1 / 64] * 64,
        "grid": [4, 4, 4],
        "energies": [energies.tolist()],
        "efermi": float(np.median(energies)),
        "band_gap_ev": 0.0,
        "seconds": 0.1,
    }
    return band_row(structure, material_id, engine, result)


def ordered_row(material_id, structure):
    return {
        "material_id": material_id,
        "parent_id": material_id,
        "formula": structure.composition.reduced_formula,
        "space_group": "P1",
        "sites": len(structure),
        "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "composition_error": 0.0,
        "structure_hash": structure_hash(structure),
        "structure": structure_to_json(structure),
    }


def write_ordered(workspace, cells=CELLS):
    rows = [ordered_row(name, cell) for name, cell in cells.items()]
    workspace.write_table(bands.ORDERED_TABLE, pa.Table.from_pylist(rows, schema=ORDERED))


@pytest.fixture
def workspace(tmp_path):
    place = Workspace(tmp_path / "w")
    write_ordered(place)
    return place


def make_row(name, engine=None):
    return calculate.original(CELLS[name], name, engine or FreeElectrons())


def write_bundle(path, rows):
    pq.write_table(pa.Table.from_pylist(rows, schema=BANDS), path)
    return path


def run(workspace, settings, engine=None):
    """Plan, calculate and finish without Prefect; gives the plan and the stage's report."""
    engine = engine or FreeElectrons()
    plan = plan_calculations(workspace, settings, engine)
    flow, on_finish = prepare_calculations(workspace, plan.materials, engine)
    if flow.jobs:
        responses = run_locally(flow, store=JobStore(MemoryStore()), log=False)
        for one in (each for inner in flow.jobs for each in _jobs(inner)):
            failed = one.uuid not in responses and one.name == "calculate"
            on_finish(one, _error_of(engine) if failed else None)
    return plan, bands.finish(workspace, settings, plan)


def _jobs(flow):
    return [flow] if not isinstance(flow, Flow) else [each for inner in flow.jobs for each in _jobs(inner)]


def _error_of(engine):
    kind = PassingEngineError if "killed" in engine.failing else EngineError
    return kind(engine.failing.split(": ")[1])


def test_bundled_bands_serve_every_material_with_the_same_structure(workspace, tmp_path):
    write_ordered(workspace, {**CELLS, "Al-225~Al": CELLS["Al-225"].copy()})
    bundled = write_bundle(tmp_path / "b.parquet", [{**make_row("Al-225"), "material_id": "another name"}])
    assert adopt_bands(workspace, bundled) == 2
    table = read_bands(workspace)
    assert table["material_id"].to_pylist() == ["Al-225", "Al-225~Al"]
    assert len(set(table["bands_hash"].to_pylist())) == 1
    assert table.schema == BANDS


def test_bundled_bands_of_another_structure_are_not_adopted(workspace, tmp_path):
    stretched = CELLS["Al-225"].copy()
    stretched.scale_lattice(stretched.volume * 1.01)
    row = calculate.original(stretched, "Al-225", FreeElectrons())
    assert adopt_bands(workspace, write_bundle(tmp_path / "b.parquet", [row])) == 0
    assert read_bands(workspace).num_rows == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "are not there", id="missing"),
        pytest.param(b"no parquet", "no readable Parquet file", id="damaged"),
        pytest.param(pa.table({"material_id": ["x"]}), "lack the columns formula", id="columns"),
    ],
)
def test_unusable_bundle_is_said(workspace, tmp_path, content, message):
    path = tmp_path / "b.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)
    with pytest.raises(InputError, match=message):
        adopt_bands(workspace, path)


def test_choice_is_cheapest_first_and_says_why_the_rest_is_left(workspace):
    plan = plan_calculations(workspace, BandSettings(limit=3, max_sites=8), FreeElectrons())
    assert plan.materials == ("Al-225", "Nb-229", "CsCl/BeCu")
    reasons = {refusal.item: refusal.reason for refusal in plan.refused}
    assert reasons[structure_hash(CELLS["TiAl"])] == "not calculated: limit of 3 new calculations (bands.limit)"
    assert reasons[structure_hash(CELLS["row"])] == "not calculated: 10 sites; at most 8 allowed"


def test_choice_does_not_depend_on_the_order_of_the_table(workspace):
    settings = BandSettings(limit=2)
    first = plan_calculations(workspace, settings, FreeElectrons())
    write_ordered(workspace, dict(reversed(CELLS.items())))
    assert plan_calculations(workspace, settings, FreeElectrons()).materials == first.materials


def test_equal_structures_are_calculated_once(workspace):
    write_ordered(workspace, {"b": CELLS["Al-225"], "a": CELLS["Al-225"].copy()})
    _, report = run(workspace, BandSettings())
    assert report.counts["bands"] == 2
    assert workspace.list("bands/*.parquet") == ["bands/a.parquet"]


def test_a_second_run_calculates_nothing_and_reuses_the_stage(workspace):
    settings = BandSettings(limit=2)
    run(workspace, settings)
    plan, report = run(workspace, settings)
    assert plan.materials == ()
    assert report.reused


def test_a_run_that_was_stopped_goes_on_with_the_same_materials(workspace):
    settings = BandSettings(limit=3)
    engine = FreeElectrons()
    flow, _ = prepare_calculations(workspace, ["Al-225"], engine)
    run_locally(flow, store=JobStore(MemoryStore()), log=False)
    plan, report = run(workspace, settings)
    assert plan.materials == ("Nb-229", "CsCl/BeCu")
    assert report.counts == {"bands": 3, "bundled": 0, "calculated": 3}


def test_other_settings_of_the_engine_calculate_again(workspace):
    settings = BandSettings(limit=1)
    run(workspace, settings)
    other = FreeElectrons(settings_json='{"bands": 30}')
    plan, _ = run(workspace, settings, other)
    assert plan.materials == ("Al-225",)
    assert read_bands(workspace, ["engine_settings"]).to_pylist() == [{"engine_settings": '{"bands": 30}'}]


@pytest.mark.parametrize(
    ("failing", "again"),
    [
        pytest.param("Nb-229: did not converge", False, id="for good"),
        pytest.param("Nb-229: killed", True, id="passing"),
    ],
)
def test_a_failure_is_refused_with_its_reason_and_the_rest_goes_on(workspace, failing, again):
    _, report = run(workspace, BandSettings(), FreeElectrons(failing=failing))
    rejected = workspace.read_table("stages/bands/rejected.parquet").to_pylist()
    assert {"item": "Nb-229", "stage": "bands", "reason": failing.split(": ")[1], "retryable": again} in rejected
    assert report.rows_in == 5
    assert report.counts["bands"] == 3
    plan, later = run(workspace, BandSettings())
    assert plan.materials == (("Nb-229",) if again else ())
    assert later.counts["bands"] == (4 if again else 3)


def test_failures_are_forgotten_by_kind_or_by_words(workspace):
    run(workspace, BandSettings(), FreeElectrons(failing="Nb-229: did not converge"))
    assert forget_failures(workspace) == 0, "it failed for good"
    assert forget_failures(workspace, "memory") == 0
    assert forget_failures(workspace, "Converge") == 1
    plan, report = run(workspace, BandSettings())
    assert plan.materials == ("Nb-229",)
    assert report.counts["bands"] == 4


def test_a_crystal_that_the_engine_refuses_is_refused_with_its_reason(workspace):
    run(workspace, BandSettings(), FreeElectrons(failing="refuse Be"))
    rejected = {row["item"]: row for row in workspace.read_table("stages/bands/rejected.parquet").to_pylist()}
    assert rejected["CsCl/BeCu"]["reason"] == "free electrons: no PAW data set for Be"
    assert not rejected["CsCl/BeCu"]["retryable"]


@pytest.mark.parametrize(
    ("settings", "engine", "message"),
    [
        pytest.param(BandSettings(engine="none"), FreeElectrons(), "no engine is chosen", id="none chosen"),
        pytest.param(
            BandSettings(), FreeElectrons(reason="GPAW is not installed"), "GPAW is not installed", id="absent"
        ),
    ],
)
def test_without_an_engine_the_bundled_bands_remain(workspace, tmp_path, settings, engine, message):
    adopt_bands(workspace, write_bundle(tmp_path / "b.parquet", [make_row("Al-225")]))
    plan, report = run(workspace, settings, engine)
    assert plan.materials == ()
    assert message in plan.no_engine
    assert report.counts == {"bands": 1, "bundled": 1, "calculated": 0}
    assert report.rows_refused == 4


def test_bands_of_crystals_that_are_gone_are_not_read(workspace):
    run(workspace, BandSettings())
    write_ordered(workspace, {"TiAl": CELLS["TiAl"]})
    assert read_bands(workspace, ["material_id"]).to_pylist() == [{"material_id": "TiAl"}]


def test_reading_is_sorted_and_knows_columns(workspace):
    run(workspace, BandSettings())
    table = read_bands(workspace, ["formula", "material_id"])
    assert table.column_names == ["formula", "material_id"]
    assert table["material_id"].to_pylist() == ["Al-225", "CsCl/BeCu", "Nb-229", "TiAl"]
    assert table["formula"].to_pylist() == ["Al", "BeCu", "Nb", "TiAl"]


@pytest.mark.parametrize(
    ("material_id", "expected"),
    [
        pytest.param("mp-763", "mp-763", id="plain"),
        pytest.param("a/b", "a_b-c14cddc0", id="slash"),
        pytest.param("bundled", "bundled-", id="the name of the bundle"),
        pytest.param("../x", "_x-", id="outside"),
    ],
)
def test_safe_names_stay_inside_and_apart(material_id, expected):
    assert bands.safe_name(material_id).startswith(expected)
    assert "/" not in bands.safe_name(material_id)


def test_bands_hash_follows_the_bands_and_not_the_time():
    row, again = make_row("Al-225"), {**make_row("Al-225"), "seconds": 99.0}
    stored = pa.Table.from_pylist([again], schema=BANDS).to_pylist()[0]
    assert row["bands_hash"] == stored["bands_hash"]
    content = structure_hash(CELLS["Al-225"])
    assert hash_bands(content, stored["kpoints"], stored["energies"], stored["efermi"]) == row["bands_hash"]
    moved = np.array(row["energies"]) + 1e-3
    assert hash_bands(content, row["kpoints"], moved, row["efermi"]) != row["bands_hash"]


def test_starter_bundle_is_whole():
    from tasks.settings import STARTER

    path = STARTER / "bands.parquet"
    table = bands.read_bundle(path)
    assert path.stat().st_size < 4_000_000
    assert table.num_rows == len(set(table["structure_hash"].to_pylist()))
    for row in table.to_pylist()[::10]:
        energies = np.array(row["energies"])
        assert energies.shape[1] >= 18
        assert energies.shape[2] == len(row["kpoints"]) == len(row["weights"])
        assert sum(row["weights"]) == pytest.approx(1)
        assert np.isfinite(energies).all()
        assert row["bands_hash"] == hash_bands(row["structure_hash"], row["kpoints"], row["energies"], row["efermi"])
        assert json.loads(row["engine_settings"])["cutoff_ev"] == 400
