"""Reports of superconductivity as they are published: which table it is, and which of its columns says what.

A table is recognised by the names of its columns, never by their position:

* **MDR datasheet**: SuperCon's oxide and metallic table (DOI 10.48505/nims.4487, ver. 240322), tab-separated, 191
  columns, a row of labels above a row of symbols, quoted cells over several lines;
* **primary table**: the older ``primary.tsv`` of SuperCon (DOI 10.48505/nims.3837);
* **SuperBand**: the table of that data set, with years and DOIs;
* **any other table** with a formula and a Tc column, under one of the usual names or under names that the user gives.
  The extract of Stanev et al. 2018 (``name,Tc``) is one of them.

Everything stays text here. What a cell is worth is for the rules of ``tasks.cleaning``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from tasks.exceptions import InputError
from tasks.formula_reader import HYDROGEN_ISOTOPES, SYMBOLS
from tasks.sources import decode_text, read_bytes, read_rows

REPORTS = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),  # of the data, counted from 1
        pa.field("formula", pa.string()),
        pa.field("oxygen", pa.string()),  # measured oxygen content per formula unit
        pa.field("elements", pa.string()),  # symbols that the row names beside its formula, with blanks between
        pa.field("tc_kelvin", pa.string()),
        pa.field("tc_definition", pa.string()),  # of DEFINITIONS; null where the table does not say
        pa.field("lowest_kelvin", pa.string()),  # measured without superconductivity down to here
        pa.field("unit", pa.string()),  # of both temperatures; null where the row does not say
        pa.field("pressure", pa.string()),  # with its unit where that is known
        pa.field("year", pa.string()),
        pa.field("reference", pa.string()),
        pa.field("problem", pa.string()),  # why the row cannot be read at all
    ]
)

DEFINITIONS = ("recommended", "zero resistance", "midpoint", "onset", "susceptibility")
NO_VALUE = frozenset(["", "-", "--", "nan", "na", "n/a", "none", "null"])  # in lower case
HEADER_ROWS = 3  # the row of column names is one of the first so many
SHOWN_HEADERS = 30

# The remark that a sample was measured under pressure, as SuperCon's texts hold it: P=2.4GPa
PRESSURE_REMARK = re.compile(
    r"\bP(?:ressure)?\s*=\s*([0-9]+(?:[.,][0-9]*)?)\s*(GPa|MPa|kbar|Mbar|bar)\b", re.IGNORECASE
)
_ZERO = re.compile(r"0*(?:[.,]0*)?")

_FORMULAS = ("formula", "element", "composition", "name")
_TEMPERATURES = ("tc_kelvin", "tc", "critical_temp", "tc (k)", "tc_k")
_OTHERS = {
    "oxygen": ("oz",),
    "lowest_kelvin": ("lowest_kelvin", "tcn"),
    "unit": ("utc",),
    "pressure": ("pressure_gpa", "pressure (gpa)", "p_gpa", "p (gpa)", "pressure", "pmax"),
    "year": ("year", "year_first"),
    "reference": ("reference", "references", "doi", "journal", "refno"),
}
_MDR_ELEMENTS = tuple(f"m{letter}1" for letter in "abcdefghijo")


@dataclass(frozen=True)
class Layout:
    """A published table of reports: what marks it, and the headers (in lower case) of what it says.

    ``temperatures`` pairs headers with the definition of Tc that they stand for, best first; of several, the first that
    holds a value counts. ``others`` gives for columns of REPORTS the accepted headers, of which the first that is there
    counts. A column of ``needed`` that is missing means that the layout has changed.
    """

    name: str
    formula: tuple[str, ...]
    temperatures: tuple[tuple[str, str | None], ...]
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()
    least_marks: int = 0
    needed: tuple[str, ...] = ()
    rectangular: bool = False  # each row has as many cells as the header

    def fits(self, headers: Sequence[str]) -> bool:
        """Whether a row of headers (in lower case) marks this layout."""
        return len(self.marks & set(headers)) >= self.least_marks


MDR = Layout(
    name="SuperCon's MDR datasheet",
    formula=("element",),
    temperatures=tuple(zip(("tc", "t1", "t2", "t3", "tcsus"), DEFINITIONS, strict=True)),
    others=_OTHERS,
    marks=frozenset(["num", "refno", "element", "oz", "tc", "t1", "t2", "t3", "tcsus", "tcn", "utc", "pmax", "tcmeth"]),
    least_marks=8,
    needed=(
        *("element", "oz", "tc", "t1", "t2", "t3", "tcsus", "tcn", "utc", "pmax"),
        *("year", "refno", "journal", "sample", *_MDR_ELEMENTS),
    ),
    rectangular=True,
)
PRIMARY = Layout(
    name="SuperCon's primary table",
    formula=("element",),
    temperatures=(("tc", "recommended"),),
    others=_OTHERS,
    marks=frozenset(["num", "name", "element", "str3", "utc", "tc", "journal"]),
    least_marks=5,
    needed=("element", "tc", "utc"),
)
SUPERBAND = Layout(
    name="the SuperBand table",
    formula=("formula",),
    temperatures=(("tc", None),),
    others={"year": ("time",), "reference": ("doi",)},
    marks=frozenset(["formula", "tc", "time", "doi"]),
    least_marks=4,
)
TABLE = Layout(name="a table", formula=_FORMULAS, temperatures=tuple((h, None) for h in _TEMPERATURES), others=_OTHERS)
LAYOUTS = (MDR, PRIMARY, SUPERBAND)

Cell = Callable[[Sequence[str]], str | None]  # reads one value of a row


@dataclass(frozen=True)
class _Columns:
    """The columns of one file: header names to positions, and where they were found."""

    source: str
    layout: Layout
    headers: tuple[str, ...]  # in lower case
    written: tuple[str, ...]  # as in the file

    def at(self, accepted: Sequence[str]) -> int | None:
        """Position of the first accepted header that is there; InputError if the file has it twice."""
        for name in accepted:
            count = self.headers.count(name)
            if count > 1:
                raise InputError(f"{self.source} has {count} columns {name!r}; one is expected")
            if count:
                return self.headers.index(name)
        return None

    def shown(self) -> str:
        """What was found, for messages."""
        names = [name for name in self.written if name]
        more = f", … ({len(names)} in all)" if len(names) > SHOWN_HEADERS else ""
        return ", ".join(names[:SHOWN_HEADERS]) + more


def read_reports(source: str, formula_column: str | None = None, tc_column: str | None = None) -> pa.Table:
    """Reports as text, one row each, in the order of the file (schema ``REPORTS``).

    Parameters
    ----------
    source
        File or fsspec URL of one of the layouts of this module.
    formula_column, tc_column
        Headers to read in place of those of the layout, whatever their case.

    Raises
    ------
    InputError
        If the file is missing, empty, not text, or lacks a column that its layout needs; the message names the columns
        that are missing and those that were found.
    """
    rows = read_rows(decode_text(read_bytes(source), source), source)
    columns, first = _recognise(rows, source)
    if len(rows) <= first:
        raise InputError(f"{source} holds a header but no rows")
    formula, temperatures = _find_formula_and_tc(columns, formula_column, tc_column)
    read = _other_columns(columns) | {"formula": formula}
    table: dict[str, list] = {name: [] for name in REPORTS.names}
    for number, row in enumerate(rows[first:], 1):
        tc, definition = _first_temperature(row, temperatures)
        found = {name: cell(row) for name, cell in read.items()}
        found |= {"tc_kelvin": tc, "tc_definition": definition, "problem": _problem(row, columns)}
        for name, values in table.items():
            values.append(number if name == "row" else found.get(name))
    return pa.table(table, schema=REPORTS)


def _recognise(rows: list[list[str]], source: str) -> tuple[_Columns, int]:
    """The layout of a file with its columns, and the index of the first row of data."""
    for number, row in enumerate(rows[:HEADER_ROWS]):
        headers = tuple(cell.lower() for cell in row)
        for layout in LAYOUTS:
            if layout.fits(headers):
                return _Columns(source, layout, headers, tuple(row)), number + 1
    return _Columns(source, TABLE, tuple(cell.lower() for cell in rows[0]), tuple(rows[0])), 1


def _find_formula_and_tc(
    columns: _Columns, formula_column: str | None, tc_column: str | None
) -> tuple[Cell, list[tuple[Cell, str | None]]]:
    """How to read the formula, and Tc by each definition, best first; InputError names every missing column."""
    layout = columns.layout
    definitions = dict(layout.temperatures)
    formulas = (formula_column.strip().lower(),) if formula_column else layout.formula
    temperatures = (tc_column.strip().lower(),) if tc_column else tuple(definitions)
    if not (formula_column and tc_column):
        _check_layout(columns, {*(layout.formula if formula_column else ()), *(definitions if tc_column else ())})
    formula = columns.at(formulas)
    found = [(position, definitions.get(name)) for name in temperatures if (position := columns.at([name])) is not None]
    wanted = [("formula", formulas, "--formula-column")] * (formula is None)
    wanted += [("Tc", temperatures, "--tc-column")] * (not found)
    if wanted:
        texts = [
            f"a {what} column (accepted: {', '.join(names)}; {option} names another)" for what, names, option in wanted
        ]
        raise InputError(f"{columns.source} lacks {' and '.join(texts)}; it has {columns.shown()}")
    used = found[:1] if layout is TABLE else found
    return _text(formula), [(_value(position), definition) for position, definition in used]


def _check_layout(columns: _Columns, replaced: set[str]) -> None:
    """InputError with the missing and the found columns, where a published layout has changed."""
    missing = [name for name in columns.layout.needed if name not in columns.headers and name not in replaced]
    if missing:
        raise InputError(
            f"{columns.source} looks like {columns.layout.name}, but its layout has changed: missing are "
            f"{', '.join(missing)}; found are {columns.shown()} (--formula-column and --tc-column together read it "
            "all the same)"
        )


def _other_columns(columns: _Columns) -> dict[str, Cell]:
    """How to read what stands beside formula and Tc."""
    positions = {name: columns.at(accepted) for name, accepted in columns.layout.others.items()}
    read = {name: _value(position) for name, position in positions.items()}
    pressure = positions.get("pressure")
    if pressure is not None and "gpa" in columns.headers[pressure]:
        read["pressure"] = _with_unit(read["pressure"], "GPa")
    return read | (_mdr_columns(columns) if columns.layout is MDR else {})


def _first_temperature(
    row: Sequence[str], temperatures: Sequence[tuple[Cell, str | None]]
) -> tuple[str | None, str | None]:
    """The first Tc of a row that is not 0 with its definition; 0 where only zeros are given."""
    found = [(text, definition) for cell, definition in temperatures if (text := cell(row)) is not None]
    above_zero = [pair for pair in found if not _ZERO.fullmatch(pair[0])]
    if above_zero:
        return above_zero[0]
    return (found[0][0], None) if found else (None, None)


def _mdr_columns(columns: _Columns) -> dict[str, Cell]:
    """What only the MDR datasheet says: elements by name, pressure in two places, reference number and journal."""
    elements = [_text(columns.at([name])) for name in _MDR_ELEMENTS]
    remarks = [_text(columns.at([name])) for name in ("sample", "commt")]
    largest = _value(columns.at(["pmax"]))
    reference = [_value(columns.at([name])) for name in ("refno", "journal")]

    def pressure(row: Sequence[str]) -> str | None:
        found = (PRESSURE_REMARK.search(text) for remark in remarks if (text := remark(row)))
        return next((f"{match[1]} {match[2]}" for match in found if match), None) or largest(row)

    def named(row: Sequence[str]) -> str | None:
        symbols = (text.capitalize() for cell in elements if (text := cell(row)))
        return " ".join(symbol for symbol in symbols if symbol in SYMBOLS or symbol in HYDROGEN_ISOTOPES) or None

    return {
        "elements": named,
        "pressure": pressure,
        "reference": lambda row: ", ".join(text for cell in reference if (text := cell(row))) or None,
    }


def _text(position: int | None) -> Cell:
    """Reads a cell; None where the column is missing or the cell is empty. Line breaks become blanks."""

    def read(row: Sequence[str]) -> str | None:
        return " ".join(row[position].split()) or None if position is not None and position < len(row) else None

    return read


def _value(position: int | None) -> Cell:
    """As ``_text``, and None where the cell says that there is no value (in a formula, Na is sodium)."""
    text = _text(position)
    return lambda row: found if (found := text(row)) and found.lower() not in NO_VALUE else None


def _with_unit(cell: Cell, unit: str) -> Cell:
    """Reads a cell and adds its unit, where only a number stands there."""
    return lambda row: f"{text} {unit}" if (text := cell(row)) and text[-1].isdigit() else text


def _problem(row: Sequence[str], columns: _Columns) -> str | None:
    """Why a row cannot be read: its cells do not stand under their headers."""
    expected = len(columns.headers)
    if any(row[expected:]) or (columns.layout.rectangular and len(row) != expected):
        return f"the row has {len(row)} cells, the header {expected}"
    return None
