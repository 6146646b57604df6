"""Reports of superconductivity become one row a composition.

The rules are those of 3DSC (Sci. Data 10, 816 (2023)), with one addition: a report without a transition is not a Tc of
zero that enters a mean. Where reports of one composition disagree about whether it superconducts at all:

* A negative measured down to a temperature above the Tc of the positive reports agrees with them, and is kept as one of
  the source rows.
* A zero without a bound says only that no Tc was reported (so in the extract of Stanev et al. 2018); any positive
  report outranks it, and the zero is refused.
* A negative measured below the positive Tc contradicts it. Fewer negatives than positives are refused; otherwise the
  whole composition is refused.
"""

import math
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
from prefect import task

from tasks.exceptions import InputError
from tasks.families import family_of
from tasks.formulas import FormulaError, read_formula, reduce_amounts, write_formula
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import SUPERCONDUCTORS
from tasks.settings import CleaningSettings
from tasks.sources import decode_text, hash_source, read_bytes, read_cells
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.workspace import Workspace

STAGE = "clean"
CODE_VERSION = 1
OUTPUT = "supercon/superconductors.parquet"
FIRST_YEAR = 1908  # helium was first liquefied; superconductivity was found in 1911

# Accepted headers, compared in lower case. The first two columns must be there.
HEADERS = {
    "formula": ("formula", "name", "element", "composition"),
    "tc_kelvin": ("tc_kelvin", "tc", "critical_temp", "tc (k)", "tc_k"),
    "lowest_kelvin": ("lowest_kelvin", "tcn"),
    "year": ("year", "year_first"),
    "reference": ("reference", "references", "refno", "doi"),
    "pressure_gpa": ("pressure_gpa",),
}
REQUIRED = ("formula", "tc_kelvin")

REPORTS = pa.schema([pa.field("row", pa.int32(), nullable=False), *(pa.field(name, pa.string()) for name in HEADERS)])


@dataclass(frozen=True)
class Report:
    """One readable report; ``tc_kelvin`` 0 for a negative. ``row`` counts from 1."""

    row: int
    tc_kelvin: float
    lowest_kelvin: float | None
    year: int | None
    reference: str | None


def read_reports(source: str) -> pa.Table:
    """Reports as text, one row each, in the order of the file (schema ``REPORTS``).

    Columns are found by their names, in any order; ``row`` counts data rows from 1.

    Raises
    ------
    InputError
        If the file is missing, empty, not text, or lacks a formula or Tc column.
    """
    header, rows = read_cells(decode_text(read_bytes(source), source), source)
    names = [name.lower() for name in header]
    found = {
        column: next((names.index(n) for n in accepted if n in names), None) for column, accepted in HEADERS.items()
    }
    missing = [column for column in REQUIRED if found[column] is None]
    if missing:
        allowed = "; ".join(f"{column}: {', '.join(HEADERS[column])}" for column in missing)
        raise InputError(f"{source} lacks a column: it has {', '.join(header)}, and accepted are ({allowed})")
    columns: dict[str, Sequence[Any]] = {
        column: [row[at] or None if at is not None and at < len(row) else None for row in rows]
        for column, at in found.items()
    }
    return pa.table({"row": range(1, len(rows) + 1), **columns}, schema=REPORTS)


def _number(text: str | None, name: str) -> float | None:
    """A finite number of at least 0 (decimal point or comma), None for an empty cell; ValueError otherwise."""
    if text is None:
        return None
    try:
        value = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", text))
    except ValueError:
        raise ValueError(f"{name} {text!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} {text} is not a finite number of at least 0")
    return value


def _year(text: str | None) -> int | None:
    """A year in which superconductivity can have been reported; anything else counts as unknown."""
    try:
        year = int(float(text or "nan"))
    except (ValueError, OverflowError):
        return None
    return year if FIRST_YEAR <= year <= datetime.now(UTC).year else None


def _read_report(row: dict[str, Any], settings: CleaningSettings) -> Report:
    """One row as a report; ValueError with the reason where it is none."""
    tc = _number(row["tc_kelvin"], "Tc")
    lowest = _number(row["lowest_kelvin"], "lowest temperature")
    pressure = _number(row["pressure_gpa"], "pressure")
    if row["formula"] is None:
        raise ValueError("no formula")
    if tc is None and lowest is None:
        raise ValueError("neither a Tc nor a lowest temperature without superconductivity")
    if tc is not None and tc > settings.max_tc_kelvin:
        raise ValueError(f"Tc {tc:g} K is above the credible limit of {settings.max_tc_kelvin:g} K")
    if pressure:
        raise ValueError(f"measured at {pressure:g} GPa, not at ambient pressure")
    return Report(row["row"], tc or 0.0, lowest, _year(row["year"]), row["reference"])


def _agree(group: list[Report], settings: CleaningSettings) -> tuple[list[Report], list[Report], dict[int, str]]:
    """Reports of one composition that its Tc stands on, those that agree with it, and refused rows with reasons."""
    positives = [report for report in group if report.tc_kelvin > 0]
    if not positives:
        return group, [], {}
    temperatures = _distinct_temperatures(positives)
    mean, spread = fmean(temperatures), pstdev(temperatures)
    for_it = f"{len(positives)} report{'s' * (len(positives) > 1)} of {mean:.3g} K"
    if spread > settings.max_std_kelvin:
        reason = f"{for_it} with a standard deviation of {spread:.2f} K, more than {settings.max_std_kelvin:g} K"
        return [], [], {report.row: reason for report in group}
    unbound = [report for report in group if report.tc_kelvin == 0 and report.lowest_kelvin is None]
    bounded = [report for report in group if report.tc_kelvin == 0 and report.lowest_kelvin is not None]
    agreeing = [report for report in bounded if (report.lowest_kelvin or 0) > max(temperatures)]
    against = [report for report in bounded if report not in agreeing]
    if against and len(against) >= len(positives):
        reason = f"{for_it} against {len(against)} of no superconductivity below that"
        return [], [], {report.row: reason for report in group}
    refused = {report.row: f"no Tc is given here, but there is {for_it}" for report in unbound}
    refused |= {report.row: f"contradicted by {for_it}" for report in against}
    return positives, agreeing, refused


def _distinct_temperatures(reports: list[Report]) -> list[float]:
    """Tc of each report, a value that one reference gives again counted once."""
    distinct = {(r.tc_kelvin, r.reference or r.row): r.tc_kelvin for r in reports}
    return list(distinct.values())


def _merge(amounts: dict[str, float], group: list[Report], agreeing: list[Report], source: str) -> dict[str, Any]:
    """The output row of a composition, from the reports that its Tc stands on and those that agree."""
    temperatures = _distinct_temperatures(group)
    every = [*group, *agreeing]
    bounds = [report.lowest_kelvin for report in group if report.lowest_kelvin is not None]
    negative = not any(temperatures)
    return {
        "formula": write_formula(amounts),
        "tc_kelvin": round(fmean(temperatures), 6),
        "tc_std_kelvin": round(pstdev(temperatures), 6),
        "lowest_kelvin": min(bounds) if negative and bounds else None,
        "reports": len(temperatures),
        "year_first": min((report.year for report in group if report.year), default=None),
        "references": sorted({report.reference for report in every if report.reference}),
        "family": family_of(amounts),
        "source": source,
        "source_rows": sorted(report.row for report in every),
    }


def clean_reports(reports: pa.Table, settings: CleaningSettings, advance: Advance = silent) -> StageOutcome:
    """One row a composition, by the rules of 3DSC and of this module.

    Parameters
    ----------
    reports
        As ``read_reports`` gives them; metadata ``source`` names the file in the output.

    Returns
    -------
    StageOutcome
        Table ``supercon/superconductors.parquet`` (``SUPERCONDUCTORS``), in the order of first mention. Tc is the mean
        of the reports (a value that one reference gives again counts once), its spread their population standard
        deviation. Each refused row has its reason.
    """
    source = (reports.schema.metadata or {}).get(b"source", b"").decode()
    refused: dict[int, str] = {}
    groups: dict[tuple[tuple[str, float], ...], list[Report]] = {}
    interpreted = 0
    for row in reports.to_pylist():
        advance(1)
        try:
            report = _read_report(row, settings)
            parsed = read_formula(row["formula"], settings.max_amount)
        except (FormulaError, ValueError) as error:
            refused[row["row"]] = str(error)
            continue
        interpreted += bool(parsed.notes)
        groups.setdefault(tuple(reduce_amounts(parsed.amounts).items()), []).append(report)
    rows = []
    for amounts, group in groups.items():
        standing, agreeing, reasons = _agree(group, settings)
        refused |= reasons
        if standing:
            rows.append(_merge(dict(amounts), standing, agreeing, source))
    texts = dict(zip(reports["row"].to_pylist(), reports["formula"].to_pylist(), strict=True))
    table = pa.Table.from_pylist(rows, schema=SUPERCONDUCTORS)
    return StageOutcome(
        rows_in=reports.num_rows,
        accounted=sum(len(row["source_rows"]) for row in rows),
        tables={OUTPUT: table},
        rejected=[Rejection(f"row {row}: {texts[row] or ''}", refused[row]) for row in sorted(refused)],
        counts=_counts(rows, interpreted),
    )


def _counts(rows: list[dict[str, Any]], interpreted: int) -> dict[str, Any]:
    spreads = [row["tc_std_kelvin"] for row in rows if row["reports"] > 1 and row["tc_kelvin"] > 0]
    families = sorted({row["family"] for row in rows})
    return {
        "compositions": len(rows),
        "superconductors": sum(row["tc_kelvin"] > 0 for row in rows),
        "merged": sum(len(row["source_rows"]) > 1 for row in rows),
        "interpreted_formulas": interpreted,
        "noise_floor_kelvin": round(fmean(spreads), 3) if spreads else None,
        "families": {family: sum(row["family"] == family for row in rows) for family in families},
    }


@task(name="clean")
def clean_supercon(workspace: str, source: str, settings: CleaningSettings) -> StageReport:
    """Clean a table of reports into the workspace; see ``clean_reports``."""

    def compute() -> StageOutcome:
        reports = read_reports(source).replace_schema_metadata({"source": posixpath.basename(source)})
        with stage_progress(STAGE, reports.num_rows) as advance:
            return clean_reports(reports, settings, advance)

    place, inputs = Workspace(workspace), [hash_source(source)]
    report = run_stage(place, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(place, report)
