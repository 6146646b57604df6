"""Folds cover what they should, keep apart what they promise, and the audit sees what they do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.exceptions import ModelInputError
from models.splits import Fold, check_leakage, composition_key, connected_groups, leakage_table, make_folds

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


def test_leakage_table_counts_each_kind() -> None:
    table = leakage_table(Fold("0", np.array([0, 2]), np.array([1, 3])), **LEAK)
    assert table == {
        "train": 2,
        "test": 2,
        "materials": 0,
        "parents": 1,
        "doped_parents": 1,
        "compositions": 1,
        "polymorphs": 1,
        "systems": 1,
    }


@pytest.mark.parametrize("split", ["chemical-system", "family", "year"])
def test_leaking_fold_stops_every_split_but_random(split: str) -> None:
    table = leakage_table(Fold("0", np.array([0, 2]), np.array([1, 3])), **LEAK)
    check_leakage("random", table)
    with pytest.raises(ModelInputError, match=r"leaks: 1 parents, 1 compositions, 1 systems of the test"):
        check_leakage(split, table)


def test_one_material_on_both_sides_stops_the_random_split() -> None:
    table = leakage_table(Fold("0", np.array([0, 1]), np.array([1])), **LEAK)
    with pytest.raises(ModelInputError, match="1 materials"):
        check_leakage("random", table)


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
