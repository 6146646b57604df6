"""The training set of S2SNet: who is in, with which label, and why."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pymatgen.core import Lattice, Structure

from models.crystals import crystal_arrays
from tasks.crystals import natural_key, structure_hash
from tasks.exceptions import InputError
from tasks.formulas import normalise_formula
from tasks.s2s_dataset import OUTPUT, build_dataset, build_s2s, draw, export_dataset
from tasks.s2snet_data import dataset_from_s2s
from tasks.schemas import ORDERED, S2S, SUPERCONDUCTORS
from tasks.settings import MatchingSettings, S2sSettings
from tasks.workspace import Workspace
from tests.tasks.test_train_s2snet import cubic

# Id, structure, Tc of the crystal (None: nothing measured), temperature down to which it was measured.
CRYSTALS = [
    ("mp-10", cubic("face", ("Nb", "N"), 4.39), 16.0, None),
    ("mp-9", cubic("body", ("Nb",), 3.30), 9.3, None),
    ("mp-8", cubic("face", ("Zr", "N"), 4.58), 10.0, None),
    ("mp-20", cubic("face", ("Cu",), 3.61), 0.0, 0.05),  # a bound
    ("mp-21", cubic("face", ("Ag",), 4.09), 0.0, 0.03),  # a bound
    ("mp-22", cubic("face", ("Na", "Cl"), 5.64), 0.0, None),  # reported without a Tc
    *((f"mp-{30 + k}", cubic("face", pair, 4.5 + 0.1 * k), None, None) for k, pair in enumerate(
        [("K", "Cl"), ("Mg", "O"), ("Li", "F"), ("Ca", "O"), ("Sr", "O"), ("Ti", "C"), ("V", "N")]
    )),
    ("mp-40", Structure(Lattice.cubic(3.1), ["Nb", "N"], [[0, 0, 0], [0.5, 0.5, 0.5]]), None, None),  # a polymorph
    ("mp-41", Structure(Lattice.cubic(9), ["Nb"] * 19 + ["Ti"], np.arange(60).reshape(20, 3) / 60), None, None),
]  # fmt: skip


def as_tables(crystals=CRYSTALS, extra=()):
    """Rows of ORDERED and of SUPERCONDUCTORS."""
    ordered, measured = [], []
    for name, structure, tc, lowest in crystals:
        formula = normalise_formula(structure.composition.get_el_amt_dict())
        ordered.append(
            {
                "material_id": name,
                "parent_id": name.partition("~")[0],
                "formula": formula,
                "supercon_formula": formula if tc is not None else None,
                "tc_kelvin": tc,
                "match": "exact" if tc is not None else None,
                "space_group": "",
                "sites": len(structure),
                "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
                "composition_error": 0.0,
                "structure_hash": structure_hash(structure),
                "structure": structure.to_json(),
            }
        )
        if tc is not None:
            measured.append((formula, tc, lowest))
    rows = [
        dict.fromkeys(SUPERCONDUCTORS.names)
        | {"formula": formula, "tc_kelvin": tc, "lowest_kelvin": lowest, "tc_std_kelvin": 0.0, "reports": 1}
        | {"family": "other", "source": "test", "source_rows": [1]}
        for formula, tc, lowest in [*measured, *extra]
    ]
    complete = [dict.fromkeys(ORDERED.names) | row for row in ordered]
    return pa.Table.from_pylist(complete, schema=ORDERED), pa.Table.from_pylist(rows, schema=SUPERCONDUCTORS)


def build(crystals=CRYSTALS, extra=(), **settings):
    """Rows of the set by id, and the outcome."""
    outcome = build_s2s(*as_tables(crystals, extra), S2sSettings(**settings), MatchingSettings())
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected) == len(crystals)
    assert outcome.tables[OUTPUT].schema.equals(S2S)
    return {row["material_id"]: row for row in outcome.tables[OUTPUT].to_pylist()}, outcome


def test_each_crystal_has_its_label_and_its_reason():
    rows, outcome = build(negatives_per_positive=2)
    assert list(rows) == sorted(rows, key=natural_key)
    assert {name for name, row in rows.items() if row["superconductor"] == 1} == {"mp-8", "mp-9", "mp-10"}
    assert (rows["mp-9"]["label_source"], rows["mp-9"]["role"]) == ("measured", "train")
    assert rows["mp-9"]["reason"] == "Tc of 9.3 K reported for Nb (exact match)"
    assert (rows["mp-20"]["superconductor"], rows["mp-20"]["label_source"]) == (0, "bound")
    assert rows["mp-20"]["reason"] == "no superconductivity down to 0.05 K"
    assert (rows["mp-22"]["label_source"], rows["mp-22"]["lowest_kelvin"]) == ("unlabelled", None)
    assert rows["mp-40"]["role"] == "pretrain"
    assert rows["mp-40"]["reason"] == "exact match of NbN, 16 K"
    assert {row["role"] for row in rows.values() if row["superconductor"] is None} == {"pretrain"}
    assert outcome.counts == {
        "superconductors": 3,
        "others": 6,
        "others_with_a_bound": 2,
        "others_wanted": 6,
        "pretraining": 6,
        "median_sites_superconductors": 2,
        "median_sites_others": 2,
    }


def test_bounds_come_first_and_no_known_superconductor_is_drawn():
    rows, _ = build(negatives_per_positive=2 / 3)
    drawn = {name for name, row in rows.items() if row["superconductor"] == 0}
    assert drawn == {"mp-20", "mp-21"}
    rows, outcome = build(negatives_per_positive=100)
    others = {name for name, row in rows.items() if row["role"] == "pretrain"}
    assert others == {"mp-40"}  # NbN again; Nb19Ti holds an element that was not measured with Nb: no match in 3DSC
    assert (outcome.counts["others"], outcome.counts["others_wanted"]) == (11, 300)


@pytest.mark.parametrize(
    ("composition", "match"),
    [("MgO", "exact"), ("Mg0.99O", "similar"), ("Mg0.88O", "doped"), ("Mg0.95Ca0.05O", "doped"), ("MgO2", None)],
)
def test_a_superconducting_neighbour_keeps_a_crystal_out_of_the_others(composition, match):
    rows, _ = build(extra=[(composition, 12.0, None)], negatives_per_positive=100)
    magnesia = next(row for row in rows.values() if row["formula"] == "MgO")
    if match:
        assert (magnesia["role"], magnesia["reason"]) == ("pretrain", f"{match} match of {composition}, 12 K")
    else:
        assert magnesia["superconductor"] == 0


def test_a_report_without_a_tc_says_so():
    rows, _ = build(negatives_per_positive=100)
    assert rows["mp-22"]["reason"].endswith("; NaCl is reported without a Tc")
    assert "reported" not in rows["mp-30"]["reason"]


def test_another_form_of_a_superconducting_crystal_is_no_other():
    doped = ("mp-9~Nb3Ti", Structure(Lattice.cubic(6.6), ["Nb"] * 3 + ["Ti"], np.eye(4, 3) * 0.5), 0.0, 0.01)
    rows, _ = build([*CRYSTALS, doped], negatives_per_positive=100)
    assert rows["mp-9~Nb3Ti"]["label_source"] == "bound"
    assert (rows["mp-9~Nb3Ti"]["role"], rows["mp-9~Nb3Ti"]["superconductor"]) == ("pretrain", None)
    assert rows["mp-9~Nb3Ti"]["reason"] == "its parent crystal superconducts as Nb"


def test_what_the_network_cannot_take_and_what_comes_twice_is_refused():
    odd = [
        ("mp-90", Structure(Lattice.cubic(3.2), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]]), None, None),
        ("mp-1", cubic("body", ("Nb",), 3.30), None, None),
        ("mp-2", cubic("face", ("K", "Cl"), 4.5), None, None),
    ]
    _, outcome = build([*CRYSTALS, *odd], max_sites=19)
    reasons = {item.item: item.reason for item in outcome.rejected}
    assert set(reasons) == {"mp-90", "mp-1", "mp-30", "mp-41"}
    assert "partial occupancy" in reasons["mp-90"]
    assert reasons["mp-1"] == "the same ordered cell as mp-9"  # the superconducting one stays, whatever its number
    assert reasons["mp-30"] == "the same ordered cell as mp-2"
    assert reasons["mp-41"] == "The cell has 20 atoms; at most 19 are allowed"


def test_the_draw_hangs_on_ids_and_seed_alone():
    rows = [{"material_id": f"mp-{n}", "label_source": "unlabelled"} for n in range(200)]
    first = {row["material_id"] for row in draw(rows, 50, seed=0)}
    assert {row["material_id"] for row in draw(rows[::-1], 50, seed=0)} == first
    assert len({row["material_id"] for row in draw(rows, 50, seed=1)} & first) < 30
    more = {row["material_id"] for row in draw([*rows, {"material_id": "mp-999", "label_source": "unlabelled"}], 50, 0)}
    assert len(more - first) <= 1


def test_without_a_superconductor_it_says_what_to_run():
    with pytest.raises(InputError, match=r"None of 9 ordered crystals carries a Tc above 0.*--until order"):
        build([crystal for crystal in CRYSTALS if not crystal[2]][:9])


@pytest.fixture
def place(tmp_path):
    workspace = Workspace(tmp_path / "w")
    ordered, superconductors = as_tables()
    workspace.write_table("crystals/ordered.parquet", ordered)
    workspace.write_table("supercon/superconductors.parquet", superconductors)
    return workspace


def test_same_input_and_seed_same_bytes(place, tmp_path):
    settings = S2sSettings(negatives_per_positive=1.5)
    assert not build_dataset.fn(place.url, settings).reused
    assert build_dataset.fn(place.url, settings).reused
    first = place.fingerprint(OUTPUT)
    place.remove(OUTPUT)
    assert not build_dataset.fn(place.url, settings).reused
    assert place.fingerprint(OUTPUT) == first
    build_dataset.fn(place.url, settings.model_copy(update={"seed": 3}))
    assert place.fingerprint(OUTPUT) != first


@pytest.mark.parametrize("name", ["s2s.jsonl", "s2s.jsonl.gz"])
def test_the_export_is_read_back(place, tmp_path, name):
    build_dataset.fn(place.url, S2sSettings())
    file = tmp_path / "out" / name
    export_dataset.fn(place.url, str(file))
    written = file.read_bytes()
    found = dataset_from_s2s(file)
    rows = [row for row in place.read_table(OUTPUT).to_pylist() if row["role"] == "train"]
    assert found.rejected == []
    assert found.labels.tolist() == [row["superconductor"] for row in rows]
    for crystal, row in zip(found.crystals, rows, strict=True):
        original = crystal_arrays(Structure.from_str(row["structure"], fmt="json"))
        assert crystal.atomic_numbers.tolist() == original.atomic_numbers.tolist()
        np.testing.assert_allclose(crystal.cartesian, original.cartesian, atol=1e-4)
    export_dataset.fn(place.url, str(file))
    assert file.read_bytes() == written
    line = json.loads((gzip.decompress(written) if name.endswith("gz") else written).splitlines()[0])
    assert set(line) == {"index", "superconductor", "lattice", "atomic_numbers", "frac_coords"}


def test_an_export_that_cannot_be_written_is_one_sentence(place):
    build_dataset.fn(place.url, S2sSettings())
    with pytest.raises(InputError, match=r"Cannot write /proc/nothing/s2s\.jsonl"):
        export_dataset.fn(place.url, "/proc/nothing/s2s.jsonl")
