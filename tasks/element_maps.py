"""How S2SNet sees the elements, and how it did on held-out folds: figures, each with its data beside it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from models.element_maps import SYMBOLS, group_contrast, likeness, pearson_matrix, place_elements
from tasks.element_figures import correlation_figure, element_map_figure, frequency_figure
from tasks.exceptions import MissingStageError
from tasks.explanations import Explanation
from tasks.figures import figure_bytes, roc_figure
from tasks.known import element_amounts
from tasks.report_data import NetworkScores, element_shares, read_scores
from tasks.s2snet_data import NAME, ORDERED
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.screening import RESULT, SUPERCONDUCTOR_PROBABILITY
from tasks.training_figures import draw_calibration, roc_panels
from tasks.workspace import Workspace

FOLDER = "explain/elements"
MOST = 8  # elements named in the words


@dataclass(frozen=True)
class Frequencies:
    """How often elements occur among the screened materials that S2SNet calls superconductors.

    Attributes
    ----------
    predicted, screened
        Numbers of materials.
    by_materials, of_screened
        Share of the predicted and of the screened materials that hold each element, by symbol.
    by_atoms
        Share of the atoms in the reduced formulas of the predicted ones.
    """

    predicted: int
    screened: int
    by_materials: Mapping[str, float]
    by_atoms: Mapping[str, float]
    of_screened: Mapping[str, float]


def count_elements(candidates: pa.Table) -> Frequencies:
    """Element frequencies of rows with ``formula`` and ``probability``: 0.5 or more is a predicted superconductor."""
    chosen = candidates.filter(pc.greater_equal(candidates["probability"], SUPERCONDUCTOR_PROBABILITY))
    predicted, screened = (
        [element_amounts(formula) for formula in table["formula"].to_pylist()] for table in (chosen, candidates)
    )
    atoms: Counter[str] = Counter()
    for amounts in predicted:
        atoms.update(amounts)
    total = sum(atoms.values())
    return Frequencies(
        predicted=len(predicted),
        screened=len(screened),
        by_materials=element_shares(predicted),
        by_atoms={symbol: amount / total for symbol, amount in sorted(atoms.items())},
        of_screened=element_shares(screened),
    )


def explain_elements(workspace: Workspace, folder: str | None = None) -> tuple[Explanation, list[str]]:
    """Draw how the latest S2SNet sees the elements, by default into ``explain/elements`` of the workspace.

    Returns
    -------
    The explanation, and the files' places.

    Raises
    ------
    MissingStageError
        If no S2SNet is trained.
    """
    s2snet = load_s2snet(workspace)
    network = read_scores(workspace, NAME)
    if network is None:
        raise MissingStageError(f"S2SNet {s2snet.version} in the workspace {workspace.url} has no scores")
    frequencies = count_elements(workspace.read_table(RESULT)) if workspace.exists(RESULT) else None
    numbers = judge_embeddings(s2snet)
    if frequencies:
        numbers |= {"predicted": frequencies.predicted, "screened": frequencies.screened}
    files = embedding_files(s2snet.element_embeddings(), training_counts(workspace), frequencies)
    files |= score_files(network)
    words = describe(numbers, frequencies)
    files["numbers.json"] = _as_json(numbers | {"words": words})
    found = Explanation(numbers, words, files)
    return found, found.write(Workspace(folder or workspace.path(FOLDER)))


def judge_embeddings(s2snet: S2SEnsemble) -> dict[str, Any]:
    """What the embeddings hold, beside those of networks that have learnt nothing."""
    trained, random = s2snet.element_embeddings(), s2snet.random_element_embeddings()
    same, other = group_contrast(trained)
    fresh = [group_contrast(one) for one in random]
    return {
        "s2snet_version": s2snet.version,
        "elements": s2snet.config.elements,
        "same_group": round(same, 4),
        "other_group": round(other, 4),
        "same_group_random": round(float(np.mean([pair[0] for pair in fresh])), 4),
        "other_group_random": round(float(np.mean([pair[1] for pair in fresh])), 4),
        "likeness_random": round(float(np.mean([likeness(trained, one) for one in random])), 4),
    }


def describe(numbers: Mapping[str, Any], frequencies: Frequencies | None) -> list[str]:
    """What the numbers mean, a sentence each."""
    said = [
        f"Embeddings of two elements of one group of the periodic table have a mean correlation of "
        f"{numbers['same_group']:.2f}, of two groups {numbers['other_group']:.2f}; in networks of random weights "
        f"{numbers['same_group_random']:.2f} and {numbers['other_group_random']:.2f}."
    ]
    alike = numbers["likeness_random"]
    source = "the Magpie properties that they start from" if numbers["elements"] != "learned" else "nothing learnt"
    said.append(
        f"The matrix correlates by {alike:.2f} with those of random weights: "
        + (f"most of the picture is {source}." if alike >= 0.7 else "most of the picture was learnt.")
    )
    if frequencies is None:
        said.append("Nothing is screened yet, so the frequencies of elements are left out: run `meissner screen`.")
    elif not frequencies.predicted:
        said.append(f"None of the {frequencies.screened} screened materials is predicted to be a superconductor.")
    else:
        shares = frequencies.by_materials
        first = sorted(shares, key=lambda symbol: (-shares[symbol], symbol))[:MOST]
        named = ", ".join(f"{symbol} {100 * shares[symbol]:.0f}" for symbol in first)
        said.append(
            f"Of {frequencies.screened} screened materials {frequencies.predicted} are predicted superconductors; "
            f"per cent of them that hold an element: {named}."
        )
    return said


def training_counts(workspace: Workspace) -> dict[str, int] | None:
    """Training crystals with each element, by symbol; None where they are gone."""
    if not workspace.exists(ORDERED):
        return None
    table = workspace.read_table(ORDERED, ["formula", "tc_kelvin"])
    formulas = table.filter(pc.is_valid(table["tc_kelvin"]))["formula"].to_pylist()
    return dict(Counter(symbol for formula in formulas for symbol in element_amounts(formula)))


def embedding_files(
    embeddings: np.ndarray, trained: Mapping[str, int] | None, frequencies: Frequencies | None
) -> dict[str, bytes]:
    """Figures of the elements and their data, by file name."""
    symbols, correlations = pearson_matrix(embeddings)
    places = place_elements(embeddings)
    square = [
        {"element": s, **dict(zip(symbols, row.tolist(), strict=True))}
        for s, row in zip(symbols, correlations, strict=True)
    ]
    points = [
        {
            "element": symbol,
            "atomic_number": number,
            "x": x,
            "y": y,
            "training_crystals": (trained or {}).get(symbol, 0),
        }
        for number, (symbol, (x, y)) in enumerate(zip(SYMBOLS, places.tolist(), strict=True), start=1)
    ]
    files = _pair("correlation", correlation_figure(symbols, correlations), square)
    files |= _pair("tsne", element_map_figure(places, trained=trained), points)
    if frequencies and frequencies.predicted:
        rows = [
            {
                "element": symbol,
                "share_of_predicted": frequencies.by_materials.get(symbol, 0.0),
                "share_of_predicted_atoms": frequencies.by_atoms.get(symbol, 0.0),
                "share_of_screened": share,
            }
            for symbol, share in frequencies.of_screened.items()
        ]
        shaded = [
            point | {"share_of_predicted": frequencies.by_materials.get(point["element"], 0.0)} for point in points
        ]
        files |= _pair("tsne-predicted", element_map_figure(places, frequencies.by_materials), shaded)
        shares = frequencies.by_materials, frequencies.by_atoms, frequencies.of_screened
        files |= _pair("frequency", frequency_figure(*shares), rows)
    return files


def score_files(network: NetworkScores) -> dict[str, bytes]:
    """ROC of held-out folds of S2SNet and every baseline, and its reliability, with their data."""
    from sklearn.metrics import roc_curve

    panels = roc_panels(network)
    rows = []
    for split, models in panels.items():
        for model, (label, probability) in models.items():
            if len(np.unique(label)) == 2:
                for false, true, _ in zip(*roc_curve(label, probability), strict=True):
                    rows.append(
                        {"split": split, "model": model, "false_positive_rate": false, "true_positive_rate": true}
                    )
    files = _pair("roc", roc_figure(panels, network.title), rows) if rows else {}
    if drawn := draw_calibration(network):
        files["calibration.svg"] = figure_bytes(drawn[0])
        files["calibration.json"] = _as_json(dict(network.calibration))
    return files


def _pair(name: str, figure: Figure, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """A figure and its data under one name."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink)
    return {f"{name}.svg": figure_bytes(figure), f"{name}.parquet": bytes(sink.getvalue())}


def _as_json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
