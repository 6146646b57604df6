"""What was known before a year, and what was still to be found: the training set and the pool of the time machine."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymatgen.core import Composition

from models.splits import composition_key
from tasks.cleaning import OUTPUT as SUPERCONDUCTORS
from tasks.cleaning import clean_reports
from tasks.exceptions import InputError
from tasks.s2snet_data import COLUMNS, ORDERED
from tasks.settings import CleaningSettings, TimeMachineSettings
from tasks.shards import INDEX
from tasks.stages import Rejection, hash_text
from tasks.supercon import read_reports
from tasks.workspace import Workspace

YEARS = 5  # that are chosen where none is asked for
UNDOPED = (None, "exact")  # matches of a crystal as a database holds it

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class History:
    """All ordered crystals with what was reported on them, and when.

    Attributes
    ----------
    table
        Columns of ``crystals/ordered.parquet``, by material id.
    tc_kelvin, years
        (n,) float64, NaN where nothing was measured, or the year is not known.
    parents, compositions
        n names: the crystal it was made from, and the composition however spelled.
    with_bands
        (n,) bool, whether there is a grid.
    """

    table: pa.Table
    tc_kelvin: NDArray[np.float64]
    years: NDArray[np.float64]
    parents: list[str]
    compositions: list[str]
    with_bands: NDArray[np.bool_]

    def column(self, name: str) -> list[Any]:
        """Values of a column of the table."""
        return list(self.table[name].to_pylist())

    @cached_property
    def formulas(self) -> list[str]:
        """The measured composition where it is known, or that of the ordered cell."""
        pairs = zip(self.column("supercon_formula"), self.column("formula"), strict=True)
        return [known or formula for known, formula in pairs]

    @cached_property
    def systems(self) -> list[str]:
        """Chemical system of each cell."""
        return [Composition(formula).chemical_system for formula in self.column("formula")]

    @property
    def fingerprint(self) -> str:
        """Hash of all that an answer can depend on, grids aside."""
        rows = self.table.drop_columns(["structure"]).to_pylist()
        extras = zip(rows, self.years.tolist(), self.with_bands.tolist(), strict=True)
        return hash_text(*(f"{row} {year} {bands}" for row, year, bands in extras))


@dataclass(frozen=True, eq=False)
class Moment:
    """What one year knew: row numbers into a History.

    Attributes
    ----------
    train
        Reported before the year, then ``background`` rows that were not, taken as no superconductors.
    tc_kelvin
        (train,) labels.
    pool
        Rows to be ranked: no crystal and no composition of theirs is in the training.
    found
        (pool,) year of the first report as a superconductor, NaN where there is none.
    """

    year: int
    train: Rows
    tc_kelvin: NDArray[np.float64]
    pool: Rows
    found: NDArray[np.float64]
    background: int

    def restrict(self, rows: NDArray[np.bool_]) -> "Moment":
        """The same for some of the rows of the History."""
        kept, pool = rows[self.train], rows[self.pool]
        count = int(kept[len(self.train) - self.background :].sum())
        return Moment(self.year, self.train[kept], self.tc_kelvin[kept], self.pool[pool], self.found[pool], count)


def read_history(workspace: Workspace, settings: TimeMachineSettings) -> History:
    """Crystals and reports of a workspace; compositions without a year get that of ``settings.year_table``.

    Raises
    ------
    MissingStageError
        If there are no ordered crystals.
    InputError
        If the table of years cannot be read.
    """
    table = workspace.read_table(ORDERED, [*COLUMNS, "match"]).sort_by("material_id")
    reported, cells = table["supercon_formula"].to_pylist(), table["formula"].to_pylist()
    compositions = [composition_key(known or cell) for known, cell in zip(reported, cells, strict=True)]
    measured, years = (_numbers(table[name]) for name in ("tc_kelvin", "year_first"))
    if settings.year_table:
        known = read_years(settings.year_table)
        told = np.array([known.get(composition, np.nan) for composition in compositions])
        years = np.where(np.isnan(years) & ~np.isnan(measured), told, years)
    grids = set(workspace.read_table(INDEX)["material_id"].to_pylist()) if workspace.exists(INDEX) else set()
    return History(
        table=table,
        tc_kelvin=measured,
        years=years,
        parents=table["parent_id"].to_pylist(),
        compositions=compositions,
        with_bands=np.array([name in grids for name in table["material_id"].to_pylist()], dtype=bool),
    )


def read_years(source: str) -> dict[str, float]:
    """Year of the first report of each composition in a table of reports, those that cleaning refuses left out."""
    cleaned = clean_reports(read_reports(source), CleaningSettings()).tables[SUPERCONDUCTORS]
    pairs = zip(cleaned["formula"].to_pylist(), cleaned["year_first"].to_pylist(), strict=True)
    return {composition_key(formula): float(year) for formula, year in pairs if year is not None}


def look_back(history: History, year: int, background: float, seed: int) -> Moment:
    """Who was known before a year, and who was not.

    The pool holds crystals as a database has them: a doped cell is there only because it was reported, and its size
    would tell. Relatives of what was known (same crystal or same composition) are in no pool, nor are those of
    superconductors whose year is not known. A crystal is found if it or a relative is reported as a superconductor in
    the year or later.

    Parameters
    ----------
    background
        Others for each superconductor that the training shall have; those that reports before the year lack are drawn
        by lot from the pool, with their relatives, and leave it.
    """
    superconducts = history.tc_kelvin > 0
    known = history.years < year
    apart = known | (superconducts & np.isnan(history.years))
    undoped = np.array([match in UNDOPED for match in history.column("match")], dtype=bool)
    pool = np.flatnonzero(undoped & ~_related(history, apart))
    train = np.flatnonzero(known)
    labels = history.tc_kelvin[train]
    lacking = int(np.ceil(background * (labels > 0).sum() - (labels == 0).sum()))
    drawn = _draw(history, pool, max(lacking, 0), hash_seed(seed, year))
    pool = np.setdiff1d(pool, drawn)
    return Moment(
        year=year,
        train=np.concatenate([train, drawn]),
        tc_kelvin=np.concatenate([labels, np.zeros(len(drawn))]),
        pool=pool,
        found=_first_found(history, superconducts & (history.years >= year))[pool],
        background=len(drawn),
    )


def choose_years(history: History, settings: TimeMachineSettings) -> tuple[list[int], list[Rejection]]:
    """Years to go back to, and those that cannot be judged, each with the reason.

    Raises
    ------
    InputError
        If no year can be judged; the message tells how many years are known.
    """
    superconducts = history.tc_kelvin > 0
    known = np.sort(history.years[superconducts & ~np.isnan(history.years)])
    shares = np.arange(1, YEARS + 1) / (YEARS + 1)
    asked = settings.years or sorted({int(known[int(len(known) * share)]) for share in shares if len(known)})
    good, refused = [], []
    for year in asked:
        moment = look_back(history, year, settings.background, settings.seed)
        trained, found = int((moment.tc_kelvin > 0).sum()), int((~np.isnan(moment.found)).sum())
        others = len(moment.train) - trained
        if trained < settings.min_trained or found < settings.min_found or not others:
            reason = (
                f"{trained} superconductors and {others} others were reported before, {found} of {len(moment.pool)} "
                f"were found later; needed are {settings.min_trained}, 1 and {settings.min_found}"
            )
            refused.append(Rejection(str(year), reason))
        else:
            good.append(year)
    if not good:
        why = "; ".join(f"{one.item}: {one.reason}" for one in refused)
        raise InputError(
            f"No year can be gone back to: {len(known)} of {int(superconducts.sum())} superconducting materials have a "
            f"year of their first report{f' ({why})' if why else ''}. A table with years, such as SuperBand's, gives "
            "them: --year-table FILE"
        )
    return good, refused


def hash_seed(*parts: Any) -> int:
    """A seed of 31 bits from anything that can be written down."""
    return int(hash_text(*map(str, parts))[:8], 16) % 2**31


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in column.to_pylist()])


def _related(history: History, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which rows share a crystal or a composition with one of ``rows`` (n,)."""
    chosen = np.flatnonzero(rows)
    parents = {history.parents[row] for row in chosen}
    compositions = {history.compositions[row] for row in chosen}
    pairs = zip(history.parents, history.compositions, strict=True)
    return np.array([parent in parents or key in compositions for parent, key in pairs], dtype=bool)


def _draw(history: History, pool: Rows, count: int, seed: int) -> Rows:
    """About ``count`` rows of the pool by lot, relatives together."""
    kin: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in pool.tolist():
        for key in _keys(history, row):
            kin[key].append(row)
    drawn: dict[int, None] = {}
    for row in np.random.default_rng(seed).permutation(pool).tolist():
        if len(drawn) >= count:
            break
        drawn.update((other, None) for key in _keys(history, row) for other in kin[key])
    return np.sort(np.array(list(drawn), dtype=np.int64))


def _first_found(history: History, later: NDArray[np.bool_]) -> NDArray[np.float64]:
    """First of the years of ``later`` (n,) rows that share a crystal or a composition with each row, NaN for none."""
    first: dict[tuple[str, str], float] = {}
    for row in np.flatnonzero(later):
        for key in _keys(history, int(row)):
            first[key] = min(first.get(key, np.inf), float(history.years[row]))
    nearest = [min(first.get(key, np.inf) for key in _keys(history, row)) for row in range(len(history.parents))]
    return np.where(np.isinf(nearest), np.nan, nearest)


def _keys(history: History, row: int) -> Sequence[tuple[str, str]]:
    return ("crystal", history.parents[row]), ("composition", history.compositions[row])
