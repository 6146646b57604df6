"""The audit sees each kind of leak where one was planted, and nothing where none was."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.exceptions import LeakageError
from tasks.audit_data import read_dataset, read_named
from tasks.exceptions import InputError
from tasks.folds import Labelled, cross_validations
from tasks.leakage import OUTPUT, audit, audit_dataset, audit_tables, check_audit, make_splits
from tasks.schemas import LEAKAGE
from tasks.settings import AuditSettings, TrainingSettings
from tasks.train_bnas import as_fold_table
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace

HEADER = ["material_id", "formula", "tc_kelvin", "parent_id", "family", "year_first"]
# Test materials come first; each of them has one kind of relative among the others.
MATERIALS = [
    ("a1", "La1.85Sr0.15CuO4", 37, "p1", "cuprate", 1987),  # p1 with other doping
    ("b1", "Nb3Sn", 18, "p2", "A15", 1954),  # another crystal of the composition, other text, the same Tc
    ("c1", "Mg0.33B0.67", 39, "p3", "other", 2001),  # MgB2 in other decimals
    ("d1", "Nb0.5Ti0.5", 9.5, "p4", "other", 1962),  # NbTi, the same crystal, other text
    ("e1", "Fe2As2Ba", 30, "p5", "iron-based", 2008),  # the chemical system only
    ("f1", "V3Si", 17, "p6", "A15", 1954),  # alone
    ("a2", "La2CuO4", 0, "p1", "cuprate", 1986),
    ("b2", "Nb6Sn2", 18, "p12", "A15", 1960),
    ("c2", "MgB2", 39, "p13", "other", 2001),
    ("d2", "NbTi", 9.0, "p4", "other", 1962),
    ("e2", "Fe4As3Ba", 0, "p15", "iron-based", 2008),
    ("g2", "PbMo6S8", 15, "p16", "Chevrel", 1972),
]


def as_csv(rows, header=HEADER) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def split_csv(train, test, split="chemical-system", fold="0") -> bytes:
    rows = [(name, split, fold, side) for side, names in (("train", train), ("test", test)) for name in names]
    return as_csv(rows, ["material_id", "split", "fold", "side"])


IDS = [row[0] for row in MATERIALS]
DATA, SPLIT = as_csv(MATERIALS), split_csv(IDS[6:], IDS[:6])
FILES = {"data": "data.csv", "split_file": "split.csv", "pretraining": "seen.csv", "predictions": "predictions.csv"}


def run_audit(files, **settings):
    """Rows of LEAKAGE, and the whole outcome."""
    outcome = audit_tables(files, AuditSettings(**{name: FILES[name] for name in files}, **settings))
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected)
    assert outcome.tables[OUTPUT].schema.equals(LEAKAGE)
    return outcome.tables[OUTPUT].to_pylist(), outcome


def test_each_kind_of_relative_is_counted():
    (row,), _ = run_audit({"data": DATA, "split_file": SPLIT})
    expected = {
        "train": 6,
        "test": 6,
        "materials": 0,
        "parents": 2,
        "doped_parents": 1,
        "compositions": 2,
        "respelled": 2,
        "rounded": 1,
        "polymorphs": 1,
        "merged_polymorphs": 1,
        "systems": 4,  # of b, c, d and e; a has one more element than its parent
        "relatives": 5,
        "pretraining": None,
        "unpredicted": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["problem"] == (
        "Fold '0' of the split 'chemical-system' leaks: 2 parents, 2 compositions, 1 rounded, 4 systems of the test "
        "stand in the training (83% have a relative there, at most 0% may)"
    )


@pytest.mark.parametrize(
    ("split", "settings", "fails"),
    [
        ("random", {}, False),
        ("random", {"max_share_random": 0.8}, True),
        ("family", {}, True),
        ("family", {"max_share": 0.84}, False),
        ("given", {}, True),
    ],
)
def test_what_is_allowed_is_a_setting(split, settings, fails):
    (row,), outcome = run_audit({"data": DATA, "split_file": split_csv(IDS[6:], IDS[:6], split)}, **settings)
    assert (row["problem"] is not None) is fails
    assert outcome.counts["leaking_folds"] == fails


def test_one_material_on_both_sides_breaks_every_split():
    split = split_csv([*IDS[6:], "f1"], IDS[:6], "random")
    (row,), _ = run_audit({"data": DATA, "split_file": split}, max_share=1)
    assert row["materials"] == 1
    assert "1 materials of the test stand in the training" in row["problem"]
    images = as_csv(MATERIALS * 2)  # two images of each, divided by row
    rows = read_dataset(images, "images.csv").rows
    with pytest.raises(LeakageError, match="materials"):
        audit(rows, make_splits(rows, AuditSettings(splits=("random",), folds=3))[0])


def test_crystals_seen_in_pretraining_are_counted_by_id_and_by_structure():
    header = [*HEADER, "structure_hash"]
    data = as_csv([(*row, f"hash {number}") for number, row in enumerate(MATERIALS)], header)
    seen = as_csv(
        [("f1", "x", "pretrain"), ("new", "hash 4", "pretrain"), ("b1", "y", "train")], ["id", "structure_hash", "role"]
    )
    files = {"data": data, "split_file": SPLIT, "pretraining": seen}
    (row,), _ = run_audit(files)
    assert row["pretraining"] == 2
    assert "2 of 6 test crystals were seen in the pre-training (at most 0% may)" in row["problem"]
    (row,), _ = run_audit(files, max_share=0.9)
    assert row["problem"] is None


def test_a_score_on_a_filtered_subset_is_seen():
    def predictions(**by_model):
        rows = [("random", "0", model, name) for model, names in by_model.items() for name in names]
        return as_csv(rows, ["split", "fold", "model", "material_id"])

    files = {"data": DATA, "split_file": split_csv(IDS[6:], IDS[:6], "random")}
    (row,), _ = run_audit({**files, "predictions": predictions(bnas=IDS[:6], mean=IDS[:6])})
    assert (row["unpredicted"], row["problem"]) == (0, None)
    (row,), _ = run_audit({**files, "predictions": predictions(bnas=IDS[:5], mean=IDS[1:6])})
    assert row["unpredicted"] == 2
    assert "2 of 6 test materials have no prediction, so the score is that of a subset" in row["problem"]
    (row,), _ = run_audit({"data": DATA, "split_file": SPLIT, "predictions": predictions(bnas=IDS[:5])})
    assert row["unpredicted"] is None, "predictions of another split say nothing"


ELEMENTS = (
    "Al",
    "Ti",
    "V",
    "Cr",
    "Mn",
    "Fe",
    "Co",
    "Ni",
    "Cu",
    "Zn",
    "Ga",
    "Ge",
    "Zr",
    "Nb",
    "Mo",
    "Tc",
    "Ru",
    "Rh",
    "Pd",
    "Ag",
)
PAIRS = [(f"{a}-{b}", f"{a}{b}2", 1.0, f"{a}-{b}") for k, a in enumerate(ELEMENTS) for b in ELEMENTS[:k]]  # 190


@pytest.mark.parametrize(
    ("chosen", "follows"),
    [
        (lambda row: row >= 152, True),
        (lambda row: row % 5 == 0, True),
        (lambda row: np.random.default_rng(0).permutation(190)[row] < 38, False),
    ],
    ids=["block", "every fifth", "by lot"],
)
def test_a_split_that_follows_the_file_is_seen(chosen, follows):
    names = [row[0] for row in PAIRS]
    test = [name for number, name in enumerate(names) if chosen(number)]
    split = split_csv([name for name in names if name not in test], test, "random")
    (row,), _ = run_audit({"data": as_csv(PAIRS, HEADER[:4]), "split_file": split})
    assert (row["order_chance"] < 1e-6) is follows
    assert ("follows the order of the file" in (row["problem"] or "")) is follows
    (row,), _ = run_audit({"data": as_csv(PAIRS, HEADER[:4]), "split_file": split}, min_order_chance=0)
    assert row["problem"] is None


def test_groups_that_stand_together_in_the_file_are_no_order():
    rows = [(f"{name}/{n}", formula, tc + n, name) for name, formula, tc, _ in PAIRS for n in range(4)]
    found, _ = run_audit({"data": as_csv(rows, HEADER[:4])}, splits=("chemical-system",))
    assert len(found) == 5
    for row in found:
        assert row["order_chance"] > 1e-4
        assert row["problem"] is None


def test_what_is_missing_is_told_with_what_it_prevents():
    rows, outcome = run_audit({"data": as_csv([(row[1], row[2]) for row in MATERIALS], ["name", "Tc"])}, folds=3)
    assert {row["split"] for row in rows} == {"random", "chemical-system"}
    assert all(row["materials"] is None and row["parents"] is None and row["systems"] is not None for row in rows)
    told = "\n".join(outcome.counts["not_seen"])
    assert "no material_id: one material on both sides, a given split, pre-training and predictions" in told
    assert "no parent_id: one crystal under several formulas, and polymorphs" in told
    assert "no family: the split family" in told
    assert "no year_first: the split year" in told
    only_ids = as_csv([(row[0], row[3]) for row in MATERIALS], ["material_id", "parent_id"])
    (row,), outcome = run_audit({"data": only_ids, "split_file": SPLIT})
    assert (row["parents"], row["systems"], row["relatives"]) == (2, None, 2)
    assert any(line.startswith("no formula: compositions") for line in outcome.counts["not_seen"])


def test_a_split_that_the_data_do_not_allow_says_why():
    one_family = as_csv([(*row[:4], "other", row[5]) for row in MATERIALS])
    _, outcome = run_audit({"data": one_family}, folds=3)
    assert outcome.counts["not_seen"] == ["no split family: Leaving one family out needs at least 2 families, not 1"]


def test_rows_that_cannot_be_read_are_refused_and_the_unlabelled_stand_aside():
    bad = [
        ("x1", "Xx2", 1, "p", "", ""),
        ("x2", "NbN", "warm", "p", "", ""),
        ("x3", "", 1, "p", "", ""),
        ("x4", "NbN", -1, "", "", ""),
    ]
    unknown = [("u1", "VN", "", "p90", "", ""), ("u2", "TiN", "nan", "", "", "")]
    rows, outcome = run_audit({"data": as_csv([*MATERIALS, *bad, *unknown])}, splits=("random",), folds=3)
    assert {item.item for item in outcome.rejected} == {f"data.csv row {number}" for number in (13, 14, 15, 16)}
    assert "'warm' is not a number" in outcome.rejected[1].reason
    assert (outcome.counts["materials"], outcome.counts["unlabelled"]) == (12, 2)
    assert {row["train"] + row["test"] for row in rows} == {12}


def test_classes_are_labels_too():
    classes = as_csv(
        [(row[0], row[1], "1" if row[2] else "0") for row in MATERIALS], ["id", "formula", "superconductor"]
    )
    dataset = read_dataset(classes, "c.csv")
    assert dataset.rows.superconductors.sum() == 10
    assert "tc_kelvin" not in dataset.missing
    with pytest.raises(InputError, match="no row that can be audited"):
        read_dataset(as_csv([("a", "Nb", "perhaps")], ["id", "formula", "superconductor"]), "c.csv")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data": b"PAR1 damaged"}, "data.csv is not a Parquet file that can be read"),
        ({"data": as_csv([("x", 1)], ["colour", "size"])}, "neither ids .* nor formula"),
        ({"data": DATA, "split_file": as_csv([("a1", "0")], ["material_id", "fold"])}, "split.csv has no column side"),
        ({"data": DATA, "split_file": split_csv(["zz"], ["a1"])}, "no fold with both training and test materials"),
        (
            {"data": DATA, "split_file": as_csv([("a1", "valid")], ["material_id", "side"])},
            "split.csv row 1: the side 'valid' is not one of train, test",
        ),
        (
            {"data": as_csv([("Nb", 9)], ["formula", "tc"]), "split_file": SPLIT},
            "cannot be used: the data have no column material_id",
        ),
        ({"data": DATA, "pretraining": as_csv([("Nb",)], ["formula"])}, "pretraining has no column material_id"),
        ({"data": as_csv(MATERIALS[:1])}, "No split can be made"),
    ],
    ids=["damaged", "columns", "no side", "strangers", "other side", "no ids", "pre-training", "too few"],
)
def test_files_that_cannot_be_used_are_one_sentence(files, message):
    with pytest.raises(InputError, match=message):
        run_audit(files)


def test_materials_of_the_split_that_the_data_lack_are_refused():
    _, outcome = run_audit({"data": DATA, "split_file": split_csv([*IDS[6:], "ghost"], IDS[:6])})
    assert [(item.item, item.reason) for item in outcome.rejected] == [
        ("ghost", "stands in split.csv, but not in data.csv")
    ]


def test_a_file_is_found_in_the_workspace_before_elsewhere(tmp_path):
    place = Workspace(tmp_path / "w")
    place.write_bytes("mine.csv", b"inside")
    (tmp_path / "other.csv").write_bytes(b"outside")
    assert read_named(place, "mine.csv") == b"inside"
    assert read_named(place, str(tmp_path / "other.csv")) == b"outside"
    with pytest.raises(InputError, match=r"nowhere.csv is not in the workspace .*, and as a file: Cannot read"):
        read_named(place, "nowhere.csv")


def test_the_stage_writes_its_table_and_then_fails_each_time(tmp_path):
    place = Workspace(tmp_path)
    place.write_bytes("data.csv", DATA)
    place.write_bytes("split.csv", SPLIT)
    settings = AuditSettings(data="data.csv", split_file="split.csv")
    for reused in (False, True):
        assert audit_dataset.fn(place.url, settings).reused is reused
        assert place.read_table(OUTPUT).num_rows == 1
        with pytest.raises(LeakageError, match="Fold '0' of the split 'chemical-system' leaks"):
            check_audit.fn(place.url)
    place.write_bytes("split.csv", split_csv(IDS[11:], IDS[:5]))
    assert not audit_dataset.fn(place.url, settings).reused
    check_audit.fn(place.url)


def test_the_folds_of_a_training_pass_and_are_those_that_the_audit_makes(tmp_path):
    place = make_grid_workspace(tmp_path, count=24)
    rows = Labelled(place.read_table("grids/index.parquet").sort_by("material_id"))
    settings = TrainingSettings(folds=3, splits=("random", "chemical-system", "family", "year"))
    folds = cross_validations(rows, settings)
    place.write_table("models/folds.parquet", as_fold_table(rows, folds))
    named = AuditSettings(data="grids/index.parquet", folds=3)
    made = audit_dataset.fn(place.url, named)
    first = place.read_table(OUTPUT)
    given = audit_dataset.fn(place.url, named.model_copy(update={"split_file": "models/folds.parquet"}))
    assert place.read_table(OUTPUT).equals(first)
    assert made.counts["not_seen"] == given.counts["not_seen"] == []
    check_audit.fn(place.url)
    own = {(split, row["fold"]): row for split, found in audit(rows, folds).items() for row in found}
    for row in first.to_pylist():
        assert own[row["split"], row["fold"]].items() <= row.items()


def test_superband_leaks_in_random_folds_and_not_in_grouped_ones(shared_data: Path):
    data = read_named(Workspace("memory://"), str(shared_data / "superband_table.csv.gz"))
    rows, _ = run_audit({"data": data}, splits=("random", "chemical-system"))
    random = [row for row in rows if row["split"] == "random"]
    tested = sum(row["test"] for row in random)
    assert tested > 6000
    assert (
        0.78 < sum(row["systems"] for row in random) / tested < 0.86
    )  # 84 % have another entry; one in five is held out
    assert sum(row["merged_polymorphs"] for row in random) > 20
    assert all(row["relatives"] == 0 for row in rows if row["split"] == "chemical-system")
    assert all(row["problem"] is None for row in rows)


def test_parquet_and_csv_say_the_same(tmp_path):
    table = pa.table(
        {name: [row[k] for row in MATERIALS] for k, name in enumerate(HEADER)} | {"structure": ["{}"] * 12}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read_dataset(sink.getvalue(), "a").rows.table.equals(read_dataset(DATA, "b").rows.table)
