"""Wannier90's files as plain arrays: H(R) of ``<seedname>_hr.dat``, and what ``<seedname>.win`` tells beside it."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.exceptions import InputError
from tasks.kpoints import Floats, Integers
from tasks.workspace import atomic_path

Complexes = npt.NDArray[np.complex128]

BOHR = 0.529177210903  # angstrom (CODATA 2018)
DEGENERACIES_PER_LINE = 15
FIELDS = 7  # R1 R2 R3 m n Re Im
COUNT = re.compile(r"0*[1-9][0-9]{0,8}")  # a positive integer of a sane size


def read_hr(file: Path) -> tuple[Integers, Complexes, Integers, Integers]:
    """H(R) as the file lists it, plain or gzipped: a comment, num_wann, nrpts, degeneracies, R1 R2 R3 m n Re Im.

    Returns
    -------
    vectors
        (nrpts, 3) R in units of the primitive vectors.
    hamiltonians
        (nrpts, num_wann, num_wann) eV.
    degeneracies
        (nrpts,) positive integers.
    lines
        (nrpts, num_wann, num_wann) line of each element in the file, from 1.

    Raises
    ------
    InputError
        For a file that is missing, cut short or not of this format, and elements that are given twice or not at all.
    """
    lines = _read_lines(file)
    bands, degeneracies, start = _read_header(file, lines)
    table = _read_table(file, lines, start, len(degeneracies) * bands**2)
    vectors, hamiltonians, places = _sort_table(file, table, start, len(degeneracies), bands)
    return vectors, hamiltonians, degeneracies, places


def write_hr(target: Path, vectors: Integers, hamiltonians: Complexes, degeneracies: Integers, comment: str) -> Path:
    """Write H(R) in Wannier90's order with all digits, gzipped where the name ends in .gz.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    bands = hamiltonians.shape[1]
    head = [" ".join(comment.split()), f"{bands:12d}", f"{len(vectors):12d}"]
    counts = [f" {d:4d}" for d in degeneracies]
    head += ["".join(counts[i : i + DEGENERACIES_PER_LINE]) for i in range(0, len(counts), DEGENERACIES_PER_LINE)]
    body = [
        f" {r1:4d} {r2:4d} {r3:4d} {m:4d} {n:4d} {value.real: .16e} {value.imag: .16e}"
        for (r1, r2, r3), matrix in zip(vectors.tolist(), hamiltonians, strict=True)
        for n, column in enumerate(matrix.T.tolist(), 1)
        for m, value in enumerate(column, 1)
    ]
    text = ("\n".join([*head, *body]) + "\n").encode()
    try:
        with atomic_path(target) as scratch:
            scratch.write_bytes(gzip.compress(text, mtime=0) if target.suffix == ".gz" else text)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror or error}") from error
    return target


def read_win(file: Path) -> dict[str, Any]:
    """What ``<seedname>.win`` beside a ``<seedname>_hr.dat`` tells; nothing where there is none.

    Parameters
    ----------
    file
        The ``_hr.dat``.

    Returns
    -------
    Those of these that are there: ``lattice`` (3, 3) angstrom from ``unit_cell_cart``, ``efermi`` in eV from
    ``fermi_energy``, ``spin_degeneracy`` 1 or 2 from ``spinors``.

    Raises
    ------
    InputError
        For a lattice or a number that cannot be read.
    """
    win = file.with_name(re.sub(r"_hr\.dat(\.gz)?$", "", file.name) + ".win")
    if win == file or not win.is_file():
        return {}
    lines = [re.split(r"[!#]", line)[0].strip().lower() for line in _read_lines(win)]
    told: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        words = line.replace("=", " ").replace(":", " ").split()
        if words[:2] == ["begin", "unit_cell_cart"]:
            told["lattice"] = _read_cell(win, lines, number)
        elif words[:1] == ["fermi_energy"] and len(words) == 2:
            told["efermi"] = _number(win, number, words[1])
        elif words[:1] == ["spinors"] and len(words) == 2:
            told["spin_degeneracy"] = 1 if words[1].strip(".").startswith("t") else 2
    return told


def _read_lines(file: Path) -> list[str]:
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist") from error
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{file} cannot be read ({error}); is it cut short?") from error
    return data.decode(errors="replace").rstrip().splitlines()


def _read_header(file: Path, lines: list[str]) -> tuple[int, Integers, int]:
    """Number of bands, degeneracies, and how many lines the header has."""
    names = {1: "num_wann", 2: "nrpts"}
    numbers = []
    for i, name in names.items():
        text = lines[i].split() if i < len(lines) else []
        if len(text) != 1 or not COUNT.fullmatch(text[0]):
            raise InputError(f"{file}, line {i + 1}: {' '.join(text)!r} is not {name}, one positive integer")
        numbers.append(int(text[0]))
    bands, count = numbers
    found: list[int] = []
    at = 3
    while len(found) < count:
        if at >= len(lines):
            raise InputError(f"{file}, line {at}: the file ends after {len(found)} of {count} degeneracies")
        fields = lines[at].split()
        at += 1
        bad = next((text for text in fields if not COUNT.fullmatch(text)), None)
        if bad is not None or not fields:
            raise InputError(f"{file}, line {at}: {bad or 'an empty line'} is not a degeneracy, a positive integer")
        found += map(int, fields)
    if len(found) > count:
        raise InputError(f"{file}, line {at}: {len(found)} degeneracies, but nrpts is {count}")
    return bands, np.array(found, dtype=np.int64), at


def _read_table(file: Path, lines: list[str], start: int, count: int) -> Floats:
    """(count, 7) numbers of the lines after the header."""
    body = lines[start:]
    if len(body) > count:
        raise InputError(f"{file}, line {start + count + 1}: more than the {count} elements that the header asks for")
    try:
        table = np.loadtxt(body, dtype=np.float64, comments=None, ndmin=2) if body else np.empty((0, FIELDS))
    except ValueError:
        table = np.empty((0, 0))
    if table.shape != (len(body), FIELDS) or not np.isfinite(table).all():
        _refuse_line(file, body, start)
    if len(body) < count:
        raise InputError(f"{file}, line {len(lines)}: the file ends after {len(body)} of {count} elements of H(R)")
    return table


def _refuse_line(file: Path, body: list[str], start: int) -> None:
    """Name the first line that is not seven finite numbers."""
    for number, line in enumerate(body, start + 1):
        fields = line.split()
        if len(fields) != FIELDS:
            raise InputError(f"{file}, line {number}: {len(fields)} numbers, not {FIELDS} (R1 R2 R3 m n Re Im)")
        for text in fields:
            try:
                fine = np.isfinite(float(text))
            except ValueError:
                fine = False
            if not fine:
                raise InputError(f"{file}, line {number}: {text!r} is not a finite number")
    raise InputError(f"{file} cannot be read as a table of numbers")


def _sort_table(file: Path, table: Floats, start: int, count: int, bands: int) -> tuple[Integers, Complexes, Integers]:
    """Vectors, matrices, and the line of each matrix element, with every element checked to be there once."""
    with np.errstate(invalid="ignore"):
        integers = table[:, :5].astype(np.int64)
    wrong = (integers != table[:, :5]).any(axis=1)
    if wrong.any():
        raise InputError(f"{file}, line {start + 1 + int(wrong.argmax())}: R1 R2 R3 m n must be integers")
    wrong = ((integers[:, 3:] < 1) | (integers[:, 3:] > bands)).any(axis=1)
    if wrong.any():
        at = int(wrong.argmax())
        m, n = integers[at, 3:].tolist()
        raise InputError(f"{file}, line {start + 1 + at}: m = {m}, n = {n} are not both between 1 and {bands}")
    blocks = integers[:, :3].reshape(count, bands**2, 3)
    wrong = (blocks != blocks[:, :1]).any(axis=2).ravel()
    if wrong.any():
        at = int(wrong.argmax())
        first = blocks[at // bands**2, 0].tolist()
        raise InputError(
            f"{file}, line {start + 1 + at}: R = {integers[at, :3].tolist()} stands within the {bands**2} elements of "
            f"R = {first}"
        )
    vectors = np.ascontiguousarray(blocks[:, 0])
    lines = np.zeros((count, bands, bands), dtype=np.int64)
    hamiltonians = np.zeros((count, bands, bands), dtype=np.complex128)
    place = (np.repeat(np.arange(count), bands**2), integers[:, 3] - 1, integers[:, 4] - 1)
    lines[place] = np.arange(start + 1, start + 1 + len(table))
    hamiltonians[place] = table[:, 5] + 1j * table[:, 6]
    repeated = lines[place] != np.arange(start + 1, start + 1 + len(table))
    if repeated.any():
        at = int(repeated.argmax())
        raise InputError(f"{file}, line {start + 1 + at}: this element of H(R) is given twice, another is missing")
    _, first_places, inverse = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    again = first_places[inverse.ravel()] != np.arange(count)
    if again.any():
        block = int(again.argmax())
        raise InputError(f"{file}, line {start + 1 + block * bands**2}: R = {vectors[block].tolist()} is given twice")
    return vectors, hamiltonians, lines


def _read_cell(win: Path, lines: list[str], begin: int) -> Floats:
    """The block unit_cell_cart that starts on line ``begin``, in angstrom."""
    rows = [(number, line.split()) for number, line in enumerate(lines[begin:], begin + 1) if line]
    scale = 1.0
    if rows and rows[0][1][0] in ("ang", "bohr"):
        scale = BOHR if rows[0][1][0] == "bohr" else 1.0
        rows = rows[1:]
    rows = rows[:3]
    for number, words in rows:
        if len(words) != 3:
            raise InputError(f"{win}, line {number}: {' '.join(words)!r} is not a lattice vector of three numbers")
    if len(rows) < 3:
        raise InputError(f"{win}, line {begin}: unit_cell_cart has {len(rows)} lattice vectors, not 3")
    return scale * np.array([[_number(win, number, word) for word in words] for number, words in rows])


def _number(win: Path, line: int, text: str) -> float:
    try:
        return float(text.replace("d", "e"))
    except ValueError as error:
        raise InputError(f"{win}, line {line}: {text!r} is not a number") from error
