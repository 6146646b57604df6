"""Chemical formulas: read what laboratories write, write one formula for one composition, name its family.

Amounts are atoms per formula unit. A formula that cannot be read is refused with a reason; nothing is guessed.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pymatgen.core.periodic_table import Element

from tasks.exceptions import InputError
from tasks.families import family_of

__all__ = [
    "FormulaError",
    "ParsedFormula",
    "chemical_system",
    "composition_difference",
    "family_of",
    "normalise_formula",
    "parse_formula",
    "read_formula",
    "reduce_amounts",
    "sort_elements",
    "write_formula",
]

MAX_LENGTH = 300  # characters; the longest formula of SuperCon has fewer than 100
MAX_DEPTH = 10  # nested brackets
SYMBOLS = frozenset(element.symbol for element in Element)
HYDROGEN_ISOTOPES = ("D", "T")
VARIABLES = frozenset(["x", "y", "z", "d", "n", "m", "w", "v", "u", "δ", "delta", "ε", "X", "Y", "Z", "D"])
# Capitals that are read in two ways: rare earth or rhenium, transition metal or thulium, dysprosium or D and Y.
AMBIGUOUS_CAPITALS = frozenset(["RE", "TM", "DY", "LN"])
BRACKETS = {"(": ")", "[": "]", "{": "}"}
_DIGITS = "0123456789"

INTEGER_TOLERANCE = 5e-4  # an amount this near a whole number is that number (thirds are written with 3 decimals)
DECIMALS_KEPT = 3  # a formula unit is one in which no amount needs more
SMALL_COUNT = 4  # whole amounts up to this tell a formula unit from a multiple of it
WHOLE_COUNTS = np.arange(1.0, 15.0)  # one element of a formula unit has one of these amounts
DILUTE_SHARE = 0.93  # of all atoms: UBe13 is a compound (0.929), Nb0.95Ta0.05 an alloy
FRACTION_ERROR = 5e-4  # fractions of at most 7 elements, each rounded to 4 decimals, sum to 1 within this
MAX_UNIT_TOTAL = 100.0  # atoms; no formula unit is larger


class FormulaError(InputError):
    """A text that cannot be read as a chemical formula; the message gives the reason."""


@dataclass(frozen=True)
class ParsedFormula:
    """Amounts by element symbol, and notes on whatever was read with an interpretation."""

    amounts: dict[str, float]
    notes: tuple[str, ...] = ()


class _Reader:
    """One pass over a cleaned text, left to right; each character is looked at a bounded number of times."""

    def __init__(self, text: str, values: Mapping[str, float]) -> None:
        self.text = text
        self.values = values
        self.position = 0
        self.notes: list[str] = []

    def peek(self, count: int = 1) -> str:
        return self.text[self.position : self.position + count]

    def take_while(self, allowed: str) -> str:
        start = self.position
        while self.position < len(self.text) and self.text[self.position] in allowed:
            self.position += 1
        return self.text[start : self.position]

    def error(self, reason: str) -> FormulaError:
        return FormulaError(f"{self.text!r} is not a readable formula: {reason}")

    def number(self) -> float | None:
        """The number that starts here, with a decimal point or comma, or None."""
        written = self.take_while(_DIGITS + ".,")
        if not written:
            return None
        if len(re.findall("[.,]", written)) > 1 or not any(digit in written for digit in _DIGITS):
            raise self.error(f"{written!r} is not a number")
        return float(written.replace(",", "."))

    def variable(self) -> str | None:
        """The name of a variable that starts here, or None."""
        for name in ("delta", self.peek()):
            if name in VARIABLES and self.text.startswith(name, self.position):
                self.position += len(name)
                return name
        return None

    def symbol(self) -> str:
        """The element symbol that starts here."""
        pair, single = self.peek(2), self.peek()
        if pair in SYMBOLS:
            self.position += 2
            return self._plain(pair)
        if pair in AMBIGUOUS_CAPITALS:
            raise self.error(f"{pair!r} can be read in more than one way")
        capitals = pair.capitalize()
        if single not in SYMBOLS and pair.isupper() and capitals in SYMBOLS:
            self.notes.append(f"{pair} read as {capitals}")
            self.position += 2
            return capitals
        if single in SYMBOLS or single in HYDROGEN_ISOTOPES:
            self.position += 1
            return self._plain(single)
        raise self.error(f"{pair.strip('0123456789.,()[]{}')!r} is not an element")

    def _plain(self, symbol: str) -> str:
        if symbol in HYDROGEN_ISOTOPES:
            self.notes.append(f"{symbol} read as H")
            return "H"
        return symbol

    def amount(self, symbol: str) -> float:
        """The amount after an element: a number, nothing (1), or for oxygen a number with a variable."""
        bracketed = self.peek() in BRACKETS and self.peek(2)[1:] in [*_DIGITS, ".", ","]
        close = BRACKETS[self.peek()] if bracketed else ""
        self.position += bracketed
        value = self.number()
        if self.peek() in ("+", "-"):
            value = self._signed(symbol, value)
        elif value is None:
            value = self._implied(symbol)
        if bracketed:
            if self.peek() != close:
                raise self.error(f"the amount of {symbol} in brackets is not a number")
            self.position += 1
        return value

    def _signed(self, symbol: str, value: float | None) -> float:
        """An amount before a sign: oxygen with a variable (O7-x), or a bare charge (Na+Cl-)."""
        sign = self.peek()
        self.position += 1
        variable = self.variable()
        if variable and value is not None and variable in self.values:
            return value + (self.values[variable] if sign == "+" else -self.values[variable])
        if variable:
            if symbol != "O" or value is None:
                raise self.error(f"the amount of {symbol} holds the variable {variable!r}")
            self.notes.append(f"O{value:g}{sign}{variable} read as O{value:g}")
            return value
        next_is_charge_end = self.position == len(self.text) or self.peek().isupper()
        if value is None and next_is_charge_end and (sign == "+" or self._charges_balance()):
            self.notes.append(f"charge {sign} of {symbol} ignored")
            return 1.0
        raise self.error(f"the sign {sign!r} after {symbol} can be read in more than one way")

    def _charges_balance(self) -> bool:
        """Whether hyphens are charges: there are plus signs too, and nothing is only joined by hyphens."""
        return "+" in self.text

    def _implied(self, symbol: str) -> float:
        """The amount where no number stands: 1, unless a variable stands there."""
        rest = self.text[self.position :]
        if rest[:1] in self.values:
            self.position += 1
            return self.values[rest[0]]
        if symbol == "O" and rest in ("X", "Y", "Z"):
            raise self.error(f"the amount of O is the variable {rest!r}, of unknown value")
        if rest[:1].islower():
            variable = self.variable()
            if variable:
                raise self.error(f"the amount of {symbol} is the variable {variable!r}, of unknown value")
            raise self.error(f"{symbol + rest[:1]!r} is not an element")
        return 1.0


def _clean(text: str) -> tuple[str, dict[str, float]]:
    """The text in one alphabet (no blanks, mark-up or written charges), and the values that it gives to variables."""
    plain = unicodedata.normalize("NFKC", text).translate(str.maketrans("−–—‐‑•∙⋅*", "-----····", "$_\\\u200b\ufeff"))
    plain = "".join(plain.split())
    plain = re.sub(r"\^(\{[0-9]*[+-]\}|[0-9]*[+-])", "", plain)
    given = re.search(r"[(,;]([a-zδε])=([0-9]+[.,]?[0-9]*)\)?$", plain)
    if not given:
        return plain, {}
    return plain[: given.start()], {given[1]: float(given[2].replace(",", "."))}


def _read_parts(reader: _Reader) -> dict[str, float]:
    """Amounts of a whole text: elements, brackets, and parts after a middle dot with a number before them."""
    stack: list[tuple[dict[str, float], str]] = [({}, "")]
    total: dict[str, float] = {}
    factor = 1.0
    while reader.position < len(reader.text):
        character = reader.peek()
        if character.isascii() and character.isupper():
            symbol = reader.symbol()
            _add(stack[-1][0], {symbol: 1.0}, reader.amount(symbol))
        elif character in BRACKETS:
            if len(stack) > MAX_DEPTH:
                raise reader.error(f"more than {MAX_DEPTH} nested brackets")
            stack.append(({}, BRACKETS[character]))
            reader.position += 1
        elif len(stack) > 1 and character == stack[-1][1]:
            reader.position += 1
            inner, _ = stack.pop()
            if not inner:
                raise reader.error("empty brackets")
            _add(stack[-1][0], inner, reader.amount("a bracket"))
        elif character == "·" and len(stack) == 1 and stack[0][0]:
            _add(total, stack.pop()[0], factor)
            stack = [({}, "")]
            reader.position += 1
            written = reader.number()
            factor = 1.0 if written is None else written
        else:
            raise reader.error(f"{character!r} stands where an element is expected")
    if len(stack) > 1:
        raise reader.error(f"{stack[-1][1]!r} is missing")
    _add(total, stack[0][0], factor)
    return total


def _add(total: dict[str, float], part: Mapping[str, float], factor: float) -> None:
    for symbol, amount in part.items():
        total[symbol] = total.get(symbol, 0.0) + amount * factor


def read_formula(text: str, max_amount: float = 150.0) -> ParsedFormula:
    """Amounts of a formula as laboratories write it, with notes on what was interpreted.

    Accepted: decimals with point or comma, nested ``()[]{}`` with amounts, blanks, subscripts of any script, middle
    dots, bare charges (``Na+Cl-``) and charges after ``^``, D and T as hydrogen, two capitals where only one reading
    exists (``TI`` is titanium), variables whose value is given (``O7-x (x=0.1)`` is O6.9), and for oxygen a number with
    an unknown variable (``O7-x`` is O7).

    Raises
    ------
    FormulaError
        For everything else: an unknown symbol, a variable of unknown value (``Oz``, ``Srx``), an amount that is not
        above 0 or is above ``max_amount``, unbalanced brackets, stray characters, an empty text.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"{text[:40]!r}… is not a readable formula: longer than {MAX_LENGTH} characters")
    reader = _Reader(*_clean(text))
    if not reader.text:
        raise FormulaError(f"{text!r} is not a readable formula: it is empty")
    amounts = _read_parts(reader)
    for symbol, amount in amounts.items():
        if not 0 < amount <= max_amount:
            raise reader.error(f"the amount {amount:g} of {symbol} is not above 0 and at most {max_amount:g}")
    if not amounts:
        raise reader.error("it names no element")
    return ParsedFormula(amounts, tuple(reader.notes))


def parse_formula(text: str, max_amount: float = 150.0) -> dict[str, float]:
    """Amounts by element symbol; see ``read_formula`` for what is accepted and what raises FormulaError."""
    return read_formula(text, max_amount).amounts


@lru_cache(maxsize=200)
def _electronegativity(symbol: str) -> float:
    """Pauling electronegativity, infinite where there is none, so that such elements stand last."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(Element(symbol).X)
    return math.inf if math.isnan(value) else value


def sort_elements(symbols: Mapping[str, float] | set[str] | list[str]) -> list[str]:
    """Symbols by electronegativity, then alphabet, as pymatgen writes formulas."""
    return sorted(symbols, key=lambda symbol: (_electronegativity(symbol), symbol))


def _formula_units(values: np.ndarray) -> np.ndarray:
    """Amounts (n_scales, n_elements) in each scale that could be a formula unit: see ``reduce_amounts``."""
    scales = np.outer(WHOLE_COUNTS, 1.0 / values).ravel()
    scaled = np.outer(scales, values)
    whole = np.rint(scaled)
    scaled = np.where((whole > 0) & (np.abs(scaled - whole) <= INTEGER_TOLERANCE), whole, scaled)
    short = np.abs(scaled - np.round(scaled, DECIMALS_KEPT)) < 1e-6
    readable = np.all(short & (scaled >= 10.0**-DECIMALS_KEPT), axis=1) & (scaled.sum(axis=1) <= MAX_UNIT_TOTAL)
    units: np.ndarray = scaled[readable]
    return units


def reduce_amounts(amounts: Mapping[str, float]) -> dict[str, float]:
    """One set of amounts for every multiple of a composition, elements by electronegativity.

    Of all scales in which an element has a whole amount of at most 14 and no amount needs more than 3 decimals, the
    one with most whole numbers is taken (amounts of at most 4, and the total), then one with a whole total, then the
    smallest total: Mg2B4 becomes MgB2, Nb0.5Ti0.5 NbTi, and YBa2Cu3O6.9 or La1.85Sr0.15CuO4 stay as they are written.
    A composition that no such scale fits (many random alloys), and a dilute alloy of one metal, becomes atomic
    fractions.
    """
    symbols = np.array(sort_elements(dict(amounts)))
    values = np.array([amounts[symbol] for symbol in symbols], dtype=float)
    dilute = 1 > values.max() / values.sum() > DILUTE_SHARE and Element(symbols[values.argmax()]).is_metal
    units = _formula_units(values)[:0] if dilute else _formula_units(values)
    if not len(units):
        if abs(values.sum() - 1) > FRACTION_ERROR:
            # rounded twice: a half in the fifth decimal falls the same way whatever the scale it came from
            values = np.round(np.round(values / values.sum(), 9), 4)
            symbols, values = symbols[values > 0], values[values > 0]
        units = units if dilute else _formula_units(values)
    scaled = np.round(_simplest_unit(units) if len(units) else values, 4)
    return dict(zip(symbols[scaled > 0].tolist(), scaled[scaled > 0].tolist(), strict=True))


def _simplest_unit(units: np.ndarray) -> np.ndarray:
    """The scale with most small whole amounts; see ``reduce_amounts``."""
    whole = units == np.rint(units)
    small = (whole & (units <= SMALL_COUNT)).sum(axis=1)
    totals = np.round(units.sum(axis=1), 6)
    whole_total = np.abs(totals - np.rint(totals)) <= INTEGER_TOLERANCE
    best: np.ndarray = units[np.lexsort((totals, ~whole_total, -(small + whole_total)))[0]]
    return best


def write_formula(amounts: Mapping[str, float]) -> str:
    """The formula of these amounts as they are, at most 4 decimals, elements by electronegativity."""
    parts = ((symbol, f"{amounts[symbol]:.4f}".rstrip("0").rstrip(".")) for symbol in sort_elements(dict(amounts)))
    return "".join(symbol + ("" if number == "1" else number) for symbol, number in parts)


def normalise_formula(amounts: Mapping[str, float]) -> str:
    """One formula for every multiple of a composition (see ``reduce_amounts``)."""
    return write_formula(reduce_amounts(amounts))


def composition_difference(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """3DSC's total relative difference R of two compositions in any scale: 0 if equal, 2 if no element is shared."""
    total_a, total_b = math.fsum(a.values()), math.fsum(b.values())
    symbols = sorted({*a, *b})
    return math.fsum(abs(a.get(symbol, 0.0) / total_a - b.get(symbol, 0.0) / total_b) for symbol in symbols)


def chemical_system(formula: str) -> str:
    """Symbols of a formula's elements in alphabetical order, joined by hyphens: ``B-Mg``."""
    return "-".join(sorted(parse_formula(formula, math.inf)))
