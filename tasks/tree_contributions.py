"""What the trees beside S2SNet go by in a crystal: the contribution of each descriptor to the logit, drawn and told."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from pymatgen.util.string import unicodeify

from models.crystal_trees import TreeAttribution, feature_units
from tasks.figures import BLUE, FAINT, INK, QUIET, STYLE, VERMILION

SHOWN = 12  # descriptors in the figure


def describe_share(share: float) -> str:
    """How large the share of the trees is, and what the weights of the atoms are worth then, in plain words."""
    trees = f"The trees have {100 * share:.0f} per cent of the logit that the probability comes from"
    if share >= 1:
        return f"{trees}: the networks have no say in it, and the weights of the atoms are those of the networks alone."
    if share <= 0:
        return f"{trees}: it is that of the networks, and so are the weights of the atoms."
    return f"{trees}. The weights of the atoms are those of the networks, which have the rest."


def tree_table(found: TreeAttribution) -> list[dict[str, Any]]:
    """A row a descriptor, the largest contribution first.

    Columns: kind, descriptor, value (null: no meaning), unit (empty: none), contribution.
    """
    rows = [
        {
            "kind": kind,
            "descriptor": name,
            "value": None if np.isnan(value) else float(f"{value:.6g}"),
            "unit": feature_units().get(name, ""),
            "contribution": round(float(contribution), 5) + 0.0,
        }
        for (kind, name), value, contribution in zip(found.names, found.features, found.contributions, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["contribution"]))


def shown_rows(table: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[dict[str, str]]:
    """The first rows of ``tree_table`` as a page shows them."""
    return [
        {
            "kind": str(row["kind"]),
            "descriptor": str(row["descriptor"]),
            "value": "none" if row["value"] is None else f"{row['value']:.4g} {row['unit']}".rstrip(),
            "adds to the logit": f"{row['contribution']:+.3f}",
        }
        for row in table[:count]
    ]


def tree_figure(table: Sequence[Mapping[str, Any]], expected: float, share: float, formula: str) -> Figure:
    """The largest contributions of ``tree_table`` as bars, and all others together."""
    first, others = table[:SHOWN], sum(row["contribution"] for row in table[SHOWN:])
    names = [f"{row['descriptor']} = {shown['value']}" for row, shown in zip(first, shown_rows(table), strict=True)]
    names.append(f"the {len(table) - len(first)} others together")
    values = [*(row["contribution"] for row in first), others]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.3 + 0.32 * len(names)), layout="constrained")
        axis = figure.subplots()
        axis.barh(range(len(names)), values, height=0.66, color=[VERMILION if v > 0 else BLUE for v in values])
        for place, value in enumerate(values):
            side = "left" if value >= 0 else "right"
            axis.text(value, place, f" {_signed(value)} ", va="center", ha=side, color=INK, fontsize=8.5)
        reach = max(abs(value) for value in values) or 1.0
        axis.set_xlim(min(*values, 0.0) - 0.22 * reach, max(*values, 0.0) + 0.18 * reach)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.tick_params(left=False)
        axis.axvline(0, color=QUIET, linewidth=0.8)
        axis.grid(axis="x", color=FAINT, linewidth=0.5)
        axis.set_axisbelow(True)
        whole = expected + sum(row["contribution"] for row in table)
        axis.set_xlabel(
            f"added to the logit, before calibration; share of the trees: {100 * share:.0f} %\n"
            f"(from {_signed(expected)}, without the crystal, to {_signed(whole)})",
            loc="right",
        )
        title = f"What the trees go by in {unicodeify(formula)}: the {len(first)} largest of {len(table)} descriptors"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, weight="bold")
        return figure


def describe_trees(table: Sequence[Mapping[str, Any]], count: int = 3) -> str:
    """The first rows of ``tree_table`` in a sentence."""
    named = [f"{row['descriptor']} ({row['contribution']:+.2f})" for row in table[:count]]
    return f"In the trees {'; '.join(named)} weigh most."


def _signed(value: float) -> str:
    """The number with the minus sign of the axes."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
