"""What the terminal shows: the stages while they run, and the result when they have."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from tasks.events import StageEvent, subscribe
from tasks.model_versions import HEADLINE, parts_of
from tasks.stages import StageReport, read_report
from tasks.workspace import Workspace

STAGES = ("clean", "crystals", "match", "order", "bands", "grid", "train-bnas", "train-s2snet", "screen", "report")
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # for text with what users named
NAMED_FILES = 3  # a note about more is one about so many files
TITLES = {"bnas": "BNAS: R² of ln(Tc + 1)", "s2snet": "S2SNet: ROC AUC"}


@contextlib.contextmanager
def live_stages(console: Console, stages: Sequence[str] = STAGES) -> Iterator[Callable[[], None]]:
    """Show each stage with its progress; plain lines where the output is no terminal. Gives what ends the display."""
    display = _LiveStages(console, stages) if console.is_terminal else _PlainStages(console)
    with display, subscribe(display.show):
        yield display.close


def _outcome(report: StageReport) -> str:
    refused = f", {report.rows_refused} refused" if report.rows_refused else ""
    time = "nothing to do" if report.reused else f"{report.seconds:.1f} s"
    return f"{report.rows_in - report.rows_refused} of {report.rows_in}{refused} · {time}"


class _PlainStages(contextlib.AbstractContextManager["_PlainStages"]):
    def __init__(self, console: Console) -> None:
        self.console = console

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close."""

    def show(self, event: StageEvent) -> None:
        if event.report:
            self.console.print(f"{event.stage:13} {_outcome(event.report)}")


class _OnceStarted(ProgressColumn):
    """Another column, but empty where the stage has not started: a stage that waits should not look busy."""

    def __init__(self, column: ProgressColumn, waiting: str = "") -> None:
        super().__init__()
        self.column, self.waiting = column, waiting

    def render(self, task: Task) -> Any:
        return self.column.render(task) if task.started else Text(self.waiting, style="dim")


class _LiveStages(contextlib.AbstractContextManager["_LiveStages"]):
    def __init__(self, console: Console, stages: Sequence[str]) -> None:
        self.progress = Progress(
            _OnceStarted(SpinnerColumn(finished_text="[green]✓[/]"), waiting="·"),
            TextColumn("{task.description:13}"),
            _OnceStarted(BarColumn(bar_width=24)),
            _OnceStarted(MofNCompleteColumn()),
            _OnceStarted(TimeElapsedColumn()),
            TextColumn("[dim]{task.fields[outcome]}"),
            console=console,
        )
        self.live = Live(self.progress, console=console, refresh_per_second=8)
        self.bars: dict[str, TaskID] = {
            stage: self.progress.add_task(stage, total=None, start=False, outcome="") for stage in stages
        }

    def __enter__(self) -> "_LiveStages":
        self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)

    def close(self) -> None:
        """End the display where it stands."""
        self.live.stop()

    def show(self, event: StageEvent) -> None:
        if event.stage not in self.bars:
            return
        bar = self.bars[event.stage]
        if not self.progress.tasks[bar].started:
            self.progress.start_task(bar)
        if event.report:
            total = event.total or self.progress.tasks[bar].total or 1
            self.progress.update(bar, total=total, completed=total, outcome=_outcome(event.report))
            self.progress.stop_task(bar)
        else:
            self.progress.update(bar, total=event.total or None, completed=event.done)


def print_rules(console: Console, workspace: Workspace) -> None:
    """Print what the rules of the clean stage kept and refused; a rule that refused nothing is left out."""
    # here, because it imports Prefect, which must not be loaded before its address is known
    from tasks.cleaning import KEPT, RULES

    report = read_report(workspace, "clean")
    if report is None:
        return
    table = Table(title="Reports: what the rules kept and refused", title_justify="left")
    table.add_column("rule", no_wrap=True)
    table.add_column("what")
    table.add_column("kept", justify="right")
    table.add_column("refused", justify="right")
    left = report.rows_in
    table.add_row("", "rows read", str(left), "")
    for rule, meaning in RULES.items():
        refused = report.counts.get(f"refused_{rule}", 0)
        left -= refused
        if refused:
            table.add_row(rule, meaning, str(left), str(refused))
    table.add_section()
    for kind, meaning in KEPT.items():
        if kept := report.counts.get(f"kept_{kind}", 0):
            table.add_row("", meaning, str(kept), "")
    console.print(table)


def print_candidates(console: Console, workspace: Workspace, count: int = 10) -> None:
    """Print the best candidates."""
    columns = ["rank", "formula", "space_group", "tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "probability"]
    columns += ["nearest_formula"]
    rows = workspace.read_table("candidates/candidates.parquet", columns).to_pylist()
    ranked = sorted((row for row in rows if row["rank"] is not None), key=lambda row: row["rank"])
    if not ranked:
        console.print(
            f"No candidate among {len(rows)} screened materials: all are known, or too far from the training set"
        )
        return
    table = Table(title=f"The {min(count, len(ranked))} best of {len(ranked)} ranked candidates", title_justify="left")
    table.add_column("", justify="right")
    for heading in ("formula", "space group"):
        table.add_column(heading, no_wrap=True)
    for heading in ("BNAS: Tc / K", "interval", "S2SNet: P"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("nearest measured")
    for row in ranked[:count]:
        interval = f"{row['tc_low_kelvin']:.1f} to {row['tc_high_kelvin']:.1f}"
        numbers = (f"{row['tc_kelvin']:.1f}", interval, f"{row['probability']:.2f}")
        table.add_row(str(row["rank"]), row["formula"], row["space_group"], *numbers, row["nearest_formula"])
    console.print(table)


def print_leakage(console: Console, workspace: Workspace) -> None:
    """Print what the last audit counted, over the folds of each split, and what it could not see."""
    from tasks.leakage import KINDS, OUTPUT

    rows, report = workspace.read_table(OUTPUT).to_pylist(), read_report(workspace, "audit")
    splits = list(dict.fromkeys(row["split"] for row in rows))
    table = Table(title="Leakage: test materials that have in the training", title_justify="left")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right", no_wrap=True)
    of_split = {split: [row for row in rows if row["split"] == split] for split in splits}
    for kind, meaning in KINDS.items():
        if any(row[kind] is not None for row in rows):
            table.add_row(meaning, *(_share(of_split[split], kind) for split in splits))
    table.add_section()
    table.add_row("test materials", *(str(sum(row["test"] for row in of_split[split])) for split in splits))
    console.print(table)
    for line in report.counts["not_seen"] if report else ():
        console.print(f"[dim]Not seen: {escape(line)}[/]", highlight=False)


def _share(folds: Sequence[dict[str, Any]], kind: str) -> str:
    """Test materials of all folds to which something applies, with their share; the smallest chance for the order."""
    found = [fold[kind] for fold in folds if fold[kind] is not None]
    if not found:
        return "-"
    if kind == "order_chance":
        return f"{min(found):.2g}"
    count, tests = sum(found), sum(fold["test"] for fold in folds)
    return f"{count} ({count / max(tests, 1):.0%})" if count else "0"


def print_scores(console: Console, workspace: Workspace, names: Sequence[str] = ("bnas", "s2snet")) -> None:
    """Print the networks' scores beside the best baseline's, split by split."""
    for name in names:
        table = Table(title=f"{TITLES[name]} on held-out folds, with 95 % interval", title_justify="left")
        rows = best_baselines(workspace, name, HEADLINE[name])
        parts = list(dict.fromkeys(part for row in rows for part in row["parts"]))
        own = "network and trees" if parts else "network"
        for heading in ("folds", own, "best baseline", "which baseline"):
            table.add_column(heading)
        for row in rows:
            table.add_row(row["split"], row["own"], row["best"], row["baseline"])
        console.print(table)
        for part in parts:
            scores = ", ".join(f"{row['split']} {row['parts'][part]}" for row in rows if part in row["parts"])
            console.print(f"Its {part.removeprefix(f'{name}, ')}: {scores}")
        if name == "bnas":
            _print_ablation(console, workspace)


def _print_ablation(console: Console, workspace: Workspace) -> None:
    version = workspace.read_json("models/bnas/latest.json")["version"]
    gains = workspace.read_json(f"models/bnas/{version}/metrics.json").get("bands_add", {})
    for split, gain in gains.items():
        if gain["value"] is not None:
            text = f"{gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"
            console.print(f"Bands add to composition and crystal, folds {split}: {text} of R²")


def print_trials(console: Console, workspace: Workspace, study: str, count: int = 5) -> None:
    """Print the best trials of a search, by validation error."""
    rows = workspace.read_table(f"tuning/{study}.parquet").to_pylist()
    finished = sorted((row for row in rows if row["state"] == "COMPLETE"), key=lambda row: (row["loss"], row["trial"]))
    table = Table(title=f"The best of {len(rows)} trials; MSE of ln(Tc + 1) in validation", title_justify="left")
    names = ("trial", "loss", "published_loss", "depth", "embed_dim", "heads", "mlp_dim", "embed_dropout", "dropout")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for row in finished[:count]:
        table.add_row(*("" if row[name] is None else f"{row[name]:.4g}" for name in names))
    console.print(table)


def best_baselines(workspace: Workspace, name: str, score: str) -> list[dict[str, Any]]:
    """For each split: the network's score, those of its parts by their name, and the best baseline's, as text."""
    version = workspace.read_json(f"models/{name}/latest.json")["version"]
    metrics = workspace.read_json(f"models/{name}/{version}/metrics.json")
    rows = []
    for split, models in metrics["scores"].items():
        scores = {model: found[score] for model, found in models.items() if score in found}
        own = scores.pop(name)
        parts = {part: _interval(scores.pop(part)) for part in parts_of(name, list(scores))}
        best = max(scores, key=lambda model: scores[model]["value"] or float("-inf"))
        told = {"own": _interval(own), "best": _interval(scores[best]), "baseline": best}
        rows.append({"split": split, "parts": parts, **told})
    return rows


def _interval(score: dict[str, float | None]) -> str:
    if score["value"] is None:
        return f"none: {score['reason']}"
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def print_predictions(console: Console, predictions: Sequence[Any], form: str) -> None:
    """Print predictions as a table, as JSON or as CSV."""
    import json

    import pandas as pd

    rows = [prediction.model_dump(mode="json") for prediction in predictions]
    for row in rows:
        if row["error"]:
            sys.stderr.write(f"meissner: {row['error']}\n")
    refused = sum(row["error"] is not None for row in rows)
    if refused and len(rows) > 1:
        sys.stderr.write(f"{refused} of {len(rows)} files {'was' if refused == 1 else 'were'} refused.\n")
    if form == "json":
        console.out(json.dumps(rows, indent=1), highlight=False)
        return
    if form == "csv":
        console.out(pd.DataFrame(rows).to_csv(index=False), end="", highlight=False)
        return
    table = Table(title="Predictions", title_justify="left")
    headings = (
        "file",
        "formula",
        "BNAS: Tc / K",
        "S2SNet: P",
        "S2SNet: Tc / K",
        "agree",
        "trained on",
        "distance",
        "measured",
    )
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        if not row["error"]:
            table.add_row(*map(escape, _prediction_cells(row)))
    if table.row_count:
        console.print(table)
    for note in _notes([row for row in rows if not row["error"]]):
        console.print(note, style="dim", **PLAIN)


def _notes(answers: Sequence[dict[str, Any]]) -> list[str]:
    """What is said beside the table, each once; with the files that it is about, unless these are all."""
    files: dict[str, list[str]] = {}
    for row in answers:
        if row["note"]:
            files.setdefault(row["note"], []).append(Path(row["file"]).name)
    few = {
        note: ", ".join(names) if len(names) <= NAMED_FILES else f"{len(names)} files" for note, names in files.items()
    }
    return [note if len(names) == len(answers) else f"{few[note]}: {note}" for note, names in files.items()]


def print_benchmark(console: Console, workspace: Workspace) -> None:
    """Print the tables of the S2S benchmark."""
    from rich.markdown import Markdown

    from tasks.benchmark_s2s import TABLES

    console.print(Markdown(workspace.read_bytes(TABLES).decode()))


def print_pairs(console: Console, workspace: Workspace) -> None:
    """Print the compounds of Table I beside what was predicted here, then what is missing for the others."""
    from tasks.validation import OUTPUT, count_pairs

    found = workspace.read_table(OUTPUT)
    rows = found.to_pylist()
    table = Table(title="Table I of the BNAS paper, Tc in kelvin", title_justify="left")
    for heading in ("pair", "compound", "space group"):
        table.add_column(heading, no_wrap=True)
    for heading in ("measured", "published", "here", "interval", "held out"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("material")
    for row in rows:
        name = row["formula"] + (f", {row['pressure_gpa']:g} GPa" if row["pressure_gpa"] else "")
        measured = f"{row['tc_measured_kelvin']:g}" if row["superconductor"] else "none"
        published = f"{'< ' if row['published_bound'] else ''}{row['tc_published_kelvin']:g}"
        held_out = "" if row["tc_held_out_kelvin"] is None else f"{row['tc_held_out_kelvin']:.2f}"
        numbers = ["-", "", held_out]
        if row["found"]:
            numbers[:2] = f"{row['tc_kelvin']:.2f}", f"{row['tc_low_kelvin']:.1f} to {row['tc_high_kelvin']:.1f}"
        place = f"{row['collection']}: " if row["collection"] else ""
        material = f"{place}{row['material_id']}" if row["found"] else ""
        table.add_row(str(row["pair"]), name, row["space_group"], measured, published, *numbers, escape(material))
    console.print(table)
    counts = count_pairs(found)
    if counts["pairs"]:
        whole = f"{counts['pairs_in_order']} of {counts['pairs']} pairs with both bands"
        console.print(f"In {whole} the superconductor has the higher Tc.", soft_wrap=True)
    for row in rows:
        if row["note"]:
            pressure = f" at {row['pressure_gpa']:g} GPa" if row["pressure_gpa"] else ""
            console.print(f"{row['formula']}{pressure}: {row['note']}", **PLAIN)


def print_time_machine(console: Console, workspace: Workspace) -> None:
    """Print for each year how many of the first places were found later, networks first, then the best baselines."""
    from tasks.report_time_machine import read_time_machine

    found = read_time_machine(workspace)
    if found is None:
        return
    for part in found.tables:
        table = Table(title=part.title, title_justify="left", caption=part.note, caption_justify="left")
        table.add_column("model")
        for year in part.years:
            table.add_column(str(year), justify="right", no_wrap=True)
        for row in part.rows:
            table.add_row(row.model, *(cell.text if cell else "-" for cell in row.cells))
        console.print(table)
    for verdict in found.verdicts:
        console.print(verdict, **PLAIN)
    for item in found.refused:
        console.print(f"{item['item']}: {item['reason']}", **PLAIN)


ACTIVATION = {  # columns of the table of activation maps: title to number
    "trees' share": "trees_share",
    "atoms' share": "atoms_share",
    "gradients agree": "agreement",
    "same sign": "same_sign",
    "random weights": "random_weights",
    "networks agree": "networks_agreement",
}
EXPLAINED = {
    "symmetry": "symmetric share of the rollout, 0 to 1",
    "symmetry_shuffled": "… of shuffled patches",
    "symmetry_most": "… at most in these patches",
    "band_symmetry": "… of the band shown",
    "random_weights": "rank correlation with random weights",
    "agreement": "… between the trained networks",
}


def print_explanation(console: Console, found: Any, files: Sequence[str]) -> None:
    """Print the numbers of an attention map, what they mean, and where the files are."""
    numbers = found.numbers
    table = Table(title=f"Where BNAS looked in {numbers['formula']}, band {numbers['band']}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    interval = f"{numbers['tc_low_kelvin']:.1f} to {numbers['tc_high_kelvin']:.1f}"
    table.add_row("Tc / K of the ensemble", f"{numbers['tc_kelvin']:.2f} ({interval})")
    for name, text in EXPLAINED.items():
        table.add_row(text, "-" if numbers[name] is None else f"{numbers[name]:z.2f}")
    console.print(table)
    for line in [*found.words, *files]:
        console.print(line, **PLAIN)


def print_activations(console: Console, found: Sequence[Any], files: Sequence[str], rejected: Sequence[Any]) -> None:
    """Print the checks of activation maps, a row a crystal, what they mean, and where the files are."""
    table = Table(title="What S2SNet's answer hangs on", title_justify="left")
    for name in ("crystal", "formula"):
        table.add_column(name)
    for name in ("probability", *ACTIVATION):
        table.add_column(name, justify="right")
    for one in found:
        numbers = one.numbers
        cells = ["-" if numbers[name] is None else f"{numbers[name]:z.2f}" for name in ACTIVATION.values()]
        table.add_row(escape(numbers["material_id"]), numbers["formula"], f"{numbers['probability']:.2f}", *cells)
    console.print(table)
    for one in found:
        console.print(f"{one.numbers['material_id']}: {' '.join(one.words)}", **PLAIN)
    for refusal in rejected:
        console.print(f"{refusal.item} is left out: {refusal.reason}", **PLAIN, style="yellow")
    for line in files:
        console.print(line, **PLAIN)


def _prediction_cells(row: dict[str, Any]) -> list[str]:
    def number(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    tc = number("tc_kelvin", ".2f")
    if tc:
        tc += f" ({number('tc_low_kelvin', '.1f')} to {number('tc_high_kelvin', '.1f')})"
    agree = {True: "yes", False: "no", None: ""}[row["agree"]]
    origins = {"BNAS": row["tc_origin"], "S2SNet": row["probability_origin"]}
    trained = ", ".join(network for network, origin in origins.items() if origin == "in-sample")
    distance = number("distance", ".2f") + (" (too far)" if row["abstain"] else "")
    nearest = f"none; nearest {row['nearest_formula']}" if row["nearest_formula"] else ""
    measured = f"{row['known_formula']} ({row['known']})" if row["known_formula"] else nearest
    crystal = [number("probability", ".2f"), number("s2snet_tc_kelvin", ".2f")]
    return [Path(row["file"]).name, row["formula"] or "", tc, *crystal, agree, trained, distance, measured]
