"""CIF and POSCAR texts as structures; a text that cannot be one has a sentence about what is wrong in it, and where."""

import math
import re
from collections import defaultdict
from typing import Any

import numpy as np
from pymatgen.core.structure import Structure

from tasks.exceptions import InputError

LONG_CIF = 50_000  # characters; sites of a longer CIF are counted before they are compared with each other
MAX_LISTED_SITES = 4000  # of a CIF: pymatgen's time grows with the square of their number
LENGTHS = ("_cell_length_a", "_cell_length_b", "_cell_length_c")
ANGLES = ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma")
CRYSTAL_SYSTEM = ("_symmetry_cell_setting", "_space_group_crystal_system")  # may stand for some of the cell
POSITION = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
LABEL, TYPE, OCCUPANCY = "_atom_site_label", "_atom_site_type_symbol", "_atom_site_occupancy"
SYMMETRY = ("space_group_name", "equiv_pos_as_xyz", "symop_operation_xyz", "int_tables_number", "space_group_it_number")
NO_SYMMETRY = ("P1", "1", "x,y,z", "?", ".")
NO_ATOM = re.compile(r"(OH|[Ww]at|NO3|Va)(?![a-z])")  # pymatgen would leave these out, or take them for one atom
ABOVE_ONE = 1e-6  # by which occupancies of a site may sum to more than 1
SITE_DECIMALS = 4  # of fractional coordinates; pymatgen takes sites that agree in them for one
TITLE_TO_VECTORS = 5  # lines of a POSCAR: title, scale, three cell vectors


def structure_from_cif(text: str) -> Structure:
    """The one structure in a CIF; InputError for values that no crystal has, some of which pymatgen lets pass."""
    from pymatgen.io.cif import CifFile, CifParser

    text = _crystals_only(text)
    try:
        if len(text) > LONG_CIF:
            _check_number_of_sites([block.data for block in CifFile.from_str(text).data.values()])
        parser = CifParser.from_str(text, occupancy_tolerance=1 + ABOVE_ONE)
    except InputError:
        raise
    except (ValueError, ZeroDivisionError) as error:  # of pymatgen's reader of loops
        raise InputError("is cut short or damaged: a loop_ of it does not hold whole rows") from error
    blocks = parser.as_dict()
    if not blocks:
        raise InputError("cannot be read as cif: it holds no data block (data_NAME)")
    for name, block in blocks.items():
        _check_cell(name, block)
        _check_sites(name, block)
    try:
        parsed = parser.parse_structures(primitive=False, on_error="raise")
    except ValueError as error:
        if found := re.search(r"Occupancy (\S+) exceeded tolerance", str(error)):
            raise InputError(_crowded_site(blocks, float(found[1]))) from error
        if "thickness=" in str(error):
            raise InputError(
                "has a cell that is flat; planes of its lattice at least 0.01 angstrom apart are needed"
            ) from None
        raise
    if len(parsed) != 1:
        raise InputError(f"holds {len(parsed)} structures; one a file is allowed")
    if any("Defaulting to P1" in told for told in getattr(parser, "warnings", ())):
        _check_symmetry(blocks)
    return parsed[0]


def _crystals_only(text: str) -> str:
    """A CIF without the blocks that list no atoms, such as a publisher's, where another block does."""
    blocks = re.split(r"(?im)^(?=\s*data_\S)", text)
    crystals = [block for block in blocks if re.search(rf"(?m)^\s*{POSITION[0]}\b", block)]
    if len(crystals) > 1:
        raise InputError(f"holds {len(crystals)} structures; one a file is allowed")
    return crystals[0] if crystals else text


def _check_symmetry(blocks: dict[str, dict[str, Any]]) -> None:
    """Raise InputError for a symmetry that is told and was not understood: each site would stand for one atom."""
    for block in blocks.values():
        for key, value in block.items():
            told = "".join(_as_list(value)).replace(" ", "")
            if any(name in key.lower() for name in SYMMETRY) and told not in NO_SYMMETRY:
                raise InputError(
                    f"has the {key} {value!r}, which is not understood; list the operations "
                    "(_symmetry_equiv_pos_as_xyz), or give the number of the space group (_space_group_IT_number)"
                )


def _check_number_of_sites(blocks: list[dict[str, Any]]) -> None:
    listed = max((len(block.get(POSITION[0], ())) for block in blocks), default=0)
    if listed > MAX_LISTED_SITES:
        raise InputError(f"lists {listed} sites; at most {MAX_LISTED_SITES} are read")


def _check_cell(name: str, block: dict[str, Any]) -> None:
    """Raise InputError for a cell without a volume."""
    for key in (*LENGTHS, *ANGLES):
        most, allowed = (180, "between 0 and 180 degrees") if key in ANGLES else (math.inf, "above 0 angstrom")
        if key not in block:
            if not any(system in block for system in CRYSTAL_SYSTEM):
                raise InputError(f"is cut short or damaged: its block data_{name} has no {key}")
        elif not 0 < _number(block[key]) < most:
            raise InputError(f"has the {key} {block[key]!r}, which is not a finite number {allowed}")
    if all(key in block for key in ANGLES):
        angles = [_number(block[key]) for key in ANGLES]
        if sum(angles) >= 360 or 2 * max(angles) >= sum(angles):
            shown = ", ".join(f"{angle:g}" for angle in angles)
            raise InputError(
                f"has cell angles of {shown} degrees, which enclose no volume; each must be less than the sum of the "
                "others, and all together less than 360"
            )


def _check_sites(name: str, block: dict[str, Any]) -> None:
    """Raise InputError for atoms without a place."""
    for key in (LABEL, *POSITION):
        if key not in block:
            raise InputError(f"is cut short or lists no atoms: its block data_{name} has no {key}")
    if isinstance(block[LABEL], str):
        raise InputError(f"lists its atom {block[LABEL]} outside of a loop_; atoms are read from a loop_")
    labels = _column(block, LABEL)
    for symbol in _column(block, TYPE) or labels:
        if NO_ATOM.match(symbol):
            raise InputError(f"lists {symbol!r} as an atom, which is none; list atoms one by one, and no vacancies")
    for key in POSITION:
        for label, value in zip(labels, _column(block, key), strict=False):
            if not math.isfinite(_number(value)):
                raise InputError(f"site {label} has the {key} {value!r}, which is not a finite number")
    for label, value in zip(labels, _column(block, OCCUPANCY), strict=False):
        if value != "?" and not 0 <= _number(value) < math.inf:
            raise InputError(f"site {label} has the {OCCUPANCY} {value!r}; allowed are numbers from 0 to 1")


def _crowded_site(blocks: dict[str, dict[str, Any]], total: float) -> str:
    """The sentence about a site of too many atoms, with the labels where they are listed at one place."""
    places = defaultdict(list)
    occupancies: dict[str, float] = {}
    for block in blocks.values():
        columns = (_column(block, key) for key in (LABEL, *POSITION))
        for label, *position in zip(*columns, strict=False):
            places[tuple(round(_number(value) % 1, SITE_DECIMALS) % 1 for value in position)].append(label)
        for label, value in zip(_column(block, LABEL), _column(block, OCCUPANCY), strict=False):
            occupancies[label] = 1.0 if value == "?" else _number(value)
            if occupancies[label] > 1:
                return f"site {label} has the occupancy {value}; at most 1 is allowed"
    crowded = (
        labels
        for labels in places.values()
        if len(labels) > 1 and math.isclose(sum(occupancies.get(one, 1.0) for one in labels), total, rel_tol=1e-6)
    )
    if shared := next(crowded, None):
        named = f"{', '.join(shared[:-1])} and {shared[-1]} are on one site, where their occupancies"
    else:
        named = "an atom and another one's image by symmetry are on one site, where the occupancies"
    return f"{named} sum to {total:g}; at most 1 is allowed, and no atom may be listed twice"


def _column(block: dict[str, Any], key: str) -> list[str]:
    return _as_list(block.get(key, []))


def _as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _number(value: Any) -> float:
    """A number of a CIF, its uncertainty left out; NaN where it is none, such as ``.``, which pymatgen takes for 0."""
    from pymatgen.io.cif import str2float

    if value == ".":
        return math.nan
    try:
        return float(str2float(value))
    except (TypeError, ValueError):
        return math.nan


def structure_from_poscar(text: str) -> Structure:
    """The structure in a POSCAR; InputError where it names no elements: pymatgen would make it of H, He, Li."""
    from pymatgen.io.vasp.inputs import Poscar

    text = _plain_head(text)
    try:
        poscar = Poscar.from_str(text, read_velocities=False)
    except Exception as error:  # it fails in every way on damaged files
        if problem := _poscar_problem(text):
            raise InputError(problem) from error
        raise
    if not poscar.true_names:
        raise InputError("names no elements; a line of symbols above the numbers of atoms is needed")
    structure: Structure = poscar.structure
    return structure


def _plain_head(text: str) -> str:
    """A POSCAR without comments behind cell, symbols and numbers, and with a factor where its scale is a volume.

    VASP reads both; pymatgen scales Cartesian positions by the volume itself.
    """
    lines = text.splitlines()
    for number in range(1, min(len(lines), TITLE_TO_VECTORS + 2)):
        lines[number] = re.split("[!#]", lines[number], maxsplit=1)[0].rstrip()
    vectors = lines[2:TITLE_TO_VECTORS]
    if len(vectors) == 3 and _holds_numbers(lines[1], 1) and all(_holds_numbers(line, 3) for line in vectors):
        scale, volume = (
            float(lines[1]),
            abs(np.linalg.det([[float(word) for word in line.split()] for line in vectors])),
        )
        if scale < 0 < volume:
            lines[1] = repr(float((-scale / volume) ** (1 / 3)))
    return "\n".join(lines) + "\n"


def _poscar_problem(text: str) -> str | None:
    """The first line that is not as in a POSCAR, in words; None where all are."""
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines[1:TITLE_TO_VECTORS], start=2):
        if number == 2 and not _holds_numbers(line, 1):
            return f"line 2 is {line.strip()!r}; one number, the scale of the cell, is needed"
        if number > 2 and not _holds_numbers(line, 3):
            return f"line {number} is {line.strip()!r}; three numbers of a cell vector are needed"
    if len(lines) <= TITLE_TO_VECTORS + 2:
        return f"is cut short: it ends after line {len(lines)}, before the positions of its atoms"
    counted = [place for place in range(TITLE_TO_VECTORS, len(lines)) if _are_counts(lines[place])]
    if not counted:
        return f"has no numbers of atoms in line {TITLE_TO_VECTORS + 1} or after the symbols"
    return _positions_problem(lines, counted[0])


def _positions_problem(lines: list[str], place: int) -> str | None:
    """The same from the line with the numbers of atoms on."""
    symbols = " ".join(lines[TITLE_TO_VECTORS:place]).split()
    counts: list[int] = []
    while place < len(lines) and _are_counts(lines[place]):
        counts += map(int, lines[place].split())
        place += 1
    if symbols and len(symbols) < len(counts):
        return f"its numbers of atoms are {len(counts)}, the symbols above them {len(symbols)}; each needs a symbol"
    place += 2 if place < len(lines) and lines[place].strip()[:1] in set("sS") else 1
    for atom in range(sum(counts)):
        if place + atom >= len(lines) or not lines[place + atom].strip():
            return f"is cut short: it ends after {atom} of {sum(counts)} positions"
        if not _holds_numbers(" ".join(lines[place + atom].split()[:3]), 3):
            return f"line {place + atom + 1} is {lines[place + atom].strip()!r}; three coordinates are needed"
    return None


def _are_counts(line: str) -> bool:
    return bool(line.split()) and all(word.isdigit() for word in line.split())


def _holds_numbers(line: str, count: int) -> bool:
    try:
        return len([float(word) for word in line.split()]) == count
    except ValueError:
        return False
