"""Formulas: what is read, what is refused and why, one formula for one composition, families."""

import csv

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymatgen.core.composition import Composition

from tasks.exceptions import InputError
from tasks.families import FAMILIES
from tasks.formulas import (
    SYMBOLS,
    AmountLimitError,
    FormulaError,
    UnknownAmountError,
    chemical_system,
    family_of,
    normalise_formula,
    parse_formula,
    read_formula,
)
from tests.conftest import STARTER


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        pytest.param("MgB2", {"Mg": 1, "B": 2}, id="plain"),
        pytest.param("La1.85Sr0.15CuO4", {"La": 1.85, "Sr": 0.15, "Cu": 1, "O": 4}, id="decimal-point"),
        pytest.param("La1,85Sr0,15CuO4", {"La": 1.85, "Sr": 0.15, "Cu": 1, "O": 4}, id="decimal-comma"),
        pytest.param(" Nb3 Sn ", {"Nb": 3, "Sn": 1}, id="blanks"),
        pytest.param("Ca[Fe{As(O2)2}]3", {"Ca": 1, "Fe": 3, "As": 3, "O": 12}, id="nested-brackets"),
        pytest.param("(Ba0.6K0.4)Fe2As2", {"Ba": 0.6, "K": 0.4, "Fe": 2, "As": 2}, id="bracket-without-amount"),
        pytest.param("YBa₂Cu₃O₇", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="subscripts"),
        pytest.param("YBa$_2$Cu$_3$O$_7$", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="latex"),
        pytest.param("Na0.35CoO2·1.3H2O", {"Na": 0.35, "Co": 1, "O": 3.3, "H": 2.6}, id="hydrate"),
        pytest.param("Na+Cl-", {"Na": 1, "Cl": 1}, id="bare-charges"),
        pytest.param("Fe^{3+}As^3-", {"Fe": 1, "As": 1}, id="marked-charges"),
        pytest.param("PdD0.9", {"Pd": 1, "H": 0.9}, id="deuterium"),
        pytest.param("Sr4V2.7TI0.3O9", {"Sr": 4, "V": 2.7, "Ti": 0.3, "O": 9}, id="two-capitals"),
        pytest.param("YBa2Cu3O7-x", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="oxygen-minus-x"),
        pytest.param("YBa2Cu3O7−δ", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="oxygen-minus-delta"),
        pytest.param("YBa2Cu3O7-d", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="oxygen-minus-d"),
        pytest.param("YBa2Cu3O6+x", {"Y": 1, "Ba": 2, "Cu": 3, "O": 6}, id="oxygen-plus-x"),
        pytest.param("YBa2Cu3O(7-y)", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="oxygen-in-brackets"),
        pytest.param("YBa2Cu3O7-x (x=0.1)", {"Y": 1, "Ba": 2, "Cu": 3, "O": 6.9}, id="variable-with-value"),
        pytest.param("La2-xSrxCuO4 (x=0.15)", {"La": 1.85, "Sr": 0.15, "Cu": 1, "O": 4}, id="doping-with-value"),
        pytest.param("Nb1D0.1Nb1", {"Nb": 2, "H": 0.1}, id="repeated-element"),
        pytest.param("Pd1T0.81", {"Pd": 1, "H": 0.81}, id="tritium"),
        pytest.param("La2Sr0Cu0.8Zn0.2O4", {"La": 2, "Cu": 0.8, "Zn": 0.2, "O": 4}, id="zero-left-out"),
        pytest.param("La2-xSrxCuO4 (x=0)", {"La": 2, "Cu": 1, "O": 4}, id="doping-with-zero"),
        pytest.param("YBa2Cu3O7-0.08", {"Y": 1, "Ba": 2, "Cu": 3, "O": 6.92}, id="written-difference"),
        pytest.param("La2-0,15Sr0.15CuO4+0.02", {"La": 1.85, "Sr": 0.15, "Cu": 1, "O": 4.02}, id="written-sum"),
        pytest.param("YBa2Cu3O7-2x", {"Y": 1, "Ba": 2, "Cu": 3, "O": 7}, id="multiple-of-a-variable"),
        pytest.param("YBa2Cu3O7-2x (x=0.1)", {"Y": 1, "Ba": 2, "Cu": 3, "O": 6.8}, id="multiple-with-value"),
        pytest.param("Eu2Cu2NbO10=z", {"Eu": 2, "Cu": 2, "Nb": 1, "O": 10}, id="mistyped-sign"),
        pytest.param('"Nb3Sn."', {"Nb": 3, "Sn": 1}, id="quotes-and-point"),
        pytest.param("Nb3Sn*", {"Nb": 3, "Sn": 1}, id="footnote"),
        pytest.param("ＭｇＢ２", {"Mg": 1, "B": 2}, id="full-width"),
        pytest.param("LA2SR1", {"La": 2, "Sr": 1}, id="all-capitals"),
    ],
)
def test_readable_formulas(text, amounts):
    assert parse_formula(text) == pytest.approx(amounts)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("  ", "empty", id="blank"),
        pytest.param("Xx2O3", "'Xx' is not an element", id="unknown-element"),
        pytest.param("mgb2", "'m' stands where an element is expected", id="lower-case"),
        pytest.param("Bi2Sr2CaCu2Oz", "amount of O is the variable 'z'", id="Oz"),
        pytest.param("YBa2Cu3OY", "amount of O is the variable 'Y'", id="OY"),
        pytest.param("La2-xSrxCuO4", "La holds the variable 'x'", id="doping-unknown"),
        pytest.param("Mo6PbSx", "amount of S is the variable 'x'", id="Sx"),
        pytest.param("Nb-Ti", "sign '-' after Nb", id="system-not-composition"),
        pytest.param("SmBa-1Cu3O6.94", "sign '-' after Ba", id="negative-amount"),
        pytest.param("H0", "names no element", id="zero"),
        pytest.param("YBa2Cu3O7-x (x=8)", "amount -1 of O", id="below-zero"),
        pytest.param("LA2CU1O4", "'CU' can be read in more than one way, as 'LA'", id="capitals-in-doubt"),
        pytest.param("YBa2Cu3O6-7", "sign '-' after O", id="range"),
        pytest.param("Nb3S\u0441", "is not an element", id="cyrillic"),
        pytest.param("Nb300Sn100", "amount 300 of Nb is not above 0 and at most 150", id="above-limit"),
        pytest.param("Nb3(Sn", r"'\)' is missing", id="unclosed"),
        pytest.param("Nb3Sn)", r"'\)' stands where", id="unopened"),
        pytest.param("Nb()", "empty brackets", id="empty-brackets"),
        pytest.param("Na0.35CoO2.1.3H2O", "'2.1.3' is not a number", id="two-points"),
        pytest.param("Y2C2Br0.5!1.5", "'!' stands where", id="stray-character"),
        pytest.param("Nb3=Sn", "'=' stands where", id="stray-sign"),
        pytest.param("DY2", "more than one way", id="ambiguous-capitals"),
        pytest.param("(" * 400, "longer than", id="too-long"),
        pytest.param("(" * 100 + "H" + ")" * 100, "nested brackets", id="too-deep"),
        pytest.param("H" + "9" * 200, "not above 0 and at most", id="overflow"),
    ],
)
def test_unreadable_formulas_have_a_reason(text, reason):
    with pytest.raises(FormulaError, match=reason) as raised:
        parse_formula(text)
    assert isinstance(raised.value, InputError)


def test_interpretations_are_noted():
    assert read_formula("YBa2Cu3O7-x").notes == ("O7-x read as O7",)
    assert read_formula("PdD").notes == ("D read as H",)
    assert read_formula("MgB2").notes == ()


@pytest.mark.parametrize(
    ("text", "oxygen", "amount"),
    [
        ("YBa2Cu3Oz", 6.9, 6.9),
        ("YBa2Cu3OY", 6.9, 6.9),
        ("YBa2Cu3O7-x", 6.9, 6.9),
        ("YBa2Cu3O7=z", 6.9, 6.9),
        ("YBa2Cu3O7", 6.9, 7.0),
        ("YBa2Cu3O7-x (x=0.2)", 6.9, 6.8),
        ("Bi2Sr2O2CaCu2O6+d", 8.2, 8.2),
    ],
)
def test_measured_oxygen_takes_the_place_of_a_variable(text, oxygen, amount):
    assert read_formula(text, oxygen=oxygen).amounts["O"] == pytest.approx(amount)


def test_measured_oxygen_that_cannot_be_meant_is_refused():
    with pytest.raises(UnknownAmountError, match=r"0.07 is far from O7"):
        read_formula("YBa2Cu3O7-x", oxygen=0.07)
    with pytest.raises(UnknownAmountError, match="the amount of S is the variable"):
        read_formula("Mo6PbSx", oxygen=8)


@pytest.mark.parametrize(
    ("text", "elements", "read"),
    [
        ("LA2CU1O4", ["La", "Cu", "O"], {"La": 2, "Cu": 1, "O": 4}),
        ("CU1", ["C", "U"], {"C": 1, "U": 1}),
        ("DY1", ["Dy"], {"Dy": 1}),
        ("DY2", ["D", "Y"], {"H": 1, "Y": 2}),
        ("REB2", ["Re", "B"], {"Re": 1, "B": 2}),
        ("CO2", [], {"C": 1, "O": 2}),
    ],
)
def test_elements_named_beside_the_formula_decide_about_capitals(text, elements, read):
    assert read_formula(text, elements=elements).amounts == read


def test_reasons_have_classes():
    with pytest.raises(UnknownAmountError):
        parse_formula("Bi2Sr2CaCu2Oz")
    with pytest.raises(AmountLimitError):
        parse_formula("Nb300Sn100")


# Written as laboratories write, then any character that Unicode knows, lone surrogates and unassigned ones included.
LIKE_FORMULAS = st.text(alphabet="OYBaCuxδLSRDT()[]{}0123456789.,+-^_$ =·~*'", max_size=320)
ANY_CHARACTERS = st.text(alphabet=st.characters(exclude_categories=()), max_size=400)
PIECES = st.lists(
    st.sampled_from(["La", "LA", "CU", "O", "Oz", "O7-", "x", "0.1", "2", "(", ")", "[", "]", "·", "=", "-0.08", "+"]),
    max_size=100,
).map("".join)


@given(
    LIKE_FORMULAS | ANY_CHARACTERS | PIECES,
    st.none() | st.floats(0, 1e9),
    st.lists(st.sampled_from(["La", "Cu", "C", "U", "O", "Dy", "D"])),
)
@example("\ufdfa" * 300, None, [])  # each becomes 18 characters in the one alphabet
@example("㉟" * 300, None, [])  # and each of these two digits
@example("O" + "9" * 299, 7.0, [])
@example("(" * 150 + ")" * 150, None, [])
@example("O7-x" * 75, 6.9, ["O"])
@settings(max_examples=500, deadline=10_000)  # milliseconds; far less than a text that never ends
@pytest.mark.timeout(300)
def test_any_text_is_read_or_refused_in_no_time(text, oxygen, elements):
    try:
        amounts = read_formula(text, oxygen=oxygen, elements=elements).amounts
    except FormulaError:
        return
    assert amounts
    assert all(symbol in SYMBOLS and 0 < amount <= 150 for symbol, amount in amounts.items())


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("Mg2B4", "MgB2"),
        ("B2Mg", "MgB2"),
        ("Nb0.5Ti0.5", "TiNb"),
        ("Nb0.75Zr0.25", "ZrNb3"),
        ("YBa2Cu3O6.9", "Ba2YCu3O6.9"),
        ("Y0.5BaCu1.5O3.45", "Ba2YCu3O6.9"),
        ("La0.925Sr0.075Cu0.5O2", "Sr0.15La1.85CuO4"),
        ("Ba0.6K0.4Fe2As2", "K0.4Ba0.6Fe2As2"),
        ("Ba0.5K0.5Fe2As2", "KBaFe4As4"),
        ("Sr14Cu24O41", "Sr14Cu24O41"),
        ("Nb95Ta5", "Ta0.05Nb0.95"),
        ("Nb4", "Nb"),
    ],
)
def test_equal_compositions_have_one_formula(text, formula):
    assert normalise_formula(parse_formula(text)) == formula


@given(
    st.dictionaries(st.sampled_from(["La", "Sr", "Cu", "O", "Fe", "As"]), st.integers(1, 800), min_size=1, max_size=5),
    st.sampled_from([2, 3, 5, 10, 0.5, 0.25]),
)
@example({"La": 36, "Sr": 138, "Cu": 262, "O": 262, "Fe": 262}, 5)  # a half in the fifth decimal
@settings(max_examples=200, deadline=None)
def test_normal_form_is_free_of_scale_and_keeps_the_composition(thousandths, factor):
    amounts = {symbol: number / 100 for symbol, number in thousandths.items()}
    formula = normalise_formula(amounts)
    assert formula == normalise_formula({symbol: amount * factor for symbol, amount in amounts.items()})
    read, total = parse_formula(formula, 1e9), sum(amounts.values())
    for symbol, amount in amounts.items():
        assert read.get(symbol, 0) / sum(read.values()) == pytest.approx(amount / total, abs=1e-3)


def test_elements_stand_in_the_order_of_pymatgen():
    for text in ("YBa2Cu3O7", "LaFeAsO", "Tl2Ba2CaCu2O8", "PbMo6S8"):
        ours = list(Composition(normalise_formula(parse_formula(text))).get_el_amt_dict())
        theirs = Composition(text).formula.split()
        assert ours == ["".join(c for c in part if c.isalpha()) for part in theirs]


def test_starter_formulas_are_their_own_normal_form():
    with (STARTER / "supercon.csv").open(encoding="utf-8") as file:
        texts = [row["formula"] for row in csv.DictReader(file)]
    formulas = set()
    for text in texts:
        try:
            formulas.add(normalise_formula(parse_formula(text)))
        except FormulaError:
            continue
    assert len(formulas) > 200
    assert {normalise_formula(parse_formula(formula)) for formula in formulas} == formulas


def test_chemical_system_is_alphabetical():
    assert chemical_system("MgB2") == "B-Mg"
    assert chemical_system("Nb") == "Nb"


@pytest.mark.parametrize(
    ("formula", "family"),
    [
        ("Nb", "element"),
        ("YBa2Cu3O7", "cuprate"),
        ("La1.85Sr0.15CuO4", "cuprate"),
        ("LaFeAsO0.9F0.1", "iron-based"),
        ("FeSe", "iron-based"),
        ("Th4H15", "hydride"),
        ("PdH", "hydride"),
        ("PbMo6S8", "Chevrel"),
        ("UPt3", "heavy fermion"),
        ("CeCoIn5", "heavy fermion"),
        ("Nb3Sn", "A15"),
        ("Nb3Al0.75Ge0.25", "A15"),
        ("MgB2", "carbide/boride/nitride"),
        ("LuNi2B2C", "carbide/boride/nitride"),
        ("NbN", "carbide/boride/nitride"),
        ("NbTi", "other"),
        ("NbSe2", "other"),
        ("SrTiO3", "other"),
        ("CuO", "other"),
    ],
)
def test_families(formula, family):
    amounts = parse_formula(formula)
    assert family_of(amounts) == family
    assert family_of({symbol: 3 * amount for symbol, amount in amounts.items()}) == family
    assert family in FAMILIES
