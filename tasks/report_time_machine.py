"""The time machine as people read it: a table for each kind of input, a sentence each, and a figure by year."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from tasks.figures import BLUE, FAINT, GREEN, INK, QUIET, STYLE, VERMILION, to_data_url
from tasks.time_machine import BOTH, LISTS, OUTPUT, STAGE
from tasks.time_machine_models import NETWORKS
from tasks.workspace import Workspace

HOW_TO = "meissner validate time-machine"
TITLES = {"crystals": "All crystals", "bands": "Materials with bands"}
POOLS = {"all": "", "new systems": ", new chemical systems only"}
SHARE = 0.2  # the list that is spoken of holds at most so much of the smallest pool
SHOWN_BASELINES = 3  # in the figure
SHOWN_PLACES = 10  # of the list that is shown


@dataclass(frozen=True)
class Cell:
    """What one list held."""

    hits: int
    top: int
    expected: float
    enrichment: float
    low: float
    high: float
    p_value: float

    @property
    def text(self) -> str:
        """For a terminal: hits, enrichment, chance."""
        return f"{self.hits} of {self.top}, ×{self.enrichment:.2f}, p {self.p_value:.2g}"

    @property
    def better(self) -> bool:
        """Whether the interval lies above chance."""
        return self.low > 1


@dataclass(frozen=True)
class Row:
    """A model, with a cell for each year or None."""

    model: str
    own: bool
    cells: tuple[Cell | None, ...]

    @property
    def hits(self) -> int:
        """Hits in all years."""
        return sum(cell.hits for cell in self.cells if cell)

    @property
    def expected(self) -> float:
        """Hits of a draw by lot in all years."""
        return sum(cell.expected for cell in self.cells if cell)

    @property
    def mean(self) -> float:
        """Hits of all years over those of chance."""
        return self.hits / self.expected if self.expected else 0.0


@dataclass(frozen=True)
class Lists:
    """Lists of one length for one kind of input and pool: a row a model, networks first, then by what they found."""

    inputs: str
    pool: str
    top: int
    years: tuple[int, ...]
    rows: tuple[Row, ...]
    perfect: tuple[float, ...]  # enrichment of a list that is all hits, by year
    note: str

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{TITLES[self.inputs]}: the first {self.top}{POOLS[self.pool]}"


@dataclass(frozen=True)
class TimeMachine:
    """What the page and the terminal show.

    Attributes
    ----------
    tables
        The lists that are spoken of, one for each kind of input.
    others
        Those of other lengths, and of new chemical systems.
    places
        The first places of the own model in the latest year, by kind of input.
    """

    tables: tuple[Lists, ...]
    others: tuple[Lists, ...]
    verdicts: tuple[str, ...]
    places: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]
    counts: Mapping[str, Any]
    settings: Mapping[str, Any]


def read_time_machine(workspace: Workspace) -> TimeMachine | None:
    """The finished stage of a workspace; None where it was not run."""
    manifest = f"stages/{STAGE}/manifest.json"
    if not workspace.exists(OUTPUT) or not workspace.exists(manifest):
        return None
    table, report = workspace.read_table(OUTPUT), workspace.read_json(manifest)
    kinds = [kind for kind in TITLES if kind in set(table["inputs"].to_pylist())]
    chosen = {kind: _headline(table.filter(pc.equal(table["inputs"], kind))) for kind in kinds}
    lists = {
        (kind, pool, top): found
        for kind in kinds
        for pool in POOLS
        for top in sorted(set(table["top"].to_pylist()))
        if (found := _lists(table, kind, pool, top))
    }
    tables = tuple(lists[kind, "all", chosen[kind]] for kind in kinds)
    places = workspace.read_table(LISTS)
    return TimeMachine(
        tables=tables,
        others=tuple(found for found in lists.values() if found not in tables),
        verdicts=tuple(_verdict(found) for found in tables),
        places=tuple(_places(places, found) for found in tables),
        refused=tuple(workspace.read_table(f"stages/{STAGE}/rejected.parquet").to_pylist()),
        counts=report["counts"],
        settings=report["settings"],
    )


def time_machine_section(workspace: Workspace) -> dict[str, Any]:
    """What the page's template takes; ``run`` is False where the time machine was not run."""
    found = read_time_machine(workspace)
    if found is None:
        return {"run": False, "how": HOW_TO}
    figure = {
        "url": to_data_url(time_machine_figure(found.tables)),
        "caption": "Enrichment by year with 95 % bootstrap intervals over the pool. 1 is chance; the dashed line is a "
        "perfect list.",
    }
    return {"run": True, "found": found, "figure": figure}


def time_machine_figure(tables: Sequence[Lists]) -> Figure:
    """Enrichment by year of the own model and the best baselines, a panel for each kind of input."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9 * len(tables), 4.3), layout="constrained")
        for axis, lists in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
            own = [row for row in lists.rows if row.own][:1]
            shown = [*own, *[row for row in lists.rows if not row.own][: SHOWN_BASELINES + 1 - len(own)]]
            colours = [*([VERMILION] if own else []), BLUE, GREEN, QUIET, INK]
            for place, (row, colour) in enumerate(zip(shown, colours, strict=False)):
                cells = [(at, cell) for at, cell in enumerate(row.cells) if cell]
                x = [at + 0.12 * (place - (len(shown) - 1) / 2) for at, _ in cells]
                y = [cell.enrichment for _, cell in cells]
                reach = [
                    [max(cell.enrichment - cell.low, 0) for _, cell in cells],
                    [max(cell.high - cell.enrichment, 0) for _, cell in cells],
                ]
                style = {"color": colour, "marker": "o", "markersize": 4.5, "capsize": 2.5, "linewidth": 1.1}
                axis.errorbar(x, y, yerr=reach, label=row.model, **style)
            axis.plot(range(len(lists.years)), lists.perfect, color=FAINT, linestyle="--", marker="_", markersize=14)
            axis.axhline(1, color=QUIET, linewidth=0.9)
            axis.set_xticks(range(len(lists.years)), [str(year) for year in lists.years])
            axis.set(xlim=(-0.5, len(lists.years) - 0.5), xlabel="trained on reports before", title=lists.title)
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        figure.axes[0].set_ylabel("found later / expected by chance")
        return figure


def _headline(table: pa.Table) -> int:
    """The longest list that holds at most SHARE of each year's pool, else the shortest."""
    rows = table.filter(pc.equal(table["pool"], "all"))
    tops = sorted(set(rows["top"].to_pylist()))
    smallest = min(rows["pool_materials"].to_pylist())
    return max([top for top in tops if top <= SHARE * smallest], default=tops[0])


def _lists(table: pa.Table, inputs: str, pool: str, top: int) -> Lists | None:
    rows = [row for row in table.to_pylist() if row["inputs"] == inputs and row["pool"] == pool and row["top"] == top]
    if not rows:
        return None
    years = tuple(sorted({row["year"] for row in rows}))
    cells = {(row["model"], row["year"]): _cell(row) for row in rows}
    models = dict.fromkeys(row["model"] for row in rows)
    own = [BOTH, *NETWORKS.values()]
    made = [Row(name, name in own, tuple(cells.get((name, year)) for year in years)) for name in models]
    made.sort(key=lambda row: (not row.own, own.index(row.model) if row.own else 0, -row.mean, row.model))
    sizes = {row["year"]: row for row in rows}
    note = "; ".join(
        f"{year}: trained on {size['trained']} ({size['trained_superconductors']} superconductors, "
        f"{size['background']} by lot), {size['pool_found']} of {size['pool_materials']} found later"
        for year, size in sorted(sizes.items())
    )
    perfect = tuple(sizes[year]["enrichment_largest"] for year in years)
    return Lists(inputs, pool, top, years, tuple(made), perfect, note)


def _cell(row: Mapping[str, Any]) -> Cell:
    names = ("hits", "top", "expected", "enrichment", "p_value")
    return Cell(**{name: row[name] for name in names}, low=row["enrichment_low"], high=row["enrichment_high"])


def _verdict(lists: Lists) -> str:
    """One sentence: what the own model found over all years beside chance and the best baseline."""
    own = next((row for row in lists.rows if row.own), None)
    best = max((row for row in lists.rows if not row.own), key=lambda row: row.mean, default=None)
    baselines = sum(not row.own for row in lists.rows)
    what = f"{TITLES[lists.inputs]}, the first {lists.top} in each of {len(lists.years)} years"
    parts = [
        f"{row.model} found {row.hits} where a draw by lot finds {row.expected:.1f} (×{row.mean:.2f})"
        for row in (own, best)
        if row
    ]
    return f"{what}: {f'; the best of {baselines} baselines, '.join(parts) if own and best else ''.join(parts)}."


def _places(table: pa.Table, lists: Lists) -> dict[str, Any]:
    """The first places of the first model of a table in its latest year."""
    model, year = lists.rows[0].model, lists.years[-1]
    rows = [
        row
        for row in table.to_pylist()
        if (row["inputs"], row["model"], row["year"]) == (lists.inputs, model, year) and row["rank"] <= SHOWN_PLACES
    ]
    return {"title": f"{TITLES[lists.inputs]}: the first {len(rows)} of {model}, trained before {year}", "rows": rows}
