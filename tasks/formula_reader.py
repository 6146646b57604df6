"""Chemical formulas as laboratories write them: read with notes on what was interpreted, or refused with a reason.

Amounts are atoms per formula unit. Nothing is guessed.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pymatgen.core.periodic_table import Element

from tasks.exceptions import InputError

MAX_LENGTH = 300  # characters; the longest formula of SuperCon has fewer than 100
MAX_DEPTH = 10  # nested brackets
SYMBOLS = frozenset(element.symbol for element in Element)
HYDROGEN_ISOTOPES = ("D", "T")
VARIABLES = frozenset(["x", "y", "z", "d", "n", "m", "w", "v", "u", "δ", "delta", "ε", "X", "Y", "Z", "D"])
# Capitals that are read in two ways: rare earth or rhenium, transition metal or thulium, dysprosium or D and Y.
AMBIGUOUS_CAPITALS = frozenset(["RE", "TM", "DY"])
BRACKETS = {"(": ")", "[": "]", "{": "}"}
_DIGITS = "0123456789"
_MULTIPLE = re.compile("[0-9][a-zδε]")  # of a variable: O7-2x
_PART_OF_ONE = re.compile(r"0[.,][0-9]+")  # what may stand behind a sign: O7-0.08 is an amount, O6-7 may be a range
_QUOTES = str.maketrans("", "", "\"'`‘’“”′")


class FormulaError(InputError):
    """A text that cannot be read as a chemical formula; the message gives the reason."""


class UnknownAmountError(FormulaError):
    """A formula in which an amount is a variable whose value is not known."""


class AmountLimitError(FormulaError):
    """A formula in which an amount is below 0 or too large to be credible."""


@dataclass(frozen=True)
class ParsedFormula:
    """Amounts by element symbol, and notes on whatever was read with an interpretation."""

    amounts: dict[str, float]
    notes: tuple[str, ...] = ()


class _Reader:
    """One pass over a cleaned text, left to right; each character is looked at a bounded number of times."""

    def __init__(self, text: str, values: Mapping[str, float], oxygen: float | None, elements: frozenset[str]) -> None:
        self.text = text
        self.values = values
        self.oxygen = oxygen
        self.elements = elements
        self.position = 0
        self.notes: list[str] = []
        self.oxygen_used = False
        self.capitals = ""  # the first two capitals read as one element
        self.doubtful = ""  # the first two capitals read as two elements that could also be one

    def peek(self, count: int = 1) -> str:
        return self.text[self.position : self.position + count]

    def take_while(self, allowed: str) -> str:
        start = self.position
        while self.position < len(self.text) and self.text[self.position] in allowed:
            self.position += 1
        return self.text[start : self.position]

    def error(self, reason: str, kind: type[FormulaError] = FormulaError) -> FormulaError:
        return kind(f"{self.text!r} is not a readable formula: {reason}")

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
        one_element = pair.capitalize() if len(pair) == 2 and pair.isalpha() and pair.isupper() else ""
        if one_element in SYMBOLS and self._means_one(pair, one_element):
            self.notes.append(f"{pair} read as {one_element}")
            if not self.elements:
                self.capitals = self.capitals or pair
            self.position += 2
            return one_element
        if single in SYMBOLS or single in HYDROGEN_ISOTOPES:
            if one_element in SYMBOLS and not self._named(pair):
                self.doubtful = self.doubtful or pair
            self.position += 1
            return self._plain(single)
        raise self.error(f"{pair.strip('0123456789.,()[]{}')!r} is not an element")

    def _named(self, pair: str) -> bool:
        """Whether the source names both elements of two capitals (C and U of ``CU``)."""
        return set(map(_as_element, pair)) <= self.elements

    def _means_one(self, pair: str, one_element: str) -> bool:
        """Whether two capitals stand for one element: the source names it, or no other reading exists."""
        if self.elements:
            if one_element in self.elements and not self._named(pair):
                return True
            if self._named(pair) and one_element not in self.elements:
                return False
        if pair in AMBIGUOUS_CAPITALS:
            raise self.error(f"{pair!r} can be read in more than one way")
        return pair[0] not in SYMBOLS or not self._element_starts(self.position + 1)

    def _element_starts(self, position: int) -> bool:
        """Whether an element can be read from a position on."""
        pair, single = self.text[position : position + 2], self.text[position : position + 1]
        return pair in SYMBOLS or _as_element(single) in SYMBOLS or (pair.isupper() and pair.capitalize() in SYMBOLS)

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
        if self.peek() in ("+", "-", "=") and (symbol == "O" or self.peek() != "="):
            value = self._signed(symbol, value)
        elif value is None:
            value = self._implied(symbol)
        if bracketed:
            if self.peek() != close:
                raise self.error(f"the amount of {symbol} in brackets is not a number")
            self.position += 1
        return value

    def _signed(self, symbol: str, value: float | None) -> float:
        """An amount before a sign: a sum (O7-0.08), a number and a variable (O7-x), or a bare charge (Na+Cl-)."""
        sign = self.peek()
        self.position += 1
        part = _PART_OF_ONE.match(self.text, self.position)
        if value is not None and part and sign != "=":
            self.position = part.end()
            self.notes.append(f"{symbol}{value:g}{sign}{part[0]} read as a {'sum' if sign == '+' else 'difference'}")
            return _sum(value, sign, float(part[0].replace(",", ".")))
        times = self.number() if _MULTIPLE.match(self.text, self.position) else None
        variable = self.variable()
        if variable:
            return self._with_variable(symbol, value, sign, times, variable)
        next_is_charge_end = self.position == len(self.text) or self.peek().isupper()
        if value is None and next_is_charge_end and (sign == "+" or (sign == "-" and self._charges_balance())):
            self.notes.append(f"charge {sign} of {symbol} ignored")
            return 1.0
        raise self.error(f"the sign {sign!r} after {symbol} can be read in more than one way")

    def _with_variable(self, symbol: str, value: float | None, sign: str, times: float | None, variable: str) -> float:
        """An amount such as 7-x or 7-2x: by the value that is given, by the measured oxygen, or for oxygen 7."""
        if value is not None and variable in self.values and sign != "=":
            return _sum(value, sign, self.values[variable] * (1.0 if times is None else times))
        if symbol == "O" and self.oxygen is not None:
            return self._measured_oxygen(value)
        if symbol != "O" or value is None:
            raise self.error(f"the amount of {symbol} holds the variable {variable!r}", UnknownAmountError)
        written = f"O{value:g}{sign}{'' if times is None else f'{times:g}'}{variable}"
        self.notes.append(f"{written} read as O{value:g}")
        return value

    def _charges_balance(self) -> bool:
        """Whether hyphens are charges: there are plus signs too, and nothing is only joined by hyphens."""
        return "+" in self.text

    def _implied(self, symbol: str) -> float:
        """The amount where no number stands: 1, unless a variable stands there."""
        rest = self.text[self.position :]
        if rest[:1] in self.values:
            self.position += 1
            return self.values[rest[0]]
        if rest[:1].islower() or (symbol == "O" and rest in ("X", "Y", "Z")):
            variable = self.variable()
            if variable and symbol == "O" and self.oxygen is not None:
                return self._measured_oxygen(None)
            if variable:
                reason = f"the amount of {symbol} is the variable {variable!r}, of unknown value"
                raise self.error(reason, UnknownAmountError)
            raise self.error(f"{symbol + rest[:1]!r} is not an element")
        return 1.0

    def _measured_oxygen(self, nominal: float | None) -> float:
        """The measured oxygen content in place of a variable; it must be near the nominal one, where there is one."""
        measured = self.oxygen or 0.0
        if nominal and not nominal / 2 < measured < 2 * nominal:
            raise self.error(f"the measured oxygen content {measured:g} is far from O{nominal:g}", UnknownAmountError)
        self.notes.append(f"oxygen content {measured:g} as measured")
        self.oxygen_used = True
        return measured


def _as_element(symbol: str) -> str:
    return "H" if symbol in HYDROGEN_ISOTOPES else symbol


def _sum(value: float, sign: str, change: float) -> float:
    return value + change if sign == "+" else value - change


def _clean(text: str) -> tuple[str, dict[str, float]]:
    """The text in one alphabet (no blanks, mark-up or written charges), and the values that it gives to variables."""
    plain = unicodedata.normalize("NFKC", text).translate(str.maketrans("−–—‐‑•∙⋅*", "-----····", "$_\\\u200b\ufeff"))
    plain = "".join(plain.split())
    plain = re.sub(r"\^(\{[0-9]*[+-]\}|[0-9]*[+-])", "", plain)
    plain = plain.translate(_QUOTES).rstrip(".,;:")
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


def read_formula(
    text: str, max_amount: float = 150.0, oxygen: float | None = None, elements: Iterable[str] = ()
) -> ParsedFormula:
    """Amounts of a formula as laboratories write it, with notes on what was interpreted.

    Accepted: decimals with point or comma, nested ``()[]{}`` with amounts, blanks, quotes, points at the end,
    subscripts of any script, middle dots, bare charges (``Na+Cl-``) and charges after ``^``, D and T as hydrogen, two
    capitals where only one reading exists (``TI`` is titanium), sums with a part of one (``O7-0.08``), variables whose
    value is given (``O7-x (x=0.1)`` is O6.9), and for oxygen a number with an unknown variable (``O7-x`` is O7, and so
    is ``O7=x``, where the sign was mistyped). An element whose amount is written as 0 is left out: it is the end of a
    doping series.

    Parameters
    ----------
    max_amount
        Largest credible amount of one element.
    oxygen
        Measured oxygen content per formula unit; it takes the place of a variable (``Oz``, ``O7-x``), not of a number.
    elements
        Symbols that the source names for this sample beside the formula; they decide how two capitals are read
        (``CU`` is copper where Cu is named, and carbon and uranium where these are).

    Raises
    ------
    UnknownAmountError
        If an amount is a variable of unknown value (``Oz``, ``Srx``).
    AmountLimitError
        If an amount is below 0 or above ``max_amount``.
    FormulaError
        For everything else: an unknown symbol, capitals with two readings, unbalanced brackets, stray characters, an
        empty text.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"{text[:40]!r}… is not a readable formula: longer than {MAX_LENGTH} characters")
    reader = _Reader(*_clean(text), oxygen, frozenset(map(_as_element, elements)))
    if not reader.text:
        raise FormulaError(f"{text!r} is not a readable formula: it is empty")
    amounts = _read_parts(reader)
    if reader.capitals and reader.doubtful:
        raise reader.error(
            f"{reader.doubtful!r} can be read in more than one way, as {reader.capitals!r} stands for one element"
        )
    if reader.oxygen_used and oxygen is not None:
        amounts["O"] = oxygen  # measured for the whole formula unit
    for symbol, amount in amounts.items():
        if not 0 <= amount <= max_amount:
            reason = f"the amount {amount:g} of {symbol} is not above 0 and at most {max_amount:g}"
            raise reader.error(reason, AmountLimitError)
    absent = [symbol for symbol, amount in amounts.items() if amount == 0]
    amounts = {symbol: amount for symbol, amount in amounts.items() if amount > 0}
    if not amounts:
        raise reader.error("it names no element")
    return ParsedFormula(amounts, (*reader.notes, *(f"{symbol}0 left out" for symbol in absent)))


def parse_formula(text: str, max_amount: float = 150.0) -> dict[str, float]:
    """Amounts by element symbol; see ``read_formula`` for what is accepted and what raises FormulaError."""
    return read_formula(text, max_amount).amounts
