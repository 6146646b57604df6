"""Screening: what is chosen, joined, judged and ranked; the same table however it was made; single files."""

import csv
import io
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ase import Atoms
from ase.io import write as ase_write
from ase.io.jsonio import encode
from pymatgen.core import Lattice, Structure
from pymatgen.electronic_structure.bandstructure import BandStructure
from pymatgen.electronic_structure.core import Spin
from rich.console import Console

from flows.display import print_predictions
from models.applicability import TrainingDistance
from models.crystals import crystal_arrays, graph
from models.exceptions import CheckpointError
from models.s2snet_training import predict_logits
from models.splits import composition_key
from tasks.exceptions import InputError, MissingStageError, RefusedError
from tasks.held_out import HeldOut
from tasks.known import KnownSuperconductors, element_amounts, find_hazards
from tasks.prediction import NEEDS_BANDS, NO_ATOMS, Predictor, round_significant
from tasks.s2snet_ensemble import load_s2snet
from tasks.schemas import CANDIDATES, FETCHED_CRYSTALS, ORDERED
from tasks.screening import (
    RESULT,
    check_refused,
    choose_best,
    join_parts,
    missing_chunks,
    plan_screening,
    predict,
    rank_candidates,
    screen_materials,
    screen_to_part,
)
from tasks.settings import ScreeningSettings
from tasks.stages import Rejection, read_report
from tasks.tight_binding import write_wannier90_hr
from tasks.tight_binding_models import one_band_cuprate
from tasks.workspace import Workspace
from tests.tasks.screening_workspace import GAPPED

SETTINGS = ScreeningSettings(chunk=80)  # 10 a chunk where all images are asked about


@pytest.fixture
def copy(screened: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(screened.local("."), tmp_path / "copy")
    return Workspace(tmp_path / "copy")


@pytest.fixture
def rows(screened: Workspace) -> dict[str, dict]:
    return {row["formula"]: row for row in screened.read_table(RESULT).to_pylist()}


def test_result_has_the_declared_schema_and_every_material_is_accounted_for(screened: Workspace):
    table = screened.read_table(RESULT)
    report = read_report(screened, "screen")
    assert table.schema.equals(CANDIDATES)
    assert report.rows_in == len(table) + report.rows_refused == 17
    assert report.counts["screened"] == len(table) == 16


def test_a_large_gap_is_refused_with_its_reason(screened: Workspace):
    refused = screened.read_table("stages/screen/rejected.parquet").to_pylist()
    assert [row["reason"] for row in refused] == ["band gap 5.000 eV is above 0.2 eV"]
    assert GAPPED not in screened.read_table(RESULT)["formula"].to_pylist()


def test_only_unknown_materials_near_the_training_set_have_a_rank(rows: dict[str, dict]):
    ranked = {formula for formula, row in rows.items() if row["rank"] is not None}
    assert ranked == {"VC", "HfRu", "WN", "LaAs"} - {formula for formula, row in rows.items() if row["abstain"]}
    assert "VC" in ranked
    assert rows["XeCs" if "XeCs" in rows else "CsXe"]["abstain"]
    assert rows["NbN"]["known"] == "exact"
    assert rows["NbN"]["known_tc_kelvin"] == 16.0


def test_ranks_follow_the_score_and_the_score_is_probability_times_tc(rows: dict[str, dict]):
    ranked = sorted((row for row in rows.values() if row["rank"]), key=lambda row: row["rank"])
    assert [row["rank"] for row in ranked] == list(range(1, len(ranked) + 1))
    assert all(a["score"] >= b["score"] for a, b in itertools.pairwise(ranked))
    for row in ranked:
        assert row["score"] == pytest.approx(row["probability"] * row["tc_kelvin"], rel=1e-4)


def test_trained_materials_show_held_out_predictions_and_not_the_fit(screened: Workspace, rows: dict[str, dict]):
    version = screened.read_json("models/bnas/latest.json")["version"]
    held_out = screened.read_table(f"models/bnas/{version}/predictions.parquet").to_pylist()
    expected = {
        row["formula"]: row["tc_predicted_kelvin"]
        for row in held_out
        if row["model"] == "bnas" and row["split"] == "chemical-system"
    }
    known = [row for row in rows.values() if row["known"] == "exact"]
    assert len(known) == 11
    for row in known:
        assert row["tc_origin"] == row["probability_origin"] == "out-of-fold"
        assert row["tc_kelvin"] == pytest.approx(expected[row["formula"]], rel=1e-4, abs=6e-5)
        assert row["tc_low_kelvin"] is None
    assert rows["VC"]["tc_origin"] == "ensemble"
    assert rows["VC"]["tc_low_kelvin"] <= rows["VC"]["tc_kelvin"] <= rows["VC"]["tc_high_kelvin"]


def test_s2snet_gives_a_second_temperature_held_out_where_it_was_trained(screened: Workspace, rows: dict[str, dict]):
    s2snet = load_s2snet(screened)
    new = [row for row in rows.values() if row["probability_origin"] == "ensemble"]
    structures = [Structure.from_str(row["structure"], fmt="json") for row in new]
    expected = s2snet.predict(structures).tc_kelvin
    assert expected.min() > 0.1
    np.testing.assert_allclose([row["s2snet_tc_kelvin"] for row in new], expected, atol=1e-3)
    stored = screened.read_table(f"models/s2snet/{s2snet.version}/predictions.parquet").to_pylist()
    held_out = {
        row["formula"]: row["tc_predicted_kelvin"]
        for row in stored
        if row["model"] == "s2snet" and row["split"] == "chemical-system"
    }
    trained = [row for row in rows.values() if row["probability_origin"] == "out-of-fold"]
    assert len(trained) > 8
    for row in trained:
        assert row["s2snet_tc_kelvin"] == pytest.approx(held_out[row["formula"]], rel=1e-3, abs=1e-4)


def test_hazards_and_relatives_are_named(rows: dict[str, dict]):
    assert rows["LaAs"]["hazards"] == ["toxic: As"]
    assert rows["VC"]["hazards"] == []
    assert rows["VC"]["nearest_formula"] in {"NbC", "TaC", "TiC"}


@pytest.mark.parametrize("chunk", [3, 100], ids=["many parts", "one part"])
def test_any_chunks_give_the_same_bytes(screened: Workspace, copy: Workspace, chunk: int):
    settings = SETTINGS.model_copy(update={"chunk": 8 * chunk})
    plan = plan_screening(copy, settings)
    for part in plan.chunks:
        screen_to_part(copy, part, settings)
    copy.remove("stages/screen")
    join_parts(copy, plan, settings)
    assert copy.read_bytes(RESULT) == screened.read_bytes(RESULT)


@pytest.mark.parametrize("network", ["bnas", "s2snet"])
def test_damaged_weights_stop_the_run_and_refuse_no_material(copy: Workspace, network: str):
    weights = next(copy.local(f"models/{network}").glob("*/weights-0.safetensors"))
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="is damaged"):
        screen_materials(copy, plan_screening(copy, SETTINGS).chunks[0], SETTINGS)


def test_a_second_run_changes_nothing(copy: Workspace):
    plan = plan_screening(copy, SETTINGS)
    assert missing_chunks(copy, plan.chunks) == []
    assert join_parts(copy, plan, SETTINGS).reused


def test_new_labels_and_new_limits_change_every_part(copy: Workspace):
    before = plan_screening(copy, SETTINGS)
    farther = plan_screening(copy, SETTINGS.model_copy(update={"max_distance": 2.0}))
    table = copy.read_table("supercon/superconductors.parquet")
    copy.write_table("supercon/superconductors.parquet", table.slice(1))
    relabelled = plan_screening(copy, SETTINGS)
    parts = [{chunk.part for chunk in plan.chunks} for plan in (before, farther, relabelled)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])


def test_elements_and_limit_choose_and_are_counted(screened: Workspace):
    plan = plan_screening(screened, ScreeningSettings(elements=("Nb", "Hf"), limit=2))
    assert sum(len(chunk.material_ids) for chunk in plan.chunks) == 2
    assert plan.not_asked == 14


def test_nothing_to_screen_is_refused(screened: Workspace):
    with pytest.raises(InputError, match=r"None of the 17 materials .* holds one of Pu"):
        plan_screening(screened, ScreeningSettings(elements=("Pu",)))


def test_unusable_crystals_are_refused_and_the_others_go_on(copy: Workspace):
    rows = copy.read_table("crystals/ordered.parquet").to_pylist()
    twice, absent = (next(row for row in rows if row["formula"] == name) for name in ("VC", "WN"))
    broken = Structure.from_str(twice["structure"], fmt="json")
    twice["structure"] = Structure(broken.lattice, broken.species, [[0, 0, 0], [0, 0, 0.01]]).to_json()
    copy.write_table("crystals/ordered.parquet", pa.Table.from_pylist([r for r in rows if r is not absent], ORDERED))
    chunk = plan_screening(copy, ScreeningSettings()).chunks[0]
    table, rejected = screen_materials(copy, chunk, ScreeningSettings())
    reasons = {rejection.item: rejection.reason for rejection in rejected}
    assert "a site seems to be given twice" in reasons[twice["material_id"]]
    assert "has no crystal" in reasons[absent["material_id"]]
    assert len(table) == len(chunk.items) - 2


@pytest.mark.parametrize("network", ["bnas", "s2snet"])
def test_an_unknown_version_of_a_network_is_refused_with_those_there_are(screened: Workspace, network: str):
    with pytest.raises(InputError, match=rf"has no {network} of version 'old'; its versions are [0-9a-f]+$"):
        plan_screening(screened, ScreeningSettings(**{f"{network}_version": "old"}))


def test_ids_choose_and_unknown_ones_are_refused(screened: Workspace, tmp_path: Path, rows: dict[str, dict]):
    (tmp_path / "ids").write_text(f"{rows['VC']['material_id']}\nmp-none\n\n")
    plan = plan_screening(screened, ScreeningSettings(ids=str(tmp_path / "ids")))
    assert [chunk.material_ids for chunk in plan.chunks] == [(rows["VC"]["material_id"],)]
    assert [(one.item, "has no grid of mp-none" in one.reason) for one in plan.refused] == [("mp-none", True)]


def test_one_image_first_and_all_for_the_best(copy: Workspace, rows: dict[str, dict]):
    settings = ScreeningSettings(chunk=4, best=2)
    plan = plan_screening(copy, settings)
    assert {chunk.images for chunk in plan.chunks} == {1}
    assert [len(chunk.items) for chunk in plan.chunks] == [4, 4, 4, 4]
    for chunk in plan.chunks:
        screen_to_part(copy, chunk, settings)
    best = choose_best(copy, plan, settings)
    assert [(len(chunk.items), chunk.images) for chunk in best] == [(1, 24), (1, 24)]
    for chunk in best:
        screen_to_part(copy, chunk, settings)
    join_parts(copy, plan, settings, best)
    found = copy.read_table(RESULT).to_pylist()
    assert len(found) == len(rows)
    ranked = [row for row in found if row["rank"]]
    assert [row["images"] for row in ranked] == [24, 24, *[1] * (len(ranked) - 2)]
    for row in ranked[:2]:
        whole = {**rows[row["formula"]], "rank": row["rank"]}
        assert row == whole
    for row in ranked[2:]:
        assert row["tc_image_spread_kelvin"] is None
        assert row["probability"] == pytest.approx(rows[row["formula"]]["probability"], rel=1e-4)


def test_energy_above_the_hull_and_whether_it_was_made_come_from_the_crystals(copy: Workspace, rows: dict[str, dict]):
    assert {row["energy_above_hull_ev"] for row in rows.values()} == {0.012}
    assert {row["theoretical"] for row in rows.values()} == {None}
    fetched = {"crystal_id": rows["VC"]["material_id"], "kind": "json", "text": "", "theoretical": True}
    fetched |= {"energy_above_hull_ev": 0.5, "crystal_source": "mp"}
    copy.write_table("crystals/sources/mp.parquet", pa.Table.from_pylist([fetched], FETCHED_CRYSTALS))
    plan = plan_screening(copy, SETTINGS)
    assert missing_chunks(copy, plan.chunks) == list(plan.chunks)
    (chunk,) = (chunk for chunk in plan.chunks if fetched["crystal_id"] in chunk.material_ids)
    (row,) = (row for row in screen_materials(copy, chunk, SETTINGS)[0].to_pylist() if row["formula"] == "VC")
    assert (row["theoretical"], row["energy_above_hull_ev"]) == (True, 0.5)


def test_too_many_refusals_fail_the_run_after_all_is_written(copy: Workspace):
    plan = plan_screening(copy, SETTINGS)
    lost = [Rejection(plan.chunks[0].part, "OSError: the process was killed", retryable=True)]
    report = join_parts(copy, plan, SETTINGS, lost=lost)
    assert report.rows_refused == 11  # one for its gap
    assert len(copy.read_table(RESULT)) == 6
    with pytest.raises(RefusedError, match=r"10 of 16 materials .* share of 0.2 .* the process was killed"):
        check_refused(copy, report, SETTINGS)
    check_refused(copy, report, SETTINGS.model_copy(update={"max_refused_share": 0.7}))


def test_without_networks_the_stage_to_run_is_named(copy: Workspace):
    copy.remove("models/s2snet")
    with pytest.raises(MissingStageError, match="meissner train s2snet"):
        plan_screening(copy, SETTINGS)


def test_equal_scores_are_ordered_by_id_and_unranked_rows_stand_last():
    plain = {field.name: None for field in CANDIDATES} | {
        "space_group": "P1",
        "tc_origin": "ensemble",
        "probability_origin": "ensemble",
        "distance": 0.1,
        "band_gap_ev": 0.0,
        "formula": "Nb",
    }
    rows = [
        plain | {"material_id": name, "score": score, "known": known, "abstain": far}
        for name, score, known, far in (
            ("d", 9.0, "exact", False),
            ("c", 1.0, "none", False),
            ("b", 1.0, "none", False),
            ("a", 8.0, "none", True),
            ("e", 2.0, "none", False),
        )
    ]
    table = rank_candidates(pa.Table.from_pylist(rows, schema=CANDIDATES))
    assert table["material_id"].to_pylist() == ["e", "b", "c", "d", "a"]
    assert table["rank"].to_pylist() == [1, 2, 3, None, None]


@pytest.mark.parametrize(
    ("formula", "match", "known"),
    [
        ("La1.85Sr0.15CuO4", "exact", "La1.85Sr0.15CuO4"),
        ("La1.84Sr0.16CuO4", "similar", "La1.85Sr0.15CuO4"),
        ("La2CuO4", "similar", "La1.85Sr0.15CuO4"),
        ("MgB2", "exact", "MgB2"),
        ("Mg2B4", "exact", "MgB2"),
        ("Nb3Sn", "none", None),
    ],
    ids=str,
)
def test_known_compositions_are_found_by_class(formula: str, match: str, known: str | None):
    table = pa.table({"formula": ["MgB2", "La1.85Sr0.15CuO4", "La1.2Sr0.8CuO4"], "tc_kelvin": [39.0, 38.0, 0.0]})
    found = KnownSuperconductors(table).find(element_amounts(formula))
    assert (found.match, found.formula) == (match, known)


def test_hazards_are_sorted_and_named():
    assert find_hazards(["U", "Be", "O", "Tc", "Bi"]) == ["radioactive: Tc", "radioactive: U", "toxic: Be"]


def test_predict_answers_for_good_files_and_explains_bad_ones(screened: Workspace, tmp_path: Path):
    crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.16), ["V", "C"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for name in ("VC.cif", "POSCAR"):
        crystal.to(str(tmp_path / name))
    (tmp_path / "VC.json").write_text(crystal.to_json())
    (tmp_path / "bad.cif").write_text("this is no crystal")
    names = ["VC.cif", "bad.cif", "missing.cif", "POSCAR", "VC.json"]
    answers = predict([tmp_path / name for name in names], screened.url)
    assert [bool(answer.error) for answer in answers] == [False, True, True, False, False]
    assert "bad.cif" in answers[1].error
    good = [answers[0], answers[3], answers[4]]
    for answer in good:
        assert answer.formula == "VC"
        assert answer.space_group == "Fm-3m"
        assert answer.tc_kelvin is None
        assert answer.note == NEEDS_BANDS
        assert 0 <= answer.probability_low <= answer.probability <= answer.probability_high <= 1
        assert answer.known == "none"
        assert not answer.abstain
    np.testing.assert_allclose([answer.probability for answer in good], good[0].probability, atol=1e-3)


def test_predict_agrees_with_the_screening(screened: Workspace, tmp_path: Path, rows: dict[str, dict]):
    path = tmp_path / "VC.json"
    path.write_text(rows["VC"]["structure"])
    (answer,) = predict([path], screened)
    names = ("probability", "probability_low", "probability_high", "probability_origin", "s2snet_tc_kelvin")
    for name in (*names, "distance", "nearest_formula", "known", "abstain"):
        assert getattr(answer, name) == rows["VC"][name]
    assert (answer.probability_origin, answer.tc_origin, answer.agree) == ("ensemble", None, None)


def test_predict_marks_what_the_networks_were_trained_on(screened: Workspace, tmp_path: Path, rows: dict[str, dict]):
    stored = {row["formula"]: row for row in screened.read_table("bands/test.parquet").to_pylist()}
    for formula in ("NbN", "VC"):
        (tmp_path / f"{formula}.json").write_text(json.dumps(_bands_document(stored[formula])))
    trained, new = predict([tmp_path / "NbN.json", tmp_path / "VC.json"], screened)
    assert (trained.tc_origin, trained.probability_origin) == ("in-sample", "in-sample")
    assert (trained.known, trained.known_formula, trained.known_tc_kelvin) == ("exact", "NbN", 16.0)
    assert (new.tc_origin, new.probability_origin, new.known) == ("ensemble", "ensemble", "none")
    assert new.agree is rows["VC"]["agree"] is ((new.tc_kelvin >= 1) == (new.probability >= 0.5))
    assert trained.agree is not None


def test_a_composition_that_was_trained_on_is_seen_in_every_spelling():
    held_out = HeldOut("random", {"a": 1.0}, {}, frozenset({"a", "b"}), frozenset({composition_key("BaAs2Ru2")}))
    assert [held_out.origin(name) for name in ("a", "b", "c")] == ["out-of-fold", "in-sample", "ensemble"]
    assert held_out.origin(None, "Ba(AsRu)2") == "in-sample"
    assert held_out.origin(None, "Ba(AsRh)2") == "ensemble"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_predict_shows_the_temperature_of_s2snet(screened: Workspace, tmp_path: Path, rows: dict[str, dict], form: str):
    path = tmp_path / "VC.json"
    path.write_text(rows["VC"]["structure"])
    console = Console(file=io.StringIO(), width=200)
    print_predictions(console, predict([path], screened), form)
    text, tc = console.file.getvalue(), rows["VC"]["s2snet_tc_kelvin"]
    if form == "json":
        assert json.loads(text)[0]["s2snet_tc_kelvin"] == tc
    elif form == "csv":
        assert next(csv.DictReader(io.StringIO(text)))["s2snet_tc_kelvin"] == str(tc)
    else:
        assert "S2SNet: Tc / K" in text
        assert f" {tc:.2f} " in text


def test_distance_is_from_the_training_set_of_the_network_that_answers(
    copy: Workspace, tmp_path: Path, rows, shared_data
):
    name = next(name for name in copy.list("models/s2snet/*/predictions.parquet"))
    table = copy.read_table(name)
    copy.write_table(name, table.filter(pc.is_in(table["formula"], value_set=pa.array(["NbN", "TiN"]))))
    (tmp_path / "VC.json").write_text(rows["VC"]["structure"])
    vasprun = shared_data / "vasp" / "MgB2" / "vasprun.xml.gz"
    crystal, bands = predict([tmp_path / "VC.json", vasprun], copy)
    own = TrainingDistance([element_amounts("NbN"), element_amounts("TiN")])
    assert crystal.distance == pytest.approx(own([element_amounts("VC")])[0], abs=1e-4)
    assert abs(crystal.distance - rows["VC"]["distance"]) > 0.1
    both = [far([element_amounts("MgB2")])[0] for far in (own, Predictor(copy).distance)]
    assert bands.distance == pytest.approx(max(both), rel=1e-4)


def test_predict_asks_both_networks_about_a_vasprun(screened: Workspace, shared_data: Path):
    (answer,) = predict([shared_data / "vasp" / "MgB2" / "vasprun.xml.gz"], screened)
    assert answer.error is None
    assert answer.formula == "MgB2"
    assert answer.space_group == "P6/mmm"
    assert answer.tc_low_kelvin <= answer.tc_kelvin <= answer.tc_high_kelvin
    assert answer.band_gap_ev == 0
    assert 0 <= answer.probability <= 1


def test_predict_reads_what_ase_writes(screened: Workspace, tmp_path: Path, rows: dict[str, dict]):
    crystal = Structure.from_str(rows["VC"]["structure"], fmt="json")
    atoms = Atoms(symbols="VC", positions=crystal.cart_coords, cell=crystal.lattice.matrix, pbc=True)
    ase_write(tmp_path / "one.json", atoms)
    (tmp_path / "atoms.json").write_text(encode(atoms.todict()))
    atoms.pbc = (True, True, False)
    ase_write(tmp_path / "layer.json", atoms)
    *answers, layer = predict([tmp_path / f"{name}.json" for name in ("one", "atoms", "layer")], screened)
    for answer in answers:
        assert answer.error is None
        assert answer.space_group == "Fm-3m"
        assert answer.probability == pytest.approx(rows["VC"]["probability"], abs=1e-3)
    assert "is not periodic along all three axes" in layer.error


def test_predict_asks_both_networks_about_bands_of_pymatgen(screened: Workspace, tmp_path: Path, rows: dict[str, dict]):
    stored = screened.read_table("bands/test.parquet").to_pylist()
    row = next(row for row in stored if row["formula"] == "VC")
    (tmp_path / "bands.json").write_text(json.dumps(_bands_document(row)))
    (answer,) = predict([tmp_path / "bands.json"], screened)
    assert answer.error is None
    assert answer.tc_kelvin == pytest.approx(rows["VC"]["tc_kelvin"], rel=1e-3)
    assert answer.probability == pytest.approx(rows["VC"]["probability"], abs=1e-3)


def _bands_document(row: dict) -> dict:
    """A row of BANDS as pymatgen's BandStructure, with its structure."""
    crystal = Structure.from_str(row["structure"], fmt="json")
    bands = {Spin.up: np.array(row["energies"][0], dtype=float)}
    document = BandStructure(row["kpoints"], bands, crystal.lattice.reciprocal_lattice, row["efermi"]).as_dict()
    return document | {"structure": crystal.as_dict()}


def test_predict_asks_bnas_alone_about_a_tight_binding_model(screened: Workspace, tmp_path: Path):
    model = one_band_cuprate()
    path = write_wannier90_hr(model, tmp_path / "layer_hr.dat")
    (answer,) = predict([path], screened, efermi=model.fermi_level(0.85))
    assert answer.note == NO_ATOMS
    assert answer.band_gap_ev == 0
    assert answer.tc_low_kelvin <= answer.tc_kelvin <= answer.tc_high_kelvin
    assert (answer.formula, answer.probability, answer.known) == (None, None, None)
    (unknown,) = predict([path], screened)
    assert "names no Fermi level: give it with --efermi" in unknown.error


ROCKSALT = ("V", "C"), (0.0, 0.5)
SITES = "\n".join(f"{symbol} {x} {x} {x} 1" for symbol, x in zip(*ROCKSALT, strict=True))


def cif(sites: str = SITES, length: str = "2.94", angle: str = "60") -> str:
    """A rhombohedral cell of symbols, fractional coordinates and occupancies."""
    cell = "".join(f"_cell_length_{x} {length}\n" for x in "abc")
    cell += "".join(f"_cell_angle_{x} {angle}\n" for x in ("alpha", "beta", "gamma"))
    columns = ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")
    rows = "".join(f"A{number} {site}\n" for number, site in enumerate(sites.splitlines()))
    return f"data_x\n{cell}loop_\n" + "".join(f"_atom_site_{name}\n" for name in columns) + rows


MANY = "\n".join(f"V {i / 22:.5f} {j / 22:.5f} {k / 22:.5f} 1" for i, j, k in itertools.product(range(22), repeat=3))
BAD_CIFS = {
    "dummy": (cif(SITES.replace("V", "Xx")), "Xx"),
    "nan": (cif(SITES.replace("0.5", "nan")), "'nan', which is not a finite number"),
    "flat": (cif(angle="119.9999"), "is flat; planes of its lattice at least 0.01 angstrom apart"),
    "twice": (cif(f"{SITES}\nNb 0.01 0.01 0.01 1"), "apart"),
    "partial": (cif(SITES.replace("C 0.5 0.5 0.5 1", "C 0.5 0.5 0.5 0.7")), "partial occupancy"),
    "large": (cif(MANY, "70", "90"), "lists 10648 sites; at most 4000"),
    "empty": (cif(""), "."),
}


@pytest.mark.parametrize("name", BAD_CIFS)
def test_predict_says_in_one_sentence_what_is_wrong_and_goes_on(screened: Workspace, tmp_path: Path, name: str):
    text, reason = BAD_CIFS[name]
    (tmp_path / f"{name}.cif").write_text(text)
    (tmp_path / "good.cif").write_text(cif())
    started = time.process_time()
    bad, good = predict([tmp_path / f"{name}.cif", tmp_path / "good.cif"], screened)
    assert time.process_time() - started < 20
    assert re.search(reason, bad.error)
    assert bad.error.startswith(str(tmp_path))
    assert "\n" not in bad.error
    assert len(bad.error) < 400
    assert (bad.formula, bad.probability, bad.tc_kelvin) == (None, None, None)
    assert (good.error, good.formula, good.space_group) == (None, "VC", "Fm-3m")


def test_predict_counts_the_atoms_before_it_looks_for_symmetry(screened: Workspace, tmp_path: Path):
    sites = "\n".join(f"{i / 22:.5f} {j / 22:.5f} {k / 22:.5f}" for i, j, k in itertools.product(range(22), repeat=3))
    (tmp_path / "POSCAR").write_text(f"many\n70\n1 0 0\n0 1 0\n0 0 1\nV\n{22**3}\nDirect\n{sites}\n")
    started = time.process_time()
    (answer,) = predict([tmp_path / "POSCAR"], screened)
    assert answer.error == f"{tmp_path}/POSCAR: The cell has 10648 atoms; at most 444 are allowed"
    assert time.process_time() - started < 20


def test_predict_needs_a_file(screened: Workspace):
    with pytest.raises(InputError, match="No file to predict"):
        predict([], screened)


def test_the_flow_makes_the_same_table(screened: Workspace, copy: Workspace, prefect_harness):
    from flows.screening import screen

    for name in ("candidates", "stages/screen"):
        copy.remove(name)
    settings = SETTINGS.model_copy(update={"chunk": 48})
    report = screen(copy.url, settings)
    assert copy.read_bytes(RESULT) == screened.read_bytes(RESULT)
    assert not report.reused
    assert screen(copy.url, settings).reused


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(123.456789, 123.46), (0.32004889, 0.32), (1.23456789, 1.2346), (-1e-9, 0.0), (None, None), (float("nan"), None)],
    ids=str,
)
def test_numbers_are_rounded_to_what_networks_repeat(value: float | None, rounded: float | None):
    assert round_significant(value) == rounded


def test_probabilities_of_candidates_are_calibrated(screened: Workspace, rows: dict[str, dict]):
    s2snet = load_s2snet(screened)
    chosen = [row for row in rows.values() if row["probability_origin"] == "ensemble"]
    assert len(chosen) >= 4
    structures = [Structure.from_str(row["structure"], fmt="json") for row in chosen]
    graphs = [graph(crystal_arrays(structure), s2snet.config.radius) for structure in structures]
    logits = np.mean([predict_logits(network, graphs) for network in s2snet.networks], axis=0)
    calibrated = 1 / (1 + np.exp(-(2.0 * logits + 0.2)))  # the calibration that is stored with the networks
    np.testing.assert_allclose([row["probability"] for row in chosen], calibrated, atol=1e-4)
    assert np.abs(calibrated - 1 / (1 + np.exp(-logits))).max() > 0.01
