"""Enrichment: hits against chance, exact where it can be counted by hand."""

from math import comb

import numpy as np
import pytest

from models.enrichment import enrichment, rank_pool
from models.exceptions import ModelInputError

FOUND = np.array([1, 1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=bool)  # a list of ten, best first


def test_hits_and_chance_are_those_counted_by_hand():
    score = enrichment(FOUND, 4, seed=0)
    assert score.hits == 3
    assert score.expected == pytest.approx(1.2)
    assert score.enrichment == pytest.approx(2.5)
    assert score.largest == pytest.approx(2.5)
    assert score.p_value == pytest.approx(comb(4, 3) * comb(6, 0) / comb(10, 3))
    assert 0 <= score.low <= score.enrichment <= score.high


def test_the_whole_pool_has_no_enrichment_and_no_doubt():
    score = enrichment(FOUND, 10, seed=0)
    assert (score.enrichment, score.low, score.high) == pytest.approx((1, 1, 1))
    assert score.p_value == pytest.approx(1)


def test_a_list_by_lot_is_seldom_beyond_its_interval():
    generator = np.random.default_rng(0)
    beyond = 0
    for trial in range(60):
        found = np.zeros(300, dtype=bool)
        found[generator.choice(300, 60, replace=False)] = True
        score = enrichment(found, 40, seed=trial, resamples=200)
        beyond += not score.low <= 1 <= score.high
    assert beyond <= 9  # 5 % are expected; more than 9 of 60 has a chance below 1 in 1,000


def test_equal_scores_are_ranked_by_lot_and_others_by_their_size():
    scores = np.repeat([1.0, 3.0, 2.0], 20)
    order = rank_pool(scores, seed=1)
    assert scores[order].tolist() == sorted(scores, reverse=True)
    assert order[:20].tolist() != sorted(order[:20])
    assert rank_pool(scores, seed=1).tolist() == order.tolist()


@pytest.mark.parametrize(
    ("found", "top", "message"),
    [
        (np.zeros(5, dtype=bool), 2, "Nothing in the pool was found later"),
        (FOUND, 11, "top=11 is not from 1 to the 10 materials"),
    ],
    ids=["nothing", "too long"],
)
def test_what_has_no_enrichment_is_refused(found, top, message):
    with pytest.raises(ModelInputError, match=message):
        enrichment(found, top, seed=0)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ModelInputError, match="finite"):
        rank_pool(np.array([1.0, np.nan]), seed=0)
