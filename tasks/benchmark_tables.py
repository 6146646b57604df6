"""The S2S benchmark in numbers, words and pictures: every score beside the forest's, the paper's tables beside ours.

Published figures: Liu et al., "S2SNet", tables 2, 3 and 4, one random split of 80 : 20, in percent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import classification_gain, classification_scores
from models.reliability import reliability_curve, share_intervals
from tasks.benchmark_methods import FOREST, PUBLISHED_WIDTH, TREES, Method, main_layers
from tasks.figures import Interval, figure_bytes, reliability_figure, roc_figure, score_figure
from tasks.progress import leave_figure, leave_table
from tasks.report_data import SPLIT_TITLES
from tasks.schemas import BENCHMARK, BENCHMARK_RELIABILITY
from tasks.settings import BenchmarkSettings
from tasks.workspace import Workspace

OUTPUT = "benchmarks/s2s/scores.parquet"
METHODS_FILE = "benchmarks/s2s/methods.json"
RELIABILITY = "benchmarks/s2s/reliability.parquet"
MAX_CURVES = 8  # in the ROC figure: the best ones, and S2SNet
MAX_RELIABILITY = 5  # in the figure of probabilities: the best ones, and the forest
SCORES = ("accuracy", "roc_auc", "brier")

Published = dict[str, tuple[float, float]]  # ACC, AUC in percent, by "pre-trained" or "not"
TABLE_2: dict[str, Published] = {
    "MEGNet": {"pre-trained": (80.30, 79.10), "not": (78.37, 75.43)},
    "Statistic": {"not": (83.33, 78.52)},
    "CGCNN": {"pre-trained": (82.42, 86.40), "not": (79.69, 82.45)},
    "S2SNet": {"pre-trained": (91.28, 91.18), "not": (89.53, 90.24)},
}
TABLE_3 = {5: (89.83, 89.38), 10: (91.28, 91.18), 15: (92.31, 92.27)}
TABLE_4: dict[bool, Published] = {
    True: TABLE_2["S2SNet"],
    False: {"pre-trained": (90.41, 89.22), "not": (87.79, 86.20)},
}
GRAPHS = ("cgcnn", "megnet")
RELIABILITY_CAPTION = (
    "On the line, held-out probabilities mean what they say; bars are 95 % intervals of the first. Blends are "
    "calibrated by the other folds, all others are as trained."
)
NO_ENERGIES = "not possible here: no formation energies"


def score_table(predictions: pa.Table, methods: Mapping[str, str], seed: int) -> pa.Table:
    """Scores of every model on every split (BENCHMARK).

    Parameters
    ----------
    predictions
        Rows of PREDICTIONS; every model predicts the same crystals of a fold.
    methods
        Name of the method that gives each model.
    """
    rows = []
    for split in predictions["split"].unique().to_pylist():
        here = predictions.filter(pc.equal(predictions["split"], split))
        forest = _of_model(here, FOREST)
        for model in here["model"].unique().to_pylist():
            own = _of_model(here, model)
            rows += _score_rows(own, forest, {"split": split, "model": model, "method": methods[model]}, seed)
    return pa.Table.from_pylist(rows, schema=BENCHMARK)


def _of_model(table: pa.Table, model: str) -> pa.Table:
    return table.filter(pc.equal(table["model"], model)).sort_by([("fold", "ascending"), ("material_id", "ascending")])


def _score_rows(own: pa.Table, forest: pa.Table, named: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    label, probability = _columns(own)
    folds = np.array(own["fold"].to_pylist())
    each = [
        classification_scores(label[folds == fold], probability[folds == fold], resamples=0)
        for fold in np.unique(folds)
    ]
    pooled = classification_scores(label, probability, seed=seed)
    gains = classification_gain(label, probability, _columns(forest)[1], seed=seed)
    rows = []
    for score in SCORES:
        values = np.array([found[score].value for found in each])
        row = {
            "folds": len(values),
            "mean": values.mean(),
            "spread": values.std(ddof=1) if len(values) > 1 else None,
            "pooled": pooled[score].value,
            "low": pooled[score].low,
            "high": pooled[score].high,
            "gain": gains[score].value,
            "gain_low": gains[score].low,
            "gain_high": gains[score].high,
        }
        cleaned = {key: None if value is None or np.isnan(value) else float(value) for key, value in row.items()}
        rows.append({**named, "score": score, **cleaned, "folds": len(values)})
    return rows


def _columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    label = table["superconductor"].to_numpy(zero_copy_only=False).astype(int)
    return label, table["probability"].to_numpy()


class _Cells:
    """Scores as text, by split, model and score."""

    def __init__(self, scores: pa.Table) -> None:
        self.rows = {(row["split"], row["model"], row["score"]): row for row in scores.to_pylist()}

    def percent(self, split: str, model: str, score: str) -> str:
        """Mean and spread over the folds, percent."""
        row = self.rows.get((split, model, score))
        if row is None or row["mean"] is None:
            return "-"
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        return f"{100 * row['mean']:.1f}{spread}"

    def pair(self, split: str, model: str | None) -> str:
        """ACC and AUC of a model."""
        if model is None or (split, model, "accuracy") not in self.rows:
            return "-"
        return " / ".join(self.percent(split, model, score) for score in ("accuracy", "roc_auc"))


def as_markdown(
    scores: pa.Table,
    methods: Sequence[Method],
    settings: BenchmarkSettings,
    *,
    source: str,
    chosen: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    seen: Mapping[str, Sequence[int]],
) -> str:
    """All tables as one page: every model on each split, then the paper's tables 2, 3 and 4 beside ours.

    Parameters
    ----------
    source
        What was judged: the file and how many of its lines were refused.
    chosen
        Settings that the tuned methods took, fold by fold.
    sizes
        Crystals of each class.
    seen
        Crystals of the pre-training of each fold, by split.
    """
    splits = list(dict.fromkeys(scores["split"].to_pylist()))
    crystals = ", ".join(f"{count} {name}" for name, count in sizes.items())
    lines = [
        "# S2S benchmark",
        f"{source}: {crystals}; {settings.folds} folds, seed {settings.seed}. "
        "Mean ± standard deviation over the folds, with the 95 % bootstrap interval over all held-out crystals "
        "together. Gain: AUC above the forest on the same crystals, paired bootstrap.",
        *_notes(methods, settings, chosen, seen),
    ]
    for split in splits:
        lines += [f"\n## Folds {SPLIT_TITLES.get(split, split)}", *_all_models(scores, split)]
    words = "ACC / AUC in percent; published: one random split of 80 : 20; -: not run here."
    if any(method.family == "paper" for method in methods):
        words += f" {_scale(settings)}"
    lines += [f"\n## The paper's tables\n{words}"]
    for split in splits:
        lines += _paper_tables(_Cells(scores), methods, settings, split)
    return "\n".join(lines) + "\n"


def _notes(
    methods: Sequence[Method],
    settings: BenchmarkSettings,
    chosen: Mapping[str, Sequence[str]],
    seen: Mapping[str, Sequence[int]],
) -> list[str]:
    lines = []
    if any(method.pretrained for method in methods):
        told = "; ".join(f"{split}: {min(counts)} to {max(counts)}" for split, counts in seen.items())
        source = f" with {settings.unlabelled}" if settings.unlabelled else ""
        lines.append(f"\nPre-training sees {told} crystals a fold{source}; none has the composition of a held-out one.")
    if any(method.reports for method in methods):
        lines.append(
            f"\n'With reports': the trees also know the superconductors of {settings.reports}, without those of a "
            "chemical system that is held out, and without their doped forms (a tenth of the atoms exchanged at most)."
        )
    asked = {method.family for method in methods}
    if epochs := [
        f"{name} {count}"
        for name, count, of in (
            ("S2SNet", settings.epochs, {"s2snet"} & asked),
            ("S2SNet as printed", settings.printed_epochs, {"paper"} & asked),
            ("pre-training", settings.pretraining_epochs or settings.epochs, any(m.pretrained for m in methods)),
            ("CGCNN and MEGNet", settings.graph_epochs, set(GRAPHS) & asked),
        )
        if count and of
    ]:
        lines.append(f"\nEpochs in place of the recipes': {', '.join(epochs)}.")
    for title, names in chosen.items():
        counts = ", ".join(f"{name} ({names.count(name)})" for name in dict.fromkeys(names))
        lines.append(f"\n{title}: chosen on inner folds: {counts}.")
    return lines


def _all_models(scores: pa.Table, split: str) -> list[str]:
    by_model: dict[str, dict[str, Any]] = {}
    for row in scores.filter(pc.equal(scores["split"], split)).to_pylist():
        by_model.setdefault(row["model"], {})[row["score"]] = row
    lines = ["\n| model | ACC | AUC | Brier | AUC − forest |", "|---|---|---|---|---|"]
    ranked = sorted(by_model.items(), key=lambda item: -(item[1]["roc_auc"]["mean"] or 0))
    for model, found in ranked:
        cells = [_full(found[score]) for score in SCORES]
        lines.append(f"| {model} | {' | '.join(cells)} | {'' if model == FOREST else _gain(found['roc_auc'])} |")
    return lines


def _full(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "-"
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    return f"{row['mean']:.3f}{spread} ({row['low']:.3f} to {row['high']:.3f})"


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return "-"
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def _scale(settings: BenchmarkSettings) -> str:
    if settings.width == PUBLISHED_WIDTH:
        return "S2SNet as printed has the published width, 512."
    return f"S2SNet as printed is scaled down: width {settings.width} in place of {PUBLISHED_WIDTH}."


def _paper_tables(cells: _Cells, methods: Sequence[Method], settings: BenchmarkSettings, split: str) -> list[str]:
    titles = {method.name: method.title for method in methods}
    main = main_layers(settings)
    title = SPLIT_TITLES.get(split, split)

    def ours(name: str) -> str:
        return cells.pair(split, titles.get(name))

    lines = [
        f"\n### Table 2, folds {title}",
        "\n| method | published, pre-trained | here, pre-trained | published | here |",
        "|---|---|---|---|---|",
    ]
    for paper, names in (("MEGNet", ("megnet", "megnet-tuned")), ("CGCNN", ("cgcnn", "cgcnn-tuned"))):
        for name in names:
            if name not in titles and name != names[0]:
                continue
            known_energies = any(method.name.endswith("-pretrained") and method.family in GRAPHS for method in methods)
            own = "-" if known_energies or name not in titles else NO_ENERGIES
            own = ours(f"{name}-pretrained") if f"{name}-pretrained" in titles else own
            known = TABLE_2[paper] if name == names[0] else {}
            lines.append(_row(titles.get(name, paper), known, own, ours(name)))
        if paper == "MEGNet":
            statistic = cells.pair(split, FOREST)
            lines.append(_row("Statistic (Magpie, random forest)", TABLE_2["Statistic"], "", statistic))
    printed = ours(f"paper-{main}-pretrained"), ours(f"paper-{main}")
    lines.append(_row(f"S2SNet as printed, {main} layers", TABLE_2["S2SNet"], *printed))
    lines.append(_row("S2SNet, ours: network alone", {}, ours("s2snet-pretrained"), ours("s2snet")))
    lines.append(_row("S2SNet, ours: trees alone", {}, "", ours(TREES)))
    lines.append(_row("S2SNet, ours: network and trees", {}, ours("blend-pretrained"), ours("blend")))
    if "blend-reports" in titles:
        lines.append(_row("S2SNet, ours: network, trees and reports", {}, "", ours("blend-reports")))
    if not any(method.family == "paper" for method in methods):
        return lines
    lines += [f"\n### Table 3, folds {title}", "\n| layers, pre-trained | published | here |", "|---|---|---|"]
    for layers in sorted(settings.layers):
        published = _published(TABLE_3.get(layers))
        lines.append(f"| {layers} | {published} | {ours(f'paper-{layers}-pretrained')} |")
    lines += [
        f"\n### Table 4, folds {title}",
        f"\n| {main} layers | published, pre-trained | here, pre-trained | published | here |",
        "|---|---|---|---|---|",
    ]
    for lattice, ending, words in ((True, "", "with lattice"), (False, "-no-lattice", "without lattice")):
        found = ours(f"paper-{main}{ending}-pretrained"), ours(f"paper-{main}{ending}")
        lines.append(_row(words, TABLE_4[lattice], *found))
    return lines


def _row(name: str, published: Published, pretrained: str, plain: str) -> str:
    known = [_published(published.get(key)) for key in ("pre-trained", "not")]
    return f"| {name} | {known[0]} | {pretrained} | {known[1]} | {plain} |"


def _published(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"


def write_benchmark_figures(workspace: Workspace, predictions: pa.Table, scores: pa.Table) -> list[str]:
    """Give the files of the figures.

    ROC curves of the best methods, every method's AUC with its spread over the folds, and how far the probabilities of
    the best mean what they say; the last with its data, of all methods.
    """
    means = {(row["split"], row["model"]): row for row in scores.to_pylist() if row["score"] == "roc_auc"}
    panels: dict[str, dict[str, tuple[Any, Any]]] = {}
    bars: dict[str, dict[str, Interval]] = {}
    reliable: dict[str, dict[str, list[dict[str, Any]]]] = {}
    rows: list[dict[str, Any]] = []
    for split in dict.fromkeys(split for split, _ in means):
        title = SPLIT_TITLES.get(split, split)
        here = predictions.filter(pc.equal(predictions["split"], split))
        ranked = sorted(
            (name for where, name in means if where == split), key=lambda n: -(means[split, n]["mean"] or 0)
        )
        shown = ranked[:MAX_CURVES]
        shown += [name for name in ranked if name.startswith("S2SNet") and name not in shown][:2]
        panels[title.capitalize()] = {model: _columns(_of_model(here, model)) for model in shown}
        bars[title] = {name: _spread(means[split, name]) for name in ranked if means[split, name]["mean"] is not None}
        curves = {model: reliability_rows(*_columns(_of_model(here, model))) for model in ranked}
        rows += [{"split": split, "model": model, **row} for model, curve in curves.items() for row in curve]
        best = dict.fromkeys([*ranked[: MAX_RELIABILITY - 1], FOREST])
        reliable[title.capitalize()] = {model: curves[model] for model in best}
    workspace.write_table(RELIABILITY, pa.Table.from_pylist(rows, schema=BENCHMARK_RELIABILITY))
    figures = {
        "roc": (roc_figure(panels, "S2SNet"), "Held-out predictions of S2SNet and the best other methods."),
        "scores": (
            score_figure(bars, "S2SNet", "ROC AUC", chance=0.5),
            "Mean over the folds; lines are the spread over them.",
        ),
        "reliability": (reliability_figure(reliable), RELIABILITY_CAPTION),
    }
    files = [RELIABILITY]
    for name, (figure, caption) in figures.items():
        files.append(f"benchmarks/s2s/{name}.svg")
        workspace.write_bytes(files[-1], figure_bytes(figure))
        leave_figure(f"benchmark-s2s-{name}", figure_bytes(figure, "png"), f"S2S benchmark: {caption}")
    return files


def reliability_rows(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, float]]:
    """A reliability curve with the ends ``low`` and ``high`` of the 95 % intervals of its shares."""
    curve = reliability_curve(labels, probabilities)
    ends = share_intervals(curve)
    return [{**row, "low": low, "high": high} for row, (low, high) in zip(curve, ends, strict=True)]


def _spread(row: Mapping[str, Any]) -> Interval:
    spread = row["spread"] or 0.0
    return Interval(row["mean"], row["mean"] - spread, row["mean"] + spread)


def leave_results(workspace: Workspace) -> None:
    """Leave the scores as a table artifact of the run, if there is one."""
    leave_table("benchmark-s2s", workspace.read_table(OUTPUT).to_pylist(), "S2S benchmark: all scores")
