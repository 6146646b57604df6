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


def store(place, name, version, score):
    scores = {"random": {name: {SCORE[name]: {"value": score}}, "mean": {SCORE[name]: {"value": 0.9}}}}
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
    store(place, "bnas", "b", 0.40)
    assert score_drop(place, "bnas") is None, "none was promoted"
    promote(place, "bnas", "a")
    found = score_drop(place, "bnas")
    assert (found["split"], found["before"], found["after"]) == ("random", 0.5, 0.4)
    assert found["drop"] == pytest.approx(0.1)
    assert told(place.url, "bnas", 0.05) == [DROPPED]
    assert told(place.url, "bnas", 0.2) == []
    store(place, "bnas", "c", 0.6)
    assert told(place.url, "bnas", 0.05) == []
