"""Which formulas are one composition in other decimals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.roundings import rounded_alike


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("MgB2", "Mg0.33B0.67", True),
        ("MgB2", "Mg0.3B0.7", True),
        ("MgB2", "Mg0.34B0.66", False),
        ("YBa2Cu3O6.93", "YBa2Cu3O6.9", True),
        ("YBa2Cu3O6.93", "YBa2Cu3O7", False),  # an amount without decimals is exact
        ("La1.85Sr0.15CuO4", "La1.84Sr0.16CuO4", False),
        ("La1.85Sr0.15CuO4", "La1.8Sr0.2CuO4", False),  # a half rounds either way
        ("La1.84Sr0.16CuO4", "La1.8Sr0.2CuO4", True),
        ("Nb0.75Sn0.25", "Nb6Sn2", True),
        ("Ag1Mo4S5", "Ag1.2Mo4.8S6", True),  # in another scale
        ("Nb3Sn", "Nb3Al", False),
        ("Fe1.0Se1.0", "FeSe", True),
        ("(La1.8Sr0.2)2CuO4", "La3.62Sr0.38CuO4", False),  # brackets multiply: taken as exact
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rounding(first: str, second: str, alike: bool) -> None:
    found = rounded_alike((first, second))
    assert found == ({first: {second}, second: {first}} if alike else {})


@given(st.integers(1, 8), st.integers(1, 3))
def test_a_formula_finds_its_own_rounding(tenths: int, decimals: int) -> None:
    fraction = (tenths + 0.137) / 10
    exact, rounded = (f"Nb{fraction:.{d}f}Ti{1 - fraction:.{d}f}" for d in (6, decimals))
    assert rounded in rounded_alike((exact, rounded))[exact]
