"""Reports of superconductivity become one row a composition.

The rules are those of 3DSC (Sci. Data 10, 816 (2023)), with two additions. Only what was measured at ambient pressure
gives a label; a report under pressure is refused, or kept apart where the setting says so. And a report without a
transition is not a Tc of zero that enters a mean. Where reports of one composition disagree about whether it
superconducts at all:

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
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
from prefect import task

from tasks.downloads import fetch_mdr
from tasks.families import family_of
from tasks.formulas import (
    AmountLimitError,
    FormulaError,
    UnknownAmountError,
    read_formula,
    reduce_amounts,
    write_formula,
)
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.schemas import SUPERCONDUCTORS, UNDER_PRESSURE
from tasks.settings import CleaningSettings, FetchSettings, MdrSettings
from tasks.sources import hash_source
from tasks.stages import Rejection, StageOutcome, StageReport, run_stage
from tasks.supercon import DEFINITIONS, read_reports
from tasks.workspace import Workspace

STAGE = "clean"
CODE_VERSION = 2
OUTPUT = "supercon/superconductors.parquet"
APART = "supercon/under_pressure.parquet"
MDR_SOURCE = "mdr"  # in place of a file: SuperCon's datasheet, downloaded
FIRST_YEAR = 1908  # helium was first liquefied; superconductivity was found in 1911
AMBIENT_GPA = 2e-4  # up to two atmospheres
SHOWN_TEXT = 60  # characters of a cell that a reason repeats

# Each rule sees the rows that those above it kept. The counts of the stage name them ``refused_<rule>``.
RULES = {
    "damaged_row": "cells do not stand under their headers",
    "no_formula": "no formula",
    "unreadable_number": "a temperature that is no number",
    "unit": "a temperature that is not in kelvin",
    "no_measurement": "neither a Tc nor a lowest temperature",
    "inconsistent": "a Tc that is not above the row's own lowest temperature",
    "pressure": "not measured at ambient pressure",
    "tc_limit": "a Tc above the credible limit",
    "unreadable_formula": "a text that is no formula",
    "unknown_amount": "an amount that is a variable of unknown value",
    "amount_limit": "an amount below 0 or too large to be credible",
    "spread": "reports of the composition that spread too far",
    "contradiction": "as many negatives as Tc of the composition",
    "outvoted": "a negative against more reports of a Tc",
    "no_tc_reported": "a zero without a bound, where others report a Tc",
}
KEPT = {
    "tc": "a Tc that counts",
    "bounded_negative": "no superconductivity down to a known temperature",
    "unbounded_negative": "no Tc reported, no lowest temperature known",
    "agreeing_negative": "measured only above the Tc that others report",
    "under_pressure": "measured under pressure, kept apart",
}

# Units of pressure in lower case, in GPa. A millibar is not met in this field: mbar is a megabar.
_PRESSURE_UNITS = {"gpa": 1.0, "mpa": 1e-3, "kpa": 1e-6, "mbar": 100.0, "kbar": 0.1, "bar": 1e-4, "atm": 1.01325e-4}
_PRESSURE = re.compile(r"~?([0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)\s*([a-zA-Z]*)")
_AMBIENT_WORDS = frozenset(["ambient", "ambient pressure", "atmospheric"])
# What surrounds a value: about, its error in the last digits or after a sign, its unit.
_AROUND_VALUE = re.compile(r"^[~≈∼]\s*|\s*\([0-9]+\)\s*|\s*(±|\+/-)\s*[0-9.,]+\s*|\s*K$")


class RefusedError(ValueError):
    """A row that a rule refuses, with the reason."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, reason


@dataclass(frozen=True)
class Report:
    """One readable report; ``tc_kelvin`` 0 for a negative. ``row`` counts from 1."""

    row: int
    tc_kelvin: float
    tc_definition: str | None
    lowest_kelvin: float | None
    pressure: str | None  # as written, with its unit where it is known; None at ambient pressure
    year: int | None
    reference: str | None


def _number(text: str | None, name: str) -> float | None:
    """A finite number of at least 0 (decimal point or comma), None for an empty cell."""
    if text is None:
        return None
    try:
        value = float(re.sub(r"^([0-9]*),([0-9]+)$", r"\1.\2", _AROUND_VALUE.sub("", text)))
    except ValueError:
        raise RefusedError("unreadable_number", f"{name} {text[:SHOWN_TEXT]!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0):
        raise RefusedError("unreadable_number", f"{name} {text[:SHOWN_TEXT]} is not a finite number of at least 0")
    return value


def _oxygen(text: str | None) -> float | None:
    """A measured oxygen content; anything that is no number above 0 counts as not measured."""
    try:
        return _number(text, "oxygen content") or None
    except RefusedError:
        return None


def _year(text: str | None) -> int | None:
    """A year in which superconductivity can have been reported; anything else counts as unknown."""
    try:
        year = int(float(text or "nan"))
    except (ValueError, OverflowError):
        return None
    return year if FIRST_YEAR <= year <= datetime.now(UTC).year else None


def _pressure_gpa(text: str) -> float | None:
    """A pressure with a known unit, in GPa; None where there is no number or no unit."""
    match = _PRESSURE.fullmatch(text)
    if not match or match[2].lower() not in _PRESSURE_UNITS:
        return None
    return float(match[1].replace(",", ".")) * _PRESSURE_UNITS[match[2].lower()]


def _is_ambient(text: str | None) -> bool:
    """Whether a cell says ambient pressure: nothing, the word, or a number that is next to 0."""
    if text is None or text.lower() in _AMBIENT_WORDS:
        return True
    match = _PRESSURE.fullmatch(text)
    if match and not match[2]:
        return float(match[1].replace(",", ".")) <= AMBIENT_GPA
    gpa = _pressure_gpa(text)
    return gpa is not None and gpa <= AMBIENT_GPA


def _read_report(row: Mapping[str, Any], settings: CleaningSettings) -> Report:
    """One row as a report, its formula aside; RefusedError with rule and reason where it is none."""
    if row["problem"]:
        raise RefusedError("damaged_row", row["problem"])
    if row["formula"] is None:
        raise RefusedError("no_formula", "no formula")
    tc = _number(row["tc_kelvin"], "Tc")
    lowest = _number(re.sub(r"^[<≤]\s*", "", row["lowest_kelvin"] or "") or None, "lowest temperature")
    if row["unit"] and row["unit"].lower() not in ("k", "kelvin"):
        raise RefusedError("unit", f"the unit of Tc is {row['unit'][:SHOWN_TEXT]}, not K")
    if tc is None and not lowest:
        known = "" if lowest is None else " (0 K bounds nothing)"
        raise RefusedError("no_measurement", f"neither a Tc nor a lowest temperature without superconductivity{known}")
    if tc and lowest and lowest >= tc:
        raise RefusedError("inconsistent", f"Tc {tc:g} K is not above the lowest temperature measured, {lowest:g} K")
    pressure = None if _is_ambient(row["pressure"]) else row["pressure"]
    if pressure and settings.pressure == "refuse":
        unit = "" if _pressure_gpa(pressure) is not None else ", unit not given"
        written = f"{pressure[:SHOWN_TEXT]}{unit}"
        raise RefusedError("pressure", f"measured under pressure ({written}), not at ambient pressure")
    if tc is not None and tc > settings.max_tc_kelvin and not pressure:
        raise RefusedError("tc_limit", f"Tc {tc:g} K is above the credible limit of {settings.max_tc_kelvin:g} K")
    definition = row["tc_definition"] if tc else None
    return Report(row["row"], tc or 0.0, definition, lowest or None, pressure, _year(row["year"]), row["reference"])


def _read_amounts(row: Mapping[str, Any], settings: CleaningSettings) -> tuple[dict[str, float], bool]:
    """Normalised amounts of a row's formula, and whether something was interpreted; RefusedError where it has none."""
    try:
        parsed = read_formula(
            row["formula"], settings.max_amount, _oxygen(row["oxygen"]), (row["elements"] or "").split()
        )
    except UnknownAmountError as error:
        raise RefusedError("unknown_amount", str(error)) from error
    except AmountLimitError as error:
        raise RefusedError("amount_limit", str(error)) from error
    except FormulaError as error:
        raise RefusedError("unreadable_formula", str(error)) from error
    return reduce_amounts(parsed.amounts), bool(parsed.notes)


def _agree(
    group: list[Report], settings: CleaningSettings
) -> tuple[list[Report], list[Report], dict[int, RefusedError]]:
    """Reports of one composition that its Tc stands on, those that agree with it, and the refused rows."""
    positives = [report for report in group if report.tc_kelvin > 0]
    if not positives:
        return group, [], {}
    temperatures = _distinct_temperatures(positives)
    mean, spread = fmean(temperatures), pstdev(temperatures)
    for_it = f"{len(positives)} report{'s' * (len(positives) > 1)} of {mean:.3g} K"
    if spread > settings.max_std_kelvin:
        reason = f"{for_it} with a standard deviation of {spread:.2f} K, more than {settings.max_std_kelvin:g} K"
        return [], [], {report.row: RefusedError("spread", reason) for report in group}
    unbound = [report for report in group if report.tc_kelvin == 0 and report.lowest_kelvin is None]
    bounded = [report for report in group if report.tc_kelvin == 0 and report.lowest_kelvin is not None]
    agreeing = [report for report in bounded if (report.lowest_kelvin or 0) > max(temperatures)]
    against = [report for report in bounded if report not in agreeing]
    if against and len(against) >= len(positives):
        reason = f"{for_it} against {len(against)} of no superconductivity below that"
        return [], [], {report.row: RefusedError("contradiction", reason) for report in group}
    refused = {
        report.row: RefusedError("no_tc_reported", f"no Tc is given here, but there is {for_it}") for report in unbound
    }
    refused |= {report.row: RefusedError("outvoted", f"contradicted by {for_it}") for report in against}
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
        "tc_definitions": [name for name in DEFINITIONS if any(report.tc_definition == name for report in group)],
        "reports": len(temperatures),
        "year_first": min((report.year for report in group if report.year), default=None),
        "references": sorted({report.reference for report in every if report.reference}),
        "family": family_of(amounts),
        "source": source,
        "source_rows": sorted(report.row for report in every),
    }


def _set_apart(amounts: Mapping[str, float], report: Report, source: str) -> dict[str, Any]:
    """The row of a report under pressure."""
    return {
        "formula": write_formula(amounts),
        "tc_kelvin": report.tc_kelvin,
        "lowest_kelvin": report.lowest_kelvin if report.tc_kelvin == 0 else None,
        "pressure": report.pressure,
        "pressure_gpa": _pressure_gpa(report.pressure or ""),
        "tc_definition": report.tc_definition,
        "year": report.year,
        "reference": report.reference,
        "family": family_of(amounts),
        "source": source,
        "source_row": report.row,
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
        deviation. Table ``supercon/under_pressure.parquet`` (``UNDER_PRESSURE``), one row a report, empty unless
        ``settings.pressure`` is ``apart``. Each refused row has its reason; the counts tell for every rule how many
        rows it refused and for every kind of report how many were kept.
    """
    source = (reports.schema.metadata or {}).get(b"source", b"").decode()
    refused: dict[int, RefusedError] = {}
    groups: dict[tuple[tuple[str, float], ...], list[Report]] = {}
    apart: list[dict[str, Any]] = []
    interpreted = 0
    for row in reports.to_pylist():
        advance(1)
        try:
            report = _read_report(row, settings)
            amounts, noted = _read_amounts(row, settings)
        except RefusedError as refusal:
            refused[row["row"]] = refusal
            continue
        interpreted += noted
        if report.pressure:
            apart.append(_set_apart(amounts, report, source))
        else:
            groups.setdefault(tuple(amounts.items()), []).append(report)
    rows, kept = [], Counter({"under_pressure": len(apart)})
    for formula, group in groups.items():
        standing, agreeing, refusals = _agree(group, settings)
        refused |= refusals
        kept.update(map(_kind, standing))
        kept["agreeing_negative"] += len(agreeing)
        if standing:
            rows.append(_merge(dict(formula), standing, agreeing, source))
    texts = dict(zip(reports["row"].to_pylist(), reports["formula"].to_pylist(), strict=True))
    return StageOutcome(
        rows_in=reports.num_rows,
        accounted=sum(len(row["source_rows"]) for row in rows) + len(apart),
        tables={
            OUTPUT: pa.Table.from_pylist(rows, schema=SUPERCONDUCTORS),
            APART: pa.Table.from_pylist(apart, schema=UNDER_PRESSURE),
        },
        rejected=[Rejection(f"row {row}: {texts[row] or ''}", refused[row].reason) for row in sorted(refused)],
        counts=_counts(rows, interpreted, Counter(refusal.rule for refusal in refused.values()), kept),
    )


def _kind(report: Report) -> str:
    """Which of KEPT a report is that a composition's row stands on."""
    if report.tc_kelvin > 0:
        return "tc"
    return "unbounded_negative" if report.lowest_kelvin is None else "bounded_negative"


def _counts(
    rows: list[dict[str, Any]], interpreted: int, refused: Mapping[str, int], kept: Mapping[str, int]
) -> dict[str, Any]:
    spreads = [row["tc_std_kelvin"] for row in rows if row["reports"] > 1 and row["tc_kelvin"] > 0]
    families = sorted({row["family"] for row in rows})
    return {
        "compositions": len(rows),
        "superconductors": sum(row["tc_kelvin"] > 0 for row in rows),
        "merged": sum(len(row["source_rows"]) > 1 for row in rows),
        "interpreted_formulas": interpreted,
        "noise_floor_kelvin": round(fmean(spreads), 3) if spreads else None,
        "families": {family: sum(row["family"] == family for row in rows) for family in families},
        **{f"kept_{kind}": kept.get(kind, 0) for kind in KEPT},
        **{f"refused_{rule}": refused.get(rule, 0) for rule in RULES},
    }


@task(name="clean")
def clean_supercon(
    workspace: str,
    source: str,
    settings: CleaningSettings,
    mdr: MdrSettings = MdrSettings(),
    fetch: FetchSettings = FetchSettings(),
) -> StageReport:
    """Clean a table of reports (a file, a URL, or ``mdr``) into the workspace; see ``clean_reports``."""
    path = str(fetch_mdr(mdr, fetch)) if source == MDR_SOURCE else source

    def compute() -> StageOutcome:
        reports = read_reports(path, settings.formula_column, settings.tc_column)
        reports = reports.replace_schema_metadata({"source": posixpath.basename(path)})
        with stage_progress(STAGE, reports.num_rows) as advance:
            return clean_reports(reports, settings, advance)

    place, inputs = Workspace(workspace), [hash_source(path)]
    report = run_stage(place, STAGE, compute, code_version=CODE_VERSION, inputs=inputs, settings=settings)
    return leave_summary(place, report)
