"""Bars of what the trees go by: their labels, signs and title."""

import numpy as np
import pytest

from models.crystal_trees import REPORTED, TreeAttribution, feature_names
from tasks.tree_contributions import shown_rows, tree_figure, tree_table


@pytest.fixture
def found() -> TreeAttribution:
    names = (*feature_names(), REPORTED)
    order = [name for _, name in names]
    values, contributions = np.ones(len(names)), np.zeros(len(names))
    told = [("middle cell vector", 7.1239, 0.7), ("density", 4.402, -0.3), (REPORTED[1], 4.574, 0.2)]
    for name, value, contribution in told:
        place = order.index(name)
        values[place], contributions[place] = value, contribution
    return TreeAttribution(names, values, contributions, 3.48)


def test_values_have_their_units(found):
    assert [row["value"] for row in shown_rows(tree_table(found), 3)] == ["7.124 Å", "4.402 g/cm³", "4.574 logit"]


def test_bars_say_how_many_they_are_of_how_many_and_use_one_minus_sign(found):
    figure = tree_figure(tree_table(found), found.expected, 0.6, "LaB6")
    assert figure.get_suptitle() == "What the trees go by in LaB₆: the 12 largest of 403 descriptors"
    axis = figure.axes[0]
    assert axis.get_yticklabels()[0].get_text() == "middle cell vector = 7.124 Å"
    assert axis.texts[1].get_text().strip() == "−0.30"
    assert "to +4.08" in axis.get_xlabel()
