"""Folds cover what they should, keep apart what they promise, and the audit sees what they do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.exceptions import LeakageError, ModelInputError
from models.splits import (
    Fold,
    check_leakage,
    composition_key,
    connected_groups,
    find_leak,
    leakage_table,
    make_folds,
    order_test,
)

GROUPS = np.repeat([f"g{n}" for n in range(13)], [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 7])
SIZE = len(GROUPS)
LABELS = np.arange(SIZE) % 3 == 0


@pytest.mark.parametrize("split", ["random", "chemical-system", "family"])
def test_each_material_is_tested_once(split: str) -> None:
    folds = make_folds(split, size=SIZE, folds=4, seed=0, groups=GROUPS, labels=LABELS)
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(SIZE))
    for fold in folds:
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(SIZE))


def test_random_folds_are_stratified_and_near_equal() -> None:
    folds = make_folds("random", size=SIZE, folds=4, seed=0, labels=LABELS)
    positives = [LABELS[fold.test].sum() for fold in folds]
    assert max(positives) - min(positives) <= 1
    assert max(len(fold.test) for fold in folds) - min(len(fold.test) for fold in folds) <= 2


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, 9), min_size=20, max_size=60), seed=st.integers(0, 5))
def test_no_group_stands_on_both_sides(numbers: list[int], seed: int) -> None:
    groups = np.array([*numbers, 0, 1, 2, 3])
    labels = np.arange(len(groups)) % 2
    for fold in make_folds("chemical-system", size=len(groups), folds=3, seed=seed, groups=groups, labels=labels):
        assert not set(groups[fold.train]) & set(groups[fold.test])


def test_grouped_folds_are_balanced() -> None:
    folds = make_folds("chemical-system", size=SIZE, folds=4, seed=0, groups=GROUPS)
    assert max(len(fold.test) for fold in folds) <= 2 * min(len(fold.test) for fold in folds)


def test_family_leaves_one_out_and_drops_relatives_from_the_training() -> None:
    families = ["cuprate", "cuprate", "a15", "a15", None]
    folds = make_folds("family", size=5, folds=9, seed=0, groups=families, related=["x", "y", "x", "z", "w"])
    by_name = {fold.name: fold for fold in folds}
    assert set(by_name) == {"cuprate", "a15", "unknown"}
    assert by_name["cuprate"].test.tolist() == [0, 1]
    assert by_name["cuprate"].train.tolist() == [3, 4]  # row 2 is a relative of row 0


def test_year_trains_before_and_tests_after() -> None:
    years = np.array([1911, 1930, 1953, 1953, 1954, 1986, 1987, 1993, 2001, 2008, np.nan])
    folds = make_folds("year", size=11, folds=3, seed=0, years=years)
    assert len(folds) == 3
    for fold in folds:
        assert years[fold.train].max() < years[fold.test].min()
        assert 10 not in np.concatenate([fold.train, fold.test])
    assert len(folds[0].train) < len(folds[-1].train)


def test_seed_decides_the_folds() -> None:
    same = [make_folds("random", size=30, folds=3, seed=s)[0].test.tolist() for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_connected_groups_follow_any_shared_key() -> None:
    groups = connected_groups(["La-Cu-O", "La-Cu-O-Sr", "Nb", "Nb-Ti", "La-Cu-O-Sr"], ["p1", "p1", "p2", "p3", "p4"])
    assert groups[0] == groups[1] == groups[4]
    assert len({groups[0], groups[2], groups[3]}) == 3


LEAK = {
    "material_ids": ["a", "b", "c", "d"],
    "parents": ["p", "p", "q", "r"],
    "formulas": ["La1.85Sr0.15CuO4", "La2CuO4", "Nb3Sn", "Nb6Sn2"],
    "systems": ["Cu-La-O-Sr", "Cu-La-O", "Nb-Sn", "Nb-Sn"],
}


CROSSED = Fold("0", np.array([0, 2]), np.array([1, 3]))


@pytest.mark.parametrize(("tc", "merged"), [(18.0, 1), (17.0, 0)], ids=["one label", "labels of their own"])
def test_leakage_table_counts_each_kind(tc: float, merged: int) -> None:
    table = leakage_table(CROSSED, **LEAK, labels=[38.0, 0.0, 18.0, tc])
    assert table == {
        "train": 2,
        "test": 2,
        "materials": 0,
        "parents": 1,
        "doped_parents": 1,
        "compositions": 1,
        "respelled": 1,
        "rounded": 0,
        "polymorphs": 1,
        "merged_polymorphs": merged,
        "systems": 1,
        "relatives": 2,
    }


def test_other_decimals_are_no_other_composition() -> None:
    formulas = ["MgB2", "Mg0.33B0.67", "NbTi", "Nb0.5Ti0.5"]
    table = leakage_table(CROSSED, formulas=formulas)
    assert (table["compositions"], table["respelled"], table["rounded"], table["relatives"]) == (1, 1, 1, 2)


def test_what_no_column_tells_is_not_counted() -> None:
    table = leakage_table(CROSSED, material_ids=LEAK["material_ids"], parents=LEAK["parents"])
    assert (table["materials"], table["parents"], table["relatives"]) == (0, 1, 1)
    assert {name for name, count in table.items() if count is None} == {
        *("doped_parents", "compositions", "respelled", "rounded", "polymorphs", "merged_polymorphs", "systems")
    }
    assert leakage_table(CROSSED)["relatives"] is None


@pytest.mark.parametrize("split", ["chemical-system", "family", "year"])
def test_leaking_fold_stops_every_split_but_random(split: str) -> None:
    table = leakage_table(Fold("0", np.array([0, 2]), np.array([1, 3])), **LEAK)
    check_leakage("random", table)
    with pytest.raises(ModelInputError, match=r"leaks: 1 parents, 1 compositions, 1 systems of the test"):
        check_leakage(split, table)


def test_shares_that_are_allowed_do_not_stop() -> None:
    table = leakage_table(CROSSED, **LEAK)
    check_leakage("chemical-system", table, max_share=1.0)
    with pytest.raises(LeakageError, match=r"\(100% have a relative there, at most 99% may\)"):
        check_leakage("random", table, max_share_random=0.99)


def test_one_material_on_both_sides_stops_the_random_split() -> None:
    table = leakage_table(Fold("0", np.array([0, 1]), np.array([1])), **LEAK)
    with pytest.raises(ModelInputError, match="1 materials"):
        check_leakage("random", table)
    assert "1 materials" in find_leak("family", table, max_share=1.0)


ROWS = np.arange(100)


@pytest.mark.parametrize(
    ("test", "stretches"),
    [(ROWS >= 80, 1), ((ROWS >= 40) & (ROWS < 60), 1), (ROWS % 5 == 3, 20)],
    ids=["last block", "middle block", "every fifth"],
)
def test_sides_that_follow_the_file_are_seen(test: np.ndarray, stretches: int) -> None:
    found, expected, chance = order_test(test)
    assert (found, expected) == (stretches, pytest.approx(20 * 81 / 100))
    assert chance < 1e-15


def test_sides_by_lot_do_not_follow_the_file() -> None:
    chances = [
        order_test(np.isin(ROWS, fold.test))[2]
        for s in range(20)
        for fold in make_folds("random", size=100, folds=5, seed=s)
    ]
    assert min(chances) > 1e-4
    assert np.mean(np.array(chances) < 0.05) < 0.1


def test_chance_of_an_order_is_exact() -> None:
    """Two of four rows: of six ways, three in one stretch, three in two."""
    assert order_test(np.array([True, True, False, False])) == (1, 1.5, 1.0)
    rows = np.zeros(1000, dtype=bool)
    rows[500:502] = True  # one stretch of two: 999 of the 499,500 pairs
    assert order_test(rows)[2] == pytest.approx(2 * 999 / 499500)
    assert order_test(np.arange(7) % 3 == 0)[2] == pytest.approx((5 + 3 + 1) / 35)  # 9 progressions of three in seven


def test_composition_key_does_not_depend_on_the_spelling() -> None:
    assert composition_key("MgB2") == composition_key("B4Mg2") == composition_key("Mg1B2.0") != composition_key("MgB4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "alphabetical"}, "not one of random, chemical-system, family, year"),
        ({"split": "chemical-system"}, "needs groups"),
        ({"split": "year"}, "needs years"),
        ({"split": "random", "folds": 9}, "at least 9 materials, not 4"),
        ({"split": "chemical-system", "groups": ["a", "a", "b", "b"]}, "at least 3 groups of materials, not 2"),
        ({"split": "family", "groups": ["a"] * 4}, "at least 2 families"),
        ({"split": "year", "years": [1986] * 4}, "2 different years"),
        ({"split": "random", "labels": [0, 1]}, "labels has 2 entries for 4 materials"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_told(arguments: dict, message: str) -> None:
    with pytest.raises(ModelInputError, match=message):
        make_folds(**{"size": 4, "folds": 3, "seed": 0, **arguments})
