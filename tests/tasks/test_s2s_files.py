"""Crystals with a class from files: what is read, and that each bad line is refused with its reason, alone."""

import gzip
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import DummySpecies, Element, Lattice, Structure

from tasks.exceptions import InputError
from tasks.s2s_files import dataset_from_s2s, read_unlabelled
from tests.models.crystal_examples import EXAMPLES

S2S_LINE = {
    "index": 0,
    "superconductor": 1,
    "lattice": [[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]],
    "atomic_numbers": [41, 22],
    "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]],
}


HALF = Structure(Lattice.cubic(3.2), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]])
CUBE = 50 * np.eye(3)


def crystal(structure: Structure) -> dict:
    return {"superconductor": 0, "structure": structure.as_dict()}


BAD = {
    "unknown element": (S2S_LINE | {"atomic_numbers": [41, 120]}, r"\[120\] are not between 1 and 95"),
    "no element": (S2S_LINE | {"atomic_numbers": [0, 22]}, r"\[0\] are not between 1 and 95"),
    "half an element": (S2S_LINE | {"atomic_numbers": [41, 22.5]}, "whole numbers"),
    "symbols": (S2S_LINE | {"atomic_numbers": ["Nb", "Ti"]}, "could not convert"),
    "dummy": (crystal(Structure(Lattice.cubic(3), [DummySpecies("Xa")], [[0, 0, 0]])), "holds what is no element: Xa"),
    "empty": (S2S_LINE | {"atomic_numbers": [], "frac_coords": []}, "0 atoms"),
    "partial occupancy": (crystal(HALF), "partial occupancy"),
    "sites twice": (S2S_LINE | {"frac_coords": [[0, 0, 0], [0, 0, 1]]}, "apart; a site seems to be given twice"),
    "NaN": (S2S_LINE | {"frac_coords": [[0, 0, 0], [0.5, float("nan"), 0.5]]}, "finite"),
    "infinite cell": (S2S_LINE | {"lattice": [[1e400, 0, 0], [0, 3, 0], [0, 0, 3]]}, "finite"),
    "flat": (S2S_LINE | {"lattice": [[3, 0, 0], [0, 3, 0], [3, 3, 0]]}, "volume of 0"),
    "too many": (
        S2S_LINE | {"lattice": CUBE.tolist(), "atomic_numbers": [1] * 10_000, "frac_coords": [[0, 0, 0]] * 10_000},
        "10000 atoms; 1 to 444",
    ),
    "class": (S2S_LINE | {"superconductor": 3}, "must be 0 or 1"),
    "list as class": (S2S_LINE | {"superconductor": [1]}, "must be 0 or 1"),
    "ragged": (S2S_LINE | {"lattice": [[3, 0, 0], [0, 3]]}, "inhomogeneous"),
    "huge number": (S2S_LINE | {"atomic_numbers": [10**400, 1]}, "too large"),
    "energy": (S2S_LINE | {"formation_energy_per_atom": float("-inf")}, "finite number of eV"),
    "missing": ({"superconductor": 1}, "missing 'atomic_numbers'"),
    "no object": ([1, 2], "not a JSON object"),
}


@pytest.fixture(scope="module")
def read_with_bad_lines(tmp_path_factory):
    """One file with a good line before and after every bad one."""
    path = tmp_path_factory.mktemp("bad") / "s2s.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in [S2S_LINE, *(bad for bad, _ in BAD.values()), S2S_LINE]))
    return dataset_from_s2s(path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_refused_with_its_reason(read_with_bad_lines, name):
    number = list(BAD).index(name)
    refusal = read_with_bad_lines.rejected[number]
    assert refusal.item == f"s2s.jsonl line {number + 2}"
    assert re.search(BAD[name][1], refusal.reason), refusal.reason


def test_the_other_lines_are_read(read_with_bad_lines):
    assert read_with_bad_lines.names == ["s2s-1", f"s2s-{len(BAD) + 2}"]
    assert len(read_with_bad_lines.rejected) == len(BAD)


def test_partial_occupancies_are_ordered_where_that_is_asked(tmp_path):
    path = tmp_path / "disordered.jsonl"
    path.write_text(json.dumps(crystal(HALF)))
    found = dataset_from_s2s(path, "order")
    assert found.formulas == ["TiNb"]
    assert sorted(found.crystals[0].atomic_numbers.tolist()) == [22, 41]


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    for name in ("s2s.pkl", "s2s.jsonl", "s2s.jsonl.gz"):
        data = pickle.dumps(Trap(), protocol=4)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        with pytest.raises(InputError, match=name):
            dataset_from_s2s(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_crystals_without_a_class_come_from_lines_or_files(tmp_path):
    lines = tmp_path / "more.jsonl"
    energies = [
        S2S_LINE | {"formation_energy_per_atom": -0.5},
        {k: v for k, v in S2S_LINE.items() if k != "superconductor"},
    ]
    lines.write_text("\n".join(map(json.dumps, energies)))
    found = read_unlabelled(str(lines))
    assert found.labels.tolist() == [-1, -1]
    np.testing.assert_array_equal(found.energies, [-0.5, np.nan])
    folder = tmp_path / "cifs"
    folder.mkdir()
    EXAMPLES["MgB2"]().to(str(folder / "MgB2.cif"))
    HALF.to(str(folder / "NbTi.cif"))
    refused, ordered = read_unlabelled(str(folder)), read_unlabelled(str(folder), "order")
    assert (refused.formulas, len(refused.rejected)) == (["MgB2"], 1)
    assert (ordered.formulas, len(ordered.rejected)) == (["MgB2", "TiNb"], 0)


@pytest.mark.parametrize("name", ["s2s.jsonl", "s2s.jsonl.gz"])
def test_s2s_lines_are_read_and_bad_ones_refused(tmp_path, name):
    bad = [S2S_LINE | {"superconductor": 3}, S2S_LINE | {"atomic_numbers": [41, 120]}, {"index": 4}]
    text = "\n".join([json.dumps(S2S_LINE), *map(json.dumps, bad), "{", ""])
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = dataset_from_s2s(path)
    assert (found.names, found.formulas, found.chemical_systems) == (["s2s-1"], ["TiNb"], ["Nb-Ti"])
    assert found.labels.tolist() == [1]
    assert [refusal.item for refusal in found.rejected] == [f"{name} line {number}" for number in (2, 3, 4, 5)]


@pytest.mark.parametrize("content", [None, b"", b"\x1f\x8b damaged", b"{}"], ids=["missing", "empty", "damaged", "no"])
def test_an_s2s_file_without_crystals_is_refused(tmp_path, content):
    path = tmp_path / "s2s.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"s2s\.jsonl\.gz"):
        dataset_from_s2s(path)


def test_s2s_is_read_whole(shared_data: Path):
    found = dataset_from_s2s(shared_data / "s2s.jsonl.gz")
    assert (len(found.crystals), int(found.labels.sum()), len(found.rejected)) == (1685, 421, 0)
    assert max(map(len, found.crystals)) == 248
    first = {Element.from_Z(int(number)).symbol for number in found.crystals[0].atomic_numbers}
    assert found.chemical_systems[0].split("-") == sorted(first)
