"""The search resumes, counts what is finished, keeps the reported fold unseen, and writes its table."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from flows.tune import tune_bnas as tune
from models.exceptions import TrainingError
from tasks.bnas_data import cross_validations, read_labelled
from tasks.exceptions import InputError
from tasks.schemas import TRIALS
from tasks.settings import TrainingSettings, TuningSettings
from tasks.tuning import (
    PARAMETERS,
    PUBLISHED,
    SPACES,
    finished_trials,
    gather_trials,
    importance_table,
    importances,
    open_study,
    plan_trials,
    run_trial,
    storage_url,
    suggest,
    tuning_fold,
)
from tasks.workspace import Workspace
from tests.tasks.grid_workspace import make_grid_workspace

TRAINING = TrainingSettings(config="tiny", folds=3, device="cpu")
SMALL = TuningSettings(trials=3, epochs=2, space="small")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_grid_workspace(tmp_path, count=24)


def test_table_ii_stands_in_the_papers_ranges() -> None:
    assert len(PUBLISHED) == 14
    for name, column in zip(PARAMETERS, zip(*(values for _, values in PUBLISHED), strict=True), strict=True):
        assert (min(column), max(column)) == SPACES["paper"][name]
    assert min(PUBLISHED) == (0.228, (3, 534, 64, 1038, 0.127, 0.197))


def test_new_study_begins_with_the_published_points(workspace: Workspace) -> None:
    settings = TuningSettings(epochs=2)
    waiting = open_study(workspace, settings, TRAINING).get_trials(states=(TrialState.WAITING,))
    assert [trial.user_attrs["published_loss"] for trial in waiting] == [loss for loss, _ in PUBLISHED]
    open_study(workspace, settings, TRAINING)
    assert len(open_study(workspace, settings, TRAINING).get_trials()) == 14


def test_flow_resumes_and_counts_what_is_finished(workspace: Workspace, prefect_harness: None) -> None:
    report = tune(workspace.url, SMALL.model_copy(update={"trials": 2}), TRAINING, 1)
    assert report.counts["trials"] == 2
    first = workspace.read_table("tuning/bnas.parquet").to_pylist()
    report = tune(workspace.url, SMALL, TRAINING, 1)
    assert report.counts["trials"] == 3
    table = workspace.read_table("tuning/bnas.parquet")
    assert table.schema.equals(TRIALS)
    rows = table.to_pylist()
    assert rows[:2] == first
    assert rows[2]["epochs"] == 2
    assert rows[2]["loss"] > 0
    again = tune(workspace.url, SMALL, TRAINING, 1)
    assert again.reused


def test_trials_repeat_for_a_seed(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        place = make_grid_workspace(tmp_path / name, count=24)
        for number in plan_trials(place, SMALL, TRAINING):
            run_trial(place.url, SMALL, TRAINING, number)
        found.append([(trial.params, trial.value) for trial in finished_trials(open_study(place, SMALL, TRAINING))])
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_killed_trial_starts_again_with_its_parameters(workspace: Workspace) -> None:
    study = open_study(workspace, SMALL, TRAINING)
    lost = study.ask()
    lost.suggest_int("depth", 1, 4)
    assert plan_trials(workspace, SMALL, TRAINING) == [0, 1, 2]
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert [trial.system_attrs["fixed_params"] for trial in waiting] == [lost.params]
    run_trial(workspace.url, SMALL, TRAINING, 0)
    assert finished_trials(study)[0].params["depth"] == lost.params["depth"]


def test_held_back_fold_is_never_seen(workspace: Workspace) -> None:
    labelled = read_labelled(workspace)
    fold = tuning_fold(workspace, TRAINING)
    reported = cross_validations(labelled, TRAINING)["chemical-system"][0].test
    assert not set(fold.train) & set(fold.validation)
    assert not (set(fold.train) | set(fold.validation)) & set(reported)
    assert not set(labelled.groups[fold.train]) & set(labelled.groups[fold.validation])


def test_failed_trial_is_refused_with_its_reason(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise TrainingError("The loss is nan in epoch 1, step 2")

    monkeypatch.setattr("tasks.tuning.train_network", explode)
    run_trial(workspace.url, SMALL, TRAINING, 0)
    outcome = gather_trials(open_study(workspace, SMALL, TRAINING), SMALL)
    assert (outcome.rows_in, outcome.accounted) == (1, 0)
    assert outcome.rejected[0].reason == "The loss is nan in epoch 1, step 2"


def test_trial_that_is_behind_is_pruned(workspace: Workspace) -> None:
    settings = SMALL.model_copy(update={"epochs": 3})
    study = open_study(workspace, settings, TRAINING)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("embed_dropout",)}
    for _ in range(5):
        study.add_trial(
            optuna.trial.create_trial(
                params={"embed_dropout": 0.5},
                distributions=space,
                value=1e-9,
                intermediate_values={1: 1e-9, 2: 1e-9, 3: 1e-9},
            )
        )
    run_trial(workspace.url, settings, TRAINING, 5)
    last = study.get_trials()[-1]
    assert last.state == TrialState.PRUNED
    assert last.user_attrs["epochs"] < 3


def test_study_of_other_data_or_settings_is_refused(workspace: Workspace) -> None:
    open_study(workspace, SMALL, TRAINING)
    with pytest.raises(InputError, match="its losses cannot be compared"):
        open_study(workspace, SMALL.model_copy(update={"epochs": 9}), TRAINING)
    open_study(workspace, SMALL.model_copy(update={"epochs": 9, "study": "longer"}), TRAINING)


def test_remote_workspace_needs_a_storage_url() -> None:
    remote = Workspace("memory://tuning")
    with pytest.raises(InputError, match="give an Optuna storage URL"):
        storage_url(remote, SMALL)
    assert storage_url(remote, SMALL.model_copy(update={"storage": "postgresql://h/db"})) == "postgresql://h/db"


def test_importances_name_what_moves_the_loss(workspace: Workspace, prefect_harness: None) -> None:
    """In a study whose loss is a function of one parameter; and the flow leaves table and picture."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(30):
        trial = study.ask()
        values = suggest(trial, SPACES["small"])
        study.tell(trial, values["dropout"] ** 2 + 1e-6 * number)
    found = {row["parameter"]: row["importance"] for row in importances(study)}
    assert max(found, key=lambda name: found[name]) == "dropout"
    assert found["dropout"] > 0.8
    assert importances(optuna.create_study()) == []
    settings = TuningSettings(trials=5, epochs=1, space="small", study="shown")
    tune(workspace.url, settings, TrainingSettings(config="tiny", device="cpu"))
    assert sum(row["importance"] for row in workspace.read_table(importance_table(settings)).to_pylist()) > 0.99
    assert workspace.read_bytes("tuning/shown-importance.svg").startswith(b"<?xml")


def test_a_study_in_postgresql_goes_on_and_is_kept_apart_by_name(workspace: Workspace, postgres_url: str) -> None:
    """By pg8000, on a real server: trials, their losses and the key of the study come back in another connection."""
    pytest.importorskip("pg8000")
    url = postgres_url.replace("postgresql://", "postgresql+pg8000://")
    settings = SMALL.model_copy(update={"storage": url, "trials": 2, "study": "here"})
    assert plan_trials(workspace, settings, TRAINING) == [0, 1]
    run_trial(workspace.url, settings, TRAINING, 0)
    (trial,) = finished_trials(open_study(workspace, settings, TRAINING))
    assert trial.value > 0
    assert plan_trials(workspace, settings, TRAINING) == [1], "the first trial stands in the database"
    assert len(plan_trials(workspace, settings.model_copy(update={"study": "there"}), TRAINING)) == 2
    with pytest.raises(InputError, match="other data, ranges or training settings"):
        open_study(workspace, settings.model_copy(update={"epochs": 3}), TRAINING)
    assert not list(workspace.list("tuning/*.db"))
    gathered = gather_trials(open_study(workspace, settings, TRAINING), settings)
    assert gathered.tables["tuning/here.parquet"].to_pylist()[0]["loss"] == pytest.approx(trial.value)
