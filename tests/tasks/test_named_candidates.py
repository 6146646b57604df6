"""The papers' named candidates: transcribed once, looked for by id and by composition."""

import pyarrow as pa
import pytest
from pymatgen.core import Composition

from tasks.mp_identifiers import table_identifier
from tasks.named_candidates import BNAS_NAMED, S2SNET_NAMED, Named, find_named
from tasks.schemas import CANDIDATES
from tasks.screening import RESULT
from tasks.workspace import Workspace


def test_the_papers_lists_are_whole_and_their_formulas_can_be_read():
    assert [one.material_id for one in BNAS_NAMED] == ["mp-996990", "mp-1404877", "mp-1097001", "mp-1147676"]
    assert len(S2SNET_NAMED) == 41
    assert {one.formula for one in S2SNET_NAMED if one.discovered} == {
        *("LiFeAs", "La2CuO4", "H2S", "Hg", "NbSn2", "Bi4Te3", "C"),
    }
    for one in (*BNAS_NAMED, *S2SNET_NAMED):
        assert Composition(one.formula).valid
        assert one.published is None or 0 < one.published <= 1


@pytest.fixture(scope="module")
def rows(screened: Workspace) -> dict[str, dict]:
    return {row["formula"]: row for row in screened.read_table(RESULT).to_pylist()}


def test_each_is_found_or_not_with_its_rank(screened: Workspace, rows: dict[str, dict]):
    first, known = next(row for row in rows.values() if row["rank"] == 1), rows["NbN"]
    named = [
        Named("BNAS", "BaAgO2", first["material_id"]),
        Named("S2SNet", "Nb2N2"),
        Named("BNAS", first["formula"], "mp-1"),
        Named("S2SNet", "Hg", None, 0.9953, discovered=True),
    ]
    by_id, by_formula, other, absent = find_named(screened, screened.read_table(RESULT), named)
    assert (by_id["rank"], by_id["status"]) == (1, "rank 1")
    assert by_formula["status"] == "measured (exact: NbN)"
    assert by_formula["tc_kelvin"] == known["tc_kelvin"]
    assert other["status"] == "rank 1, another crystal of this composition"
    assert (absent["status"], absent["found_id"], absent["published"]) == ("not in the workspace", None, 0.9953)


def test_an_id_in_letters_is_the_same_crystal(screened: Workspace, rows: dict[str, dict]):
    first = next(row for row in rows.values() if row["rank"] == 1)
    table = pa.Table.from_pylist([first | {"material_id": table_identifier("mp-996990")}], schema=CANDIDATES)
    named = [Named("BNAS", first["formula"], "mp-996990"), Named("BNAS", first["formula"], "mp-996991")]
    same, other = find_named(screened, table, named)
    assert (same["status"], same["found_id"]) == ("rank 1", table_identifier("mp-996990"))
    assert other["status"] == "rank 1, a crystal of this composition; its run has another number"


def test_a_crystal_that_was_not_screened_is_put_to_s2snet(screened: Workspace, rows: dict[str, dict]):
    (found,) = find_named(screened, CANDIDATES.empty_table(), [Named("S2SNet", "VC")])
    assert found["status"] == "crystal without bands"
    assert found["probability"] == pytest.approx(rows["VC"]["probability"], abs=1e-4)
    assert found["tc_kelvin"] is None
    empty = pa.Table.from_pylist([], schema=CANDIDATES)
    (trained,) = find_named(screened, empty, [Named("S2SNet", "NbN")])
    assert trained["probability"] == pytest.approx(rows["NbN"]["probability"], abs=1e-4)
