"""Put the year of the first report into a table of bands, for folds by year.

    python tests/benchmarks/bands_with_years.py bands.parquet superband_table.csv.gz --output bands_with_years.parquet

Years are those of SuperBand's table (columns ``formula`` and ``Time``) and of the bundled reports (``formula`` and
``year``), by reduced formula, the earliest of each; years that cannot be are left out. A material without one keeps
none, and then stands on neither side of a fold by year.
"""

# ruff: noqa: T201 - a benchmark prints its counts

import argparse
import math
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.exceptions import InputError
from tasks.formulas import FormulaError, normalise_formula, parse_formula
from tasks.settings import STARTER

EARLIEST, LATEST = 1911, 2026  # the first superconductor; a year after that is a misprint


def reduced(formula: str) -> str | None:
    """One spelling of a composition, None where it cannot be read."""
    try:
        return normalise_formula(parse_formula(str(formula), math.inf))
    except (FormulaError, InputError, ValueError):
        return None


def first_years(superband: Path) -> dict[str, int]:
    """Earliest year of each composition."""
    tables = [
        pd.read_csv(superband, index_col=False).rename(columns={"Time": "year"}),
        pd.read_csv(STARTER / "supercon.csv"),
    ]
    reports = pd.concat([table[["formula", "year"]] for table in tables])
    reports["year"] = pd.to_numeric(reports["year"], errors="coerce")
    reports = reports[reports["year"].between(EARLIEST, LATEST)]
    reports["formula"] = [reduced(formula) for formula in reports["formula"]]
    return {str(name): int(year) for name, year in reports.groupby("formula")["year"].min().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bands", type=Path)
    parser.add_argument("superband", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    table, years = pq.read_table(given.bands), first_years(given.superband)
    found = [years.get(reduced(formula) or "") for formula in table["formula"].to_pylist()]
    superconducts = [tc > 0 for tc in table["tc_kelvin"].to_pylist()]
    pq.write_table(table.append_column("year_first", pa.array(found, pa.int32())), given.output, compression="zstd")
    known = [one for one, year in zip(superconducts, found, strict=True) if year]
    print(f"{len(known)} of {len(found)} have a year, {sum(known)} of {sum(superconducts)} superconductors")


if __name__ == "__main__":
    main()
