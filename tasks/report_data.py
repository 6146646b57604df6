"""What the report says, read from the workspace: stages, scores in plain words, label noise, provenance."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.exceptions import MissingStageError
from tasks.figures import Interval
from tasks.held_out import read_predictions
from tasks.model_store import chosen_version, model_folder
from tasks.model_versions import parts_of
from tasks.stages import StageReport
from tasks.workspace import Workspace

STAGE_ORDER = (
    "clean",
    "crystals",
    "match",
    "order",
    "bands",
    "grid",
    "train-bnas",
    "train-s2snet",
    "screen",
    "time-machine",
)
SPLIT_TITLES = {
    "random": "random by material",
    "chemical-system": "grouped by chemical system",
    "family": "one family left out",
    "year": "by year of first report",
}
NETWORKS = ("bnas", "s2snet")
NOT_TRAINED = "in no training: asked of the ensemble"
CALIBRATIONS = {
    "temperature": "Temperature scaling",
    "platt": "Platt's scaling",
    "isotonic": "Isotonic regression",
}
EXAMPLES = 6  # refusals shown for each reason's stage


@dataclass(frozen=True)
class Metric:
    """A score as the report shows it."""

    name: str
    title: str
    higher_is_better: bool
    digits: int


BNAS_METRICS = (
    Metric("r2_log_superconductors", "R² in ln(Tc + 1), superconductors", True, 2),
    Metric("r2_kelvin_superconductors", "R² in K, superconductors", True, 2),
    Metric("mae_kelvin_superconductors", "MAE in K, superconductors", False, 2),
    Metric("r2_log_all", "R² in ln(Tc + 1), all", True, 2),
    Metric("mae_kelvin_all", "MAE in K, all", False, 2),
)
S2SNET_METRICS = (
    Metric("roc_auc", "ROC AUC", True, 3),
    Metric("accuracy", "accuracy", True, 3),
    Metric("brier", "Brier score", False, 3),
)


@dataclass(frozen=True)
class NetworkScores:
    """Scores of one network and its baselines.

    Attributes
    ----------
    scores
        By split, model and metric; metrics without a meaning are absent.
    """

    network: str
    title: str
    version: str
    metrics: tuple[Metric, ...]
    scores: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    predictions: pa.Table
    calibration: Mapping[str, Any]

    @property
    def headline(self) -> Metric:
        """The score that the plain words speak of: over all materials, the hardest to flatter."""
        wanted = {"bnas": "r2_log_all", "s2snet": "roc_auc"}[self.network]
        return next(metric for metric in self.metrics if metric.name == wanted)

    @property
    def calibration_text(self) -> str:
        """How well intervals (BNAS) or probabilities (S2SNet) held on the materials that calibrated them."""
        found = self.calibration
        where = f"{found.get('materials')} held-out materials, folds {SPLIT_TITLES.get(found.get('split', ''), '')}"
        levels = [level for level in found.get("coverage", ()) if level["observed"] is not None]
        if levels:
            held = ", ".join(f"{100 * level['observed']:.0f} for {100 * level['expected']:.0f}" for level in levels)
            return f"Intervals held, in per cent of {where}: {held} meant."
        if found.get("brier_uncalibrated") is not None:
            before, after = found["brier_uncalibrated"], found["brier"]
            method = CALIBRATIONS.get(found.get("method", ""), "Calibration")
            return f"{method} took the Brier score from {before:.3f} to {after:.3f} ({where})."
        return ""

    def models(self, split: str) -> list[str]:
        """The network first, then the baselines by the headline score, best first."""
        name, sign = self.headline.name, 1 if self.headline.higher_is_better else -1
        scores = self.scores[split]

        def order(model: str) -> tuple[bool, float, str]:
            score = scores[model].get(name)
            return model != self.network, -sign * score.value if score else np.inf, model

        return sorted(scores, key=order)

    def best(self, split: str, metric: Metric) -> str | None:
        """The model with the best value of a metric."""
        found = {
            model: scores[metric.name].value for model, scores in self.scores[split].items() if metric.name in scores
        }
        choose = max if metric.higher_is_better else min
        return choose(sorted(found), key=lambda model: found[model]) if found else None

    def verdict(self, split: str) -> str:
        """Say in one sentence whether the network beats the best baseline on the headline score of a split."""
        metric, scores = self.headline, self.scores[split]
        own = scores.get(self.network, {}).get(metric.name)
        own_parts = {self.network, *parts_of(self.network, scores)}
        others = {name: s[metric.name] for name, s in scores.items() if name not in own_parts and metric.name in s}
        if own is None or not others:
            return f"{SPLIT_TITLES.get(split, split)}: nothing to compare."
        sign = 1 if metric.higher_is_better else -1
        name = max(sorted(others), key=lambda model: sign * others[model].value)
        best = others[name]
        ours, theirs = (f"{score.value:.{metric.digits}f}" for score in (own, best))
        if ours == theirs:
            result = f"the baseline “{name}” is as good as {self.title}"
        elif sign * own.value > sign * best.value:
            result = f"{self.title} is ahead of the best baseline, “{name}”"
        else:
            result = f"the baseline “{name}” beats {self.title}"
        overlap = own.low <= best.high and best.low <= own.high
        doubt = " Their 95 % intervals overlap, so the order is not certain." if overlap and ours != theirs else ""
        title = SPLIT_TITLES.get(split, split)
        title = title[:1].upper() + title[1:]
        return f"{title}: {result} ({metric.title}: {self.title} {ours}, baseline {theirs}).{doubt}"


def read_scores(workspace: Workspace, network: str, version: str | None = None) -> NetworkScores | None:
    """Scores of a version of ``bnas`` or ``s2snet``, else of the one in use; None where it was not trained."""
    try:
        version = version or chosen_version(workspace, network)
        metrics = workspace.read_json(f"{model_folder(network, version)}/metrics.json")
    except MissingStageError:
        return None
    return NetworkScores(
        network=network,
        title={"bnas": "BNAS", "s2snet": "S2SNet"}[network],
        version=version,
        metrics={"bnas": BNAS_METRICS, "s2snet": S2SNET_METRICS}[network],
        scores={split: _intervals(metrics["scores"][split]) for split in _in_order(metrics["scores"])},
        predictions=read_predictions(workspace, network, version),
        calibration=metrics.get("calibration", {}),
    )


def read_stages(workspace: Workspace) -> list[StageReport]:
    """Manifests of all finished stages but the report's own, in the order of the work."""
    names = [name.split("/")[1] for name in workspace.list("stages/*/manifest.json")]
    known = [name for name in STAGE_ORDER if name in names]
    chosen = known + sorted(set(names) - set(STAGE_ORDER) - {"report"})
    return [StageReport.model_validate(workspace.read_json(f"stages/{name}/manifest.json")) for name in chosen]


def read_refusals(workspace: Workspace, stages: Sequence[StageReport]) -> list[dict[str, Any]]:
    """For each stage that refused something: how many, and the first few items with their reasons."""
    found = []
    for stage in stages:
        name = f"stages/{stage.stage}/rejected.parquet"
        if stage.rows_refused and workspace.exists(name):
            rows = workspace.read_table(name).to_pylist()
            found.append({"stage": stage.stage, "count": len(rows), "examples": rows[:EXAMPLES]})
    return found


def label_noise(superconductors: pa.Table, tc_kelvin: Sequence[float]) -> dict[str, Any] | None:
    """How far reports of one composition differ, and what that leaves any model to reach.

    Parameters
    ----------
    superconductors
        Rows of SUPERCONDUCTORS: ``tc_std_kelvin`` is the spread of a composition's reports about their mean.
    tc_kelvin
        Measured Tc of the labelled superconductors.

    Returns
    -------
    ``compositions`` with at least two reports, ``rms_kelvin`` and ``rms_log`` (of ln(Tc + 1)) of one report about its
    composition's mean, and ``r2_kelvin`` and ``r2_log``: the largest R2 against single reports. None where no
    composition has two reports or the labels are all alike.
    """
    repeated = superconductors.filter(
        pc.and_(pc.greater_equal(superconductors["reports"], 2), pc.greater(superconductors["tc_kelvin"], 0))
    )
    labels = np.array([tc for tc in tc_kelvin if tc > 0])
    if not len(repeated) or len(labels) < 2 or np.ptp(labels) == 0:
        return None
    spread, tc = (repeated[name].to_numpy().astype(float) for name in ("tc_std_kelvin", "tc_kelvin"))
    rms_kelvin = float(np.sqrt(np.mean(spread**2)))
    rms_log = float(np.sqrt(np.mean((spread / (tc + 1)) ** 2)))
    return {
        "compositions": len(repeated),
        "rms_kelvin": rms_kelvin,
        "rms_log": rms_log,
        "r2_kelvin": max(0.0, 1 - rms_kelvin**2 / float(labels.var())),
        "r2_log": max(0.0, 1 - rms_log**2 / float(np.log1p(labels).var())),
    }


def trained_labels(networks: Sequence[NetworkScores]) -> list[float]:
    """Measured Tc of the materials that BNAS was trained on, kelvin, where the workspace holds no grids of them."""
    tables = [network.predictions for network in networks if network.network == "bnas"]
    labels = {row["material_id"]: row["tc_kelvin"] for table in tables for row in table.to_pylist()}
    return [tc for _, tc in sorted(labels.items()) if tc is not None]


def element_shares(formulas: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Share of compositions that hold each element."""
    counts = Counter(symbol for amounts in formulas for symbol, amount in amounts.items() if amount > 0)
    return {symbol: count / len(formulas) for symbol, count in sorted(counts.items())}


@dataclass(frozen=True)
class StoredNetwork:
    """Where each material stood in the splits, the hashes of the weights, and the version of the training's code."""

    sides: Mapping[str, str]
    weights: tuple[str, ...]
    code: int | None


class Provenance:
    """Where a candidate's numbers come from, step by step; ``sources`` tells by material where bands were read."""

    def __init__(
        self, workspace: Workspace, bands: pa.Table, index: pa.Table, sources: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._ordered = _by_id(workspace, "crystals/ordered.parquet", "material_id")
        self._crystals = _by_id(workspace, "crystals/crystals.parquet", "crystal_id")
        self._measured = _by_id(workspace, "supercon/superconductors.parquet", "formula")
        self._bands = {row["material_id"]: row for row in bands.to_pylist()}
        self._grids = {row["material_id"]: row for row in index.to_pylist()}
        self._sources = sources
        self._workspace = workspace

    def trace(self, candidate: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The chain of one candidate: source, structure, bands, grid, networks, code; what is unknown is left out."""
        name = candidate["material_id"]
        ordered, bands, grid = self._ordered.get(name, {}), self._bands.get(name, {}), self._grids.get(name, {})
        crystal = self._crystals.get(ordered.get("parent_id", name), {})
        measured, source = self._measured.get(candidate["known_formula"], {}), dict(self._sources.get(name, {}))
        made = ("bands_hash", "engine", "engine_version", "grid", *(() if source else ("engine_settings", "seconds")))
        networks = {network: self._network(network, candidate[f"{network}_version"]) for network in NETWORKS}
        chain = {
            "measured": _pick(
                measured, "formula", "source", "source_rows", "references", "year_first", "tc_definitions"
            ),
            "source row": source,
            "crystal": _pick(crystal, "crystal_id", "crystal_source", "reference", "licence", "energy_above_hull_ev"),
            "structure": _pick(ordered, "parent_id", "structure_hash", "supercell", "composition_error", "match"),
            "bands": _pick(bands, *made),
            "grid": _pick(grid, "sha256", "crossing_bands", "real_bands", "position"),
            "split": {network: found.sides.get(name, NOT_TRAINED) for network, found in networks.items()},
            "weights": {
                "bnas": candidate["bnas_version"],
                "s2snet": candidate["s2snet_version"],
                "tc_origin": candidate["tc_origin"],
                "probability_origin": candidate["probability_origin"],
            }
            | {f"{network}_sha256": list(found.weights) for network, found in networks.items() if found.weights},
            "code": dict(versions)
            | {f"{network}_code": found.code for network, found in networks.items() if found.code is not None},
        }
        return {step: values for step, values in chain.items() if values}

    @lru_cache(maxsize=8)  # noqa: B019 - lives as long as the report is made
    def _network(self, name: str, version: str) -> "StoredNetwork":
        """What a stored network tells of itself; nothing where it is gone."""
        folder = model_folder(name, version)
        try:
            folds = self._workspace.read_table(f"{folder}/folds.parquet")
            config = self._workspace.read_json(f"{folder}/config.json")
        except MissingStageError:
            return StoredNetwork({}, (), None)
        tested = folds.filter(pc.equal(folds["side"], "test")).to_pylist()
        sides: dict[str, str] = {}
        for row in sorted(tested, key=lambda row: (_place(row["split"]), row["fold"])):
            part = f"{row['split']} fold {row['fold']}"
            sides[row["material_id"]] = "; ".join(filter(None, [sides.get(row["material_id"], ""), part]))
        sides = {material: f"trained on; held out in {parts}" for material, parts in sides.items()}
        files = [f"{folder}/weights-{number}.safetensors" for number in range(config["members"])]
        return StoredNetwork(sides, tuple(map(self._workspace.fingerprint, files)), config.get("code_version"))

    def hull_distance(self, material_id: str) -> float | None:
        """Energy above the hull of the parent crystal, eV per atom, where the source says."""
        parent = self._ordered.get(material_id, {}).get("parent_id", material_id)
        value = self._crystals.get(parent, {}).get("energy_above_hull_ev")
        return None if value is None else float(value)


def _in_order(splits: Iterable[str]) -> list[str]:
    """Splits in the order of SPLIT_TITLES, others behind."""
    return sorted(splits, key=_place)


def _place(split: str) -> tuple[int, str]:
    known = list(SPLIT_TITLES)
    return known.index(split) if split in known else len(known), split


def _intervals(models: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    return {
        model: {
            name: Interval(score["value"], score["low"], score["high"])
            for name, score in scores.items()
            if isinstance(score, Mapping) and None not in (score.get("value"), score.get("low"), score.get("high"))
        }
        for model, scores in models.items()
    }


def _by_id(workspace: Workspace, name: str, key: str) -> dict[str, dict[str, Any]]:
    """Rows of a table without structures, by one column; nothing where the stage was not run."""
    if not workspace.exists(name):
        return {}
    table = workspace.read_table(name)
    return {row[key]: row for row in table.select([c for c in table.column_names if c != "structure"]).to_pylist()}


def _pick(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}
