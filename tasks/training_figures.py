"""Pictures of a training: scores beside the baselines, held-out predictions, trust in the intervals, loss curves.

The report and the artifacts of a training draw the same ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from models.element_maps import pearson_matrix, place_elements
from models.reliability import share_intervals
from tasks.element_figures import CORRELATION_CAPTION, MAP_CAPTION, correlation_figure, element_map_figure
from tasks.figures import (
    Interval,
    calibration_figure,
    curve_figure,
    figure_bytes,
    parity_figure,
    roc_figure,
    score_figure,
)
from tasks.model_store import latest_version, model_folder
from tasks.progress import leave_figure
from tasks.report_data import SPLIT_TITLES, NetworkScores, read_scores
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.workspace import Workspace

MAX_CURVES = 4  # baselines in a ROC figure: the best ones


def training_figures(network: NetworkScores, curves: pa.Table | None = None) -> dict[str, tuple[Figure, str]]:
    """Figures with their captions, by name: ``scores``, ``predictions``, ``calibration``, ``curves``.

    Parameters
    ----------
    curves
        Rows of CURVES; none: no loss curves.
    """
    found = {
        "scores": (_scores(network), f"{network.title} and its baselines on the same folds; lines are 95 % intervals.")
    }
    if panels := _parity_panels(network) if network.network == "bnas" else {}:
        caption = "Measured and predicted Tc of each labelled material, predicted by a network that had not seen it."
        found["predictions"] = (parity_figure(panels), caption)
    if rocs := roc_panels(network, MAX_CURVES) if network.network == "s2snet" else {}:
        caption = f"Held-out predictions of {network.title} and its best baselines."
        found["predictions"] = (roc_figure(rocs, network.title), caption)
    if drawn := draw_calibration(network):
        found["calibration"] = drawn
    if curves is not None and len(curves):
        caption = "Mean loss of each epoch, and of what was held out, which decides nothing; below, the learning rate."
        found["curves"] = (curve_figure(_curves_by_part(curves)), caption)
    return found


def draw_calibration(network: NetworkScores) -> tuple[Figure, str] | None:
    """Reliability of a network's intervals or probabilities with its caption; None where none is stored."""
    points = calibration_points(network.calibration)
    if not points:
        return None
    caption = "On held-out materials; on the line, intervals and probabilities mean what they say."
    labels = (
        ("meant coverage", "share inside") if network.network == "bnas" else ("probability", "share that superconducts")
    )
    before = _points(network.calibration, "reliability_uncalibrated", "predicted")
    if before:
        caption += " Bars are 95 % intervals of the shares."
    intervals = share_intervals(network.calibration.get("reliability", ()))
    return calibration_figure(points, *labels, before, intervals), caption


def calibration_points(calibration: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Expected and observed shares of a stored calibration."""
    return _points(calibration, "coverage", "expected") or _points(calibration, "reliability", "predicted")


def embedding_figures(s2snet: S2SEnsemble) -> dict[str, tuple[Figure, str]]:
    """Figures of S2SNet's elements with their captions: ``elements``, ``element-map``."""
    embeddings = s2snet.element_embeddings()
    return {
        "elements": (correlation_figure(*pearson_matrix(embeddings)), CORRELATION_CAPTION),
        "element-map": (element_map_figure(place_elements(embeddings)), MAP_CAPTION),
    }


def write_training_figures(workspace: Workspace, name: str) -> list[str]:
    """Figures of the latest version of a network: drawn once, into its folder, and left as artifacts of each run."""
    network = read_scores(workspace, name, latest_version(workspace, name))
    if network is None:
        return []
    folder = f"{model_folder(name, network.version)}/figures"
    captions = f"{folder}/captions.json"  # written last
    if not workspace.exists(captions):
        workspace.write_json(captions, _draw(workspace, network, folder))
    told = workspace.read_json(captions)
    for title, caption in told.items():
        leave_figure(f"{name}-{title}", workspace.read_bytes(f"{folder}/{title}.png"), f"{network.title}: {caption}")
    return [f"{folder}/{title}.svg" for title in told]


def _draw(workspace: Workspace, network: NetworkScores, folder: str) -> dict[str, str]:
    """Write each figure as SVG and PNG; gives the captions by title."""
    curves = f"{model_folder(network.network, network.version)}/curves.parquet"
    figures = training_figures(network, workspace.read_table(curves) if workspace.exists(curves) else None)
    if network.network == "s2snet":
        figures |= embedding_figures(load_s2snet(workspace, network.version))
    for title, (figure, _) in figures.items():
        for kind in ("svg", "png"):
            workspace.write_bytes(f"{folder}/{title}.{kind}", figure_bytes(figure, kind))
    return {title: caption for title, (_, caption) in figures.items()}


def _points(calibration: Mapping[str, Any], name: str, expected: str) -> list[tuple[float, float]]:
    return [(row[expected], row["observed"]) for row in calibration.get(name, ()) if row["observed"] is not None]


def _scores(network: NetworkScores) -> Figure:
    metric = network.headline
    splits: dict[str, dict[str, Interval]] = {}
    for split, models in network.scores.items():
        named = {network.title if model == network.network else model: scores for model, scores in models.items()}
        title = SPLIT_TITLES.get(split, split)
        splits[title] = {model: scores[metric.name] for model, scores in named.items() if metric.name in scores}
    return score_figure(
        splits, network.title, metric.title.replace("R²", "$R^2$"), 0.5 if metric.name == "roc_auc" else 0.0
    )


def _parity_panels(network: NetworkScores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    panels = {}
    for split in network.scores:
        table = own_predictions(network, split)
        if len(table):
            pair = table["tc_kelvin"].to_numpy(), table["tc_predicted_kelvin"].to_numpy()
            panels[SPLIT_TITLES.get(split, split).capitalize()] = pair
    return panels


def roc_panels(
    network: NetworkScores, curves: int | None = None
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Labels and held-out probabilities by split and model: the network and its best ``curves`` baselines, or all."""
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for split in network.scores:
        for model in network.models(split)[: None if curves is None else curves + 1]:
            table = own_predictions(network, split, model)
            if len(table):
                label = table["superconductor"].to_numpy(zero_copy_only=False).astype(int)
                name = network.title if model == network.network else model
                found = panels.setdefault(SPLIT_TITLES.get(split, split).capitalize(), {})
                found[name] = (label, table["probability"].to_numpy())
    return panels


def own_predictions(network: NetworkScores, split: str, model: str | None = None) -> pa.Table:
    """Held-out predictions of a model on a split, of the network itself if none is named."""
    table = network.predictions
    return table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["model"], model or network.network)))


def _curves_by_part(curves: pa.Table) -> dict[str, dict[str, np.ndarray]]:
    """Columns of CURVES as arrays, by part."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for part in curves["part"].unique().to_pylist():
        rows = curves.filter(pc.equal(curves["part"], part)).sort_by("epoch")
        parts[part] = {name: rows[name].to_numpy() for name in ("epoch", "loss", "validation_loss", "learning_rate")}
    return parts
