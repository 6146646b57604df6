"""How often each element occurs among known and predicted superconductors, as bars (the papers' way)."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from pymatgen.core import Element

from tasks.figures import FAINT, SKY, STYLE, VERMILION

ELEMENTS = 40  # that have a bar


def element_bar_figure(groups: Mapping[str, Mapping[str, float]], count: int = ELEMENTS) -> Figure:
    """Share of the materials that hold each element, a bar a group, by rising atomic number.

    Parameters
    ----------
    groups
        By title, the share of materials (0 to 1) that hold each element, by symbol; two groups at most.
    count
        Elements shown: those with the largest share in any group.
    """
    largest = {
        symbol: max(group.get(symbol, 0.0) for group in groups.values()) for g in groups.values() for symbol in g
    }
    chosen = sorted(sorted(largest, key=lambda symbol: (-largest[symbol], symbol))[:count], key=lambda s: Element(s).Z)
    places = np.arange(len(chosen))
    width = 0.84 / max(len(groups), 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 1.2 + 0.24 * len(chosen)), 3.2), layout="constrained")
        axis = figure.subplots()
        for number, ((title, group), colour) in enumerate(zip(groups.items(), (SKY, VERMILION), strict=False)):
            heights = [100 * group.get(symbol, 0.0) for symbol in chosen]
            axis.bar(places + (number - (len(groups) - 1) / 2) * width, heights, width, color=colour, label=title)
        axis.set_xticks(places, chosen, fontsize=8)
        axis.set(xlim=(-0.7, len(chosen) - 0.3), ylabel="materials that hold it (%)")
        axis.grid(axis="y", color=FAINT, linewidth=0.5)
        axis.set_axisbelow(True)
        axis.tick_params(bottom=False)
        axis.legend(fontsize=8.5)
        return figure
