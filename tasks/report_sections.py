"""The parts of the report that speak of all materials, as the page's template takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from tasks.densities import ENERGIES, HIGH_KELVIN, MeanDensities, densities_by_tc
from tasks.element_bars import element_bar_figure
from tasks.figures import (
    dos_figure,
    element_figure,
    to_data_url,
)
from tasks.known import CLASSES, element_amounts
from tasks.mp_identifiers import material_number
from tasks.report_data import SPLIT_TITLES, Metric, NetworkScores, element_shares
from tasks.report_panels import kelvin_text, pretty_formula
from tasks.stages import StageReport
from tasks.training_figures import own_predictions, training_figures

BARS = "The same shares as bars, by atomic number."
TASKS = {"bnas": "bands to Tc", "s2snet": "crystal structure to superconductor or not"}
COLUMNS = (
    ("rank", "rank", "number", "1 is best; known materials and abstentions have none"),
    ("formula", "formula", "text", "of the cell that was computed"),
    ("tc", "T<sub>c</sub> (K)", "number", "BNAS, with its interval"),
    ("p", "probability", "number", "S2SNet's probability of superconductivity, with its interval"),
    ("score", "score (K)", "number", "probability times Tc"),
    ("agree", "agree", "number", "BNAS at least 1 K and S2SNet at least 0.5, or neither"),
    ("distance", "distance", "number", "from the training set; above 1 is far"),
    ("known", "measured", "number", "3DSC's class of agreement with a measured composition, and its Tc"),
    ("flags", "flags", "text", "toxic or radioactive elements; held-out predictions"),
    ("space group", "space group", "text", ""),
    ("gap", "gap (eV)", "number", "PBE band gap"),
    ("id", "id", "text", ""),
)
LIMITS = (
    "The networks learn correlations in published measurements. Nothing here computes electron-phonon coupling or "
    "spin fluctuations, and a high rank is a reason to look closer, not a prediction from theory.",
    "Bands are PBE without spin-orbit coupling, on relaxed or published cells, at ambient pressure. Strongly "
    "correlated, magnetic and heavy-element compounds suffer most.",
    "A measured “no superconductivity” holds down to the lowest temperature that was tried; an extract that gives "
    "Tc = 0 often only means that no value was reported.",
    "Disordered and doped compounds are represented by one ordered cell; real doping moves bands more subtly.",
    "The distance from the training set looks at composition only: a known composition in a new structure is near.",
    "Whether a candidate can be made, and is stable, is only known where the crystal's source says so.",
    "With few training materials intervals are wide and scores move from fold to fold: read the intervals, not the "
    "third digit.",
)


def score_section(network: NetworkScores) -> dict[str, Any]:
    """Verdicts, tables and figures of one network."""
    splits = list(network.scores)
    return {
        "title": network.title,
        "task": TASKS[network.network],
        "metrics": network.metrics,
        "calibration": network.calibration_text,
        "verdicts": [
            {"text": network.verdict(split), "wins": network.best(split, network.headline) == network.network}
            for split in splits
        ],
        "tables": [_score_table(network, split) for split in splits],
        "figures": [_picture("", figure, caption) for figure, caption in training_figures(network).values()],
    }


def candidate_row(row: Mapping[str, Any], has_panel: bool) -> dict[str, Any]:
    """A row of CANDIDATES with the texts that the table shows."""
    held_out = {row["tc_origin"], row["probability_origin"]} - {"ensemble"}
    known = row["known"] if row["known"] != "none" else ""
    return dict(row) | {
        "panel": has_panel,
        "pretty": pretty_formula(row["formula"]),
        "status": "known" if known else "far" if row["abstain"] else "new",
        "elements": " ".join(sorted(element_amounts(row["formula"]))),
        "tc": kelvin_text(row["tc_kelvin"]),
        "tc_range": _range(row["tc_low_kelvin"], row["tc_high_kelvin"], ".2g"),
        "p": f"{row['probability']:.2f}",
        "p_range": _range(row["probability_low"], row["probability_high"], ".2f"),
        "score_text": kelvin_text(row["score"]),
        "known_order": CLASSES.index(known) if known else len(CLASSES),
        "known_text": _known_text(row) if known else "",
        "hazard_text": ", ".join(row["hazards"]),
        "held_out": " and ".join(sorted(held_out)).replace("out-of-fold", "held out"),
        "number": (number := material_number(row["material_id"])),
        "link": number and f"https://materialsproject.org/materials/{number}",
    }


def report_densities(bands: pa.Table, index: pa.Table, candidates: pa.Table) -> dict[str, MeanDensities]:
    """Mean densities of states by the measured Tc of the labelled materials and the predicted one of the ranked."""
    labels = dict(zip(index["material_id"].to_pylist(), index["tc_kelvin"].to_pylist(), strict=True))
    ranked = candidates.filter(pc.is_valid(candidates["rank"]))
    predicted = dict(zip(ranked["material_id"].to_pylist(), ranked["tc_kelvin"].to_pylist(), strict=True))
    return densities_by_tc(bands, labels, predicted)


def draw_densities(densities: Mapping[str, MeanDensities]) -> Figure:
    """The figure of mean densities of states by critical temperature."""
    return dos_figure({name: (mean.materials, mean.densities) for name, mean in densities.items()}, ENERGIES)


def chemistry_section(
    candidates: pa.Table, measured: pa.Table, densities: Mapping[str, MeanDensities]
) -> list[dict[str, Any]]:
    """Element frequencies and mean densities of states."""
    figures = []
    known = [element_amounts(f) for f in measured.filter(pc.greater(measured["tc_kelvin"], 0))["formula"].to_pylist()]
    ranked = candidates.filter(pc.is_valid(candidates["rank"]))
    likely = ranked.filter(pc.and_(ranked["agree"], pc.greater_equal(ranked["probability"], 0.5)))
    chosen = [element_amounts(formula) for formula in likely["formula"].to_pylist()]
    if known:
        groups = {f"Known superconductors ({len(known)})": element_shares(known)}
        if chosen:
            groups[f"Candidates that both networks call superconductors ({len(chosen)})"] = element_shares(chosen)
        caption = "Share of the compositions that hold each element, in per cent, on one colour scale."
        figures.append(_picture("Which elements", element_figure(groups), caption))
        figures.append(_picture("The commonest elements", element_bar_figure(groups), BARS))
    if densities:
        caption = (
            "Mean s, p and d densities of states per atom of superconductors, by measured Tc, and of the ranked "
            f"candidates that BNAS predicts above {HIGH_KELVIN:g} K where there are any. In brackets: the number of "
            "materials with densities. They are those inside the atomic spheres; what lies between is not counted."
        )
        figures.append(_picture("Densities of states by critical temperature", draw_densities(densities), caption))
    return figures


def stage_row(stage: StageReport) -> dict[str, Any]:
    """A stage's manifest with the texts that the page shows."""
    counts = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in stage.counts.items())
    return stage.model_dump() | {"counts_text": counts, "when": f"{stage.finished:%Y-%m-%d %H:%M}"}


def facts(networks: Sequence[NetworkScores], stages: Sequence[StageReport], workspace: str) -> list[tuple[str, str]]:
    """Versions and settings, as pairs of name and text."""
    found = [("workspace", workspace)]
    found += [(f"{network.title} version", network.version) for network in networks]
    versions = {name: version for stage in stages for name, version in stage.versions.items()}
    found += sorted(versions.items())
    for stage in stages:
        settings = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in stage.settings.items())
        found += [(f"settings of {stage.stage}", settings)] if settings else []
    return found


def _score_table(network: NetworkScores, split: str) -> dict[str, Any]:
    rows = [
        {
            "model": network.title if model == network.network else model,
            "own": model == network.network,
            "cells": [_cell(network, split, model, metric) for metric in network.metrics],
        }
        for model in network.models(split)
    ]
    return {
        "title": f"Folds {SPLIT_TITLES.get(split, split)}",
        "rows": rows,
        "count": len(own_predictions(network, split)),
    }


def _cell(network: NetworkScores, split: str, model: str, metric: Metric) -> dict[str, Any] | None:
    score = network.scores[split][model].get(metric.name)
    if score is None:
        return None
    texts = {name: f"{getattr(score, name):z.{metric.digits}f}" for name in ("value", "low", "high")}
    return texts | {"best": network.best(split, metric) == model}


def _picture(title: str, figure: Any, caption: str) -> dict[str, Any]:
    return {"title": title, "url": to_data_url(figure), "caption": caption}


def _range(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _known_text(row: Mapping[str, Any]) -> str:
    tc = row["known_tc_kelvin"]
    result = "none found" if tc == 0 else f"{tc:.3g} K" if tc is not None else "no Tc"
    return f"{row['known']}: {row['known_formula']}, {result}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_short(one)}" for name, one in value.items()) + ")"
    if isinstance(value, list | tuple):
        return ", ".join(map(_short, value)) or "all"
    return "none" if value is None else str(value)
