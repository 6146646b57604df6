"""What the parts of a training of S2SNet have answered, as predictions with scores, calibration and gains."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from models.blending import fit_blend, fit_share, held_out_blend, held_out_values
from models.crystal_trees import CrystalTrees
from models.metrics import auc_gain
from models.reliability import (
    METHODS,
    as_document,
    brier_score,
    choose_method,
    compare_methods,
    held_out_probabilities,
    reliability_curve,
)
from models.splits import Fold
from tasks.bnas_ensemble import CALIBRATION_SPLITS
from tasks.s2snet_data import NAME, Crystals, TrainingPlan
from tasks.s2snet_pretraining import NAME as PRETRAINING
from tasks.s2snet_pretraining import pretraining_config
from tasks.schemas import PREDICTIONS
from tasks.scores import by_model
from tasks.workspace import Workspace

NETWORK_ALONE = "s2snet, network alone"
TREES_ALONE = "s2snet, trees alone"
ANSWERS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # among the measured crystals
        pa.field("logit", pa.float64(), nullable=False),
        pa.field("log_tc", pa.float64()),  # ln(Tc/K + 1); null where the network has no such output
        pa.field("trees_logit", pa.float64()),  # null where there are no trees
        pa.field("trees_log_tc", pa.float64()),
    ]
)


def as_answers(
    split: str, fold: Fold, answers: np.ndarray, trees: CrystalTrees | None, features: np.ndarray | None
) -> pa.Table:
    """Answers of a network (crystals, 2) and of trees on a fold's test crystals as a table (ANSWERS)."""
    count = len(fold.test)
    columns = {"split": [split] * count, "fold": [fold.name] * count, "row": fold.test}
    columns |= {"logit": answers[:, 0], "log_tc": pa.array(answers[:, 1], pa.float64(), from_pandas=True)}
    if trees is not None and features is not None:
        seen = features[fold.test]
        found = {"trees_logit": trees.logits(seen), "trees_log_tc": trees.log_tc(seen)}
        columns |= {name: pa.array(values, pa.float64(), from_pandas=True) for name, values in found.items()}
    else:
        columns |= dict.fromkeys(("trees_logit", "trees_log_tc"), pa.nulls(count, pa.float64()))
    return pa.table(columns, schema=ANSWERS)


def as_predictions(
    crystals: Crystals,
    split: str,
    fold: str,
    model: str,
    rows: np.ndarray,
    probabilities: np.ndarray,
    tc_predicted: np.ndarray,
) -> pa.Table:
    """Probabilities and temperatures (kelvin, NaN: none) of measured crystals as a table (PREDICTIONS)."""
    measured = crystals.measured
    ids, formulas, tc = measured.column("material_id"), measured.formulas, measured.tc_kelvin
    found = [
        {
            "split": split,
            "fold": fold,
            "model": model,
            "material_id": ids[row],
            "formula": formulas[row],
            "tc_kelvin": float(tc[row]),
            "tc_predicted_kelvin": float(predicted) if np.isfinite(predicted) else None,
            "superconductor": bool(tc[row] > 0),
            "probability": float(probability),
        }
        for row, probability, predicted in zip(rows, probabilities, tc_predicted, strict=True)
    ]
    return pa.Table.from_pylist(found, schema=PREDICTIONS)


def choose_calibration(crystals: Crystals, answers: pa.Table) -> str:
    """The calibration of least held-out log loss on the most honest split; three to choose from flatter little."""
    return choose_method(*_blended(crystals, _calibrating(answers)))


def own_predictions(crystals: Crystals, answers: pa.Table, method: str) -> pa.Table:
    """Calibrated held-out probabilities and temperatures (PREDICTIONS), each fold by the other folds.

    Where there are trees: of the blend, of the network alone and of the trees alone.
    """
    tables = []
    for split in answers["split"].unique().to_pylist():
        chosen = answers.filter(pc.equal(answers["split"], split))
        folds, rows = np.array(chosen["fold"].to_pylist()), chosen["row"].to_numpy()
        for model, (probability, log_tc) in _held_out(chosen, crystals, rows, folds, method).items():
            tc = np.expm1(np.maximum(log_tc, 0.0))
            for fold in np.unique(folds):
                here = folds == fold
                tables.append(
                    as_predictions(crystals, split, str(fold), model, rows[here], probability[here], tc[here])
                )
    return pa.concat_tables(tables)


def _held_out(
    chosen: pa.Table, crystals: Crystals, rows: np.ndarray, folds: np.ndarray, method: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Probability and ln(Tc/K + 1) of each model on the rows of one split."""
    labels, target = crystals.labels[rows], crystals.log_tc[rows]
    logits, log_tc, trees, trees_tc = _numbers(chosen)
    alone = (held_out_probabilities(logits, labels, folds.tolist(), method), log_tc)
    if np.isnan(trees).any():
        return {NAME: alone}
    both_tc = held_out_values(log_tc, trees_tc, target, folds) if np.isfinite(log_tc).all() else trees_tc
    return {
        NAME: (held_out_blend(logits, trees, labels, folds, method)[1], both_tc),
        NETWORK_ALONE: alone,
        TREES_ALONE: (held_out_probabilities(trees, labels, folds.tolist(), method), trees_tc),
    }


def _numbers(answers: pa.Table) -> list[np.ndarray]:
    """Columns ``logit``, ``log_tc``, ``trees_logit`` and ``trees_log_tc``, float64; NaN where one is null."""
    names = ("logit", "log_tc", "trees_logit", "trees_log_tc")
    return [answers[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names]


def score_fusion(table: pa.Table, seed: int) -> dict[str, dict[str, Any]]:
    """What the blend has more of ROC AUC than each of its parts, by split, with the interval of a paired bootstrap."""
    gains: dict[str, dict[str, Any]] = {}
    found = {(split, model): rows.sort_by("material_id") for split, model, rows in by_model(table)}
    for split in table["split"].unique().to_pylist():
        for part in (NETWORK_ALONE, TREES_ALONE):
            if (split, part) not in found:
                continue
            both, alone = found[split, NAME], found[split, part]
            label = both["superconductor"].to_numpy(zero_copy_only=False)
            probabilities = (rows["probability"].to_numpy() for rows in (both, alone))
            gains.setdefault(split, {})[part] = auc_gain(label, *probabilities, seed=seed).as_json()
    return gains


def calibrate(crystals: Crystals, answers: pa.Table, own: pa.Table, method: str) -> dict[str, Any]:
    """Calibration of the ensemble, the methods it was chosen from, the trees' shares, the reliability before and after.

    ``shares`` is None without trees; its ``tc`` is None where only the trees know a temperature.
    """
    chosen = _calibrating(answers)
    split, rows = chosen["split"][0].as_py(), chosen["row"].to_numpy()
    judged = own.filter(pc.and_(pc.equal(own["split"], split), pc.equal(own["model"], NAME)))
    labels, target = crystals.labels[rows], crystals.log_tc[rows]
    raw, log_tc, trees, trees_tc = _numbers(chosen)
    shares: dict[str, float | None] | None = None
    if np.isfinite(trees).all():
        blend, _ = fit_blend(raw, trees, labels)
        known = np.isfinite(log_tc).all()
        shares = {"logit": blend.share, "tc": fit_share(log_tc, trees_tc, target).share if known else None}
        raw = blend(raw, trees)
    held_out = judged["probability"].to_numpy(), judged["superconductor"].to_numpy(zero_copy_only=False).astype(float)
    return {
        "split": split,
        "materials": len(labels),
        "method": method,
        "compared": compare_methods(*_blended(crystals, chosen)),
        "fitted": as_document(method, METHODS[method](raw, labels)),
        "shares": shares,
        "reliability": reliability_curve(held_out[1], held_out[0]),
        "brier": brier_score(held_out[1], held_out[0]),
        "reliability_uncalibrated": reliability_curve(labels, expit(raw)),
        "brier_uncalibrated": brier_score(labels, expit(raw)),
    }


def _calibrating(answers: pa.Table) -> pa.Table:
    """The answers of the split that calibrates."""
    split = next(name for name in CALIBRATION_SPLITS if name in answers["split"].to_pylist())
    return answers.filter(pc.equal(answers["split"], split))


def _blended(crystals: Crystals, chosen: pa.Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits of one split, blended by the other folds where there are trees, with labels and folds."""
    logits, _, trees, _ = _numbers(chosen)
    labels, folds = crystals.labels[chosen["row"].to_numpy()], chosen["fold"].to_pylist()
    if np.isfinite(trees).all():
        logits, _ = held_out_blend(logits, trees, labels, np.array(folds))
    return logits, labels, folds


def seen_in_pretraining(workspace: Workspace, plan: TrainingPlan, own: pa.Table) -> dict[str, Any]:
    """How many test crystals of each split a pre-training of another flow has learnt from, without their labels."""
    if plan.pretrained is None:
        return {}
    known = set(pretraining_config(workspace, plan.pretrained)["material_ids"])
    seen = dict.fromkeys(own["split"].unique().to_pylist(), 0)
    for row in own.filter(pc.equal(own["model"], NAME)).select(["split", "material_id"]).to_pylist():
        seen[row["split"]] += row["material_id"] in known
    return {"pretraining": {"name": PRETRAINING, "version": plan.pretrained, "test_materials_seen": seen}}
