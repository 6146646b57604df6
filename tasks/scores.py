"""Scores of held-out predictions (PREDICTIONS), over all folds: by split, model and family of superconductors."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import Score, classification_scores, detection_scores, regression_scores
from tasks.families import FAMILIES, family_of
from tasks.known import element_amounts
from tasks.prediction import SUPERCONDUCTOR_KELVIN

Scoring = Callable[[pa.Table, int], dict[str, Score]]  # of one model's rows, with the seed of the bootstrap


def temperature_scores(rows: pa.Table, seed: int) -> dict[str, Score]:
    """Scores of predicted Tc, and of telling superconductors by it; none where a temperature is missing."""
    if rows["tc_predicted_kelvin"].null_count:
        return {}
    true, predicted = (rows[name].to_numpy() for name in ("tc_kelvin", "tc_predicted_kelvin"))
    detected = detection_scores(true, predicted, SUPERCONDUCTOR_KELVIN, seed=seed)
    return regression_scores(true, predicted, seed=seed) | detected


def class_scores(rows: pa.Table, seed: int) -> dict[str, Score]:
    """Scores of the probability of being a superconductor."""
    label, probability = (rows[name].to_numpy(zero_copy_only=False) for name in ("superconductor", "probability"))
    return classification_scores(label, probability, seed=seed)


def score_models(table: pa.Table, scoring: Scoring, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores by split and model; models without an answer are left out."""
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for split, model, rows in by_model(table):
        if found := scoring(rows, seed):
            scores.setdefault(split, {})[model] = {name: score.as_json() for name, score in found.items()}
    return scores


def score_families(table: pa.Table, scoring: Scoring, seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Number of materials and scores by split, family and model."""
    families = pa.array([family_of(element_amounts(formula)) for formula in table["formula"].to_pylist()], pa.string())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for family in FAMILIES:
        rows = table.filter(pc.equal(families, family))
        for split, models in score_models(rows, scoring, seed).items():
            members = pc.count_distinct(rows.filter(pc.equal(rows["split"], split))["material_id"]).as_py()
            found.setdefault(split, {})[family] = {"materials": members, "scores": models}
    return found


def by_model(table: pa.Table) -> list[tuple[str, str, pa.Table]]:
    """The rows of each model on each split, where there are any."""
    found = [
        (split, model, table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["model"], model))))
        for split in table["split"].unique().to_pylist()
        for model in table["model"].unique().to_pylist()
    ]
    return [part for part in found if len(part[2])]
