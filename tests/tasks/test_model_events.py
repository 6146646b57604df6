"""Networks are ready once both have seen the same data; one that got worse is told."""

import pytest
from prefect import flow

from tasks.dataset_events import ANNOUNCED
from tasks.model_events import DROPPED, READY, score_drop, tell_of_training
from tasks.model_store import promote, save_model
from tasks.workspace import Workspace
from tests.tasks.test_model_store import MEMBERS, PREDICTED, SIDES

pytestmark = pytest.mark.usefixtures("prefect_harness")
SCORE = {"bnas": "r2_log_all", "s2snet": "roc_auc"}


@flow(name="told")
def told(workspace, name, allowed=0.05):
    return [event.event for event in tell_of_training(workspace, name, allowed)]


def store(place, name, version, score, split="random", also=()):
    scores = {
        where: {name: {SCORE[name]: {"value": value}}, "mean": {SCORE[name]: {"value": 0.9}}}
        for where, value in ({split: score} | dict(also)).items()
    }
    tables = {"predictions": PREDICTED, "folds": SIDES}
    save_model(place, name, version, members=MEMBERS, config={}, metrics={"scores": scores}, **tables)


@pytest.fixture
def place(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write_json(ANNOUNCED, {"grid": "first"})
    return workspace


def test_the_training_that_ends_last_tells_that_both_are_ready(place):
    store(place, "bnas", "a", 0.5)
    assert told(place.url, "bnas") == []
    store(place, "s2snet", "b", 0.8)
    assert told(place.url, "s2snet") == [READY]
    assert told(place.url, "bnas") == [READY], "a training on demand, on the same data"
    place.write_json(ANNOUNCED, {"grid": "second"})
    assert told(place.url, "s2snet") == [], "BNAS has not seen the new data"
    assert told(place.url, "bnas") == [READY]
    assert tell_of_training(place.url, "bnas", 0.05) == [], "no flow runs"


def test_a_score_that_dropped_by_more_than_is_allowed_is_told(place):
    store(place, "bnas", "a", 0.50)
    assert told(place.url, "bnas") == [], "the first version"
    store(place, "bnas", "b", 0.40)
    promote(place, "bnas", "a")
    found = score_drop(place, "bnas")
    assert (found["split"], found["before"], found["after"]) == ("random", 0.5, 0.4)
    assert found["drop"] == pytest.approx(0.1)
    assert told(place.url, "bnas", 0.05) == [DROPPED]
    assert told(place.url, "bnas", 0.2) == []
    store(place, "bnas", "c", 0.6)
    assert told(place.url, "bnas", 0.05) == []
    store(place, "bnas", "d", 0.54)
    assert told(place.url, "bnas", 0.05) == [], "better than the promoted one"


def test_without_a_promotion_it_is_compared_with_the_version_before(place):
    for version, score, events in (("a", 0.5, []), ("b", 0.4, [DROPPED]), ("b", 0.4, []), ("c", 0.38, [])):
        store(place, "bnas", version, score)
        assert told(place.url, "bnas", 0.05) == events
    store(place, "bnas", "d", 0.1)
    found = score_drop(place, "bnas")
    assert (found["used"], found["latest"], found["before"], found["after"]) == ("c", "d", 0.38, 0.1)
    place.remove("models/bnas/c/metrics.json")
    assert score_drop(place, "bnas") is None, "cleaned up"


def test_scores_are_compared_on_folds_that_both_have(place):
    store(place, "bnas", "a", 0.5, split="family")
    promote(place, "bnas", "a")
    store(place, "bnas", "b", 0.4)
    assert score_drop(place, "bnas") is None
    store(place, "bnas", "a", 0.5, split="family", also={"random": 0.7})
    store(place, "bnas", "b", 0.4)
    found = score_drop(place, "bnas")
    assert (found["split"], found["before"], found["after"]) == ("random", 0.7, 0.4)
