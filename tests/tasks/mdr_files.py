"""Files in the layout of SuperCon's MDR datasheet: 191 columns, labels above symbols, author cells over several lines.

The columns that are read bear their published names, the others names made up here; all values are made up.
"""

import csv
import io
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

COLUMNS = 191
ELEMENT_LETTERS = "abcdefghij"

NAMED = {
    "num": "data number",
    "refno": "reference number",
    "commt": "comment",
    "name": "common formula of materials",
    "element": "chemical formula",
    **{f"m{letter}1": "element name of materials" for letter in ELEMENT_LETTERS},
    **{f"m{letter}2": f"composition of MA{place}" for place, letter in enumerate(ELEMENT_LETTERS, 1)},
    "mo1": "oxygen",
    "mo2": "common formula of oxygen",
    "oz": "measured value of Oxygen content",
    "shape": "sample form",
    "year": "publication year",
    "str1": "*crystal structure, symmetry",
    "str3": "common name of structure",
    "spaceg": "space group",
    "lata": "lattice constant a",
    "latb": "lattice constant b",
    "latc": "lattice constant c",
    "utc": "unit of Tc",
    "t1": "transition temperature (R = 0)",
    "t2": "transition temperature (mid point)",
    "t3": "transition temperature (R = 100%)",
    "tcsus": "Tc from susceptibility measurement",
    "tcn": "lowest temperature for measurement (not superconducting)",
    "tcwidth": "transition width for resistive transition",
    "tc": "Tc (of this sample) recommended",
    "tcmeth": "tc measurement method",
    "dtcdp": "slope at P = 0 in Tc vs P plot ",
    "pmax": "maximum pressure applied",
    "gamma": "coefficient of electronic specific heat",
    "debyet": "Debye temperature",
    "gap": "energy gap at 0 K , delta(0)",
    "sample": "sample identifier",
    "author": "author of reference",
    "title": "title of reference",
    "journal": "journal",
}
AUTHORS = 'K. Onnes;\nG. Holst "the younger";\n\tC. Dorsman'


def symbols(without: Sequence[str] = (), shuffled: bool = False) -> list[str]:
    """The row of symbols: those that are read, then fillers; in one order, or in another."""
    filled = [*NAMED, *(f"prop{place}" for place in range(COLUMNS - len(NAMED)))]
    if shuffled:
        random.Random(0).shuffle(filled)
    return [symbol for symbol in filled if symbol not in without]


def mdr_text(
    rows: Sequence[Mapping[str, str]], without: Sequence[str] = (), shuffled: bool = False, labels: bool = True
) -> str:
    """The file as text; each row is given by the cells that are not empty."""
    names = symbols(without, shuffled)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    if labels:
        writer.writerow([NAMED.get(name, f"property, {name}") for name in names])
    writer.writerow(names)
    for number, row in enumerate(rows, 1):
        cells = {"num": str(number), "refno": f"ZZ{number:05d}", "author": AUTHORS, "title": "A, made up"} | dict(row)
        writer.writerow([cells.get(name, "") for name in names])
    return text.getvalue()


def write_mdr(path: Path, rows: Sequence[Mapping[str, str]], **options: object) -> str:
    """Write such a file; gives its path as text."""
    path.write_text(mdr_text(rows, **options), encoding="utf-8")
    return str(path)
