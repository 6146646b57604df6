"""Reported superconductors, with a crystal or without: which of them the trees of S2SNet may learn from."""

from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Composition

from models.crystals import ELEMENTS
from models.reported_compositions import Reports, composition_features, reports_of
from models.splits import Fold
from tasks.cleaning import OUTPUT, clean_reports
from tasks.exceptions import InputError
from tasks.folds import Labelled
from tasks.settings import CleaningSettings
from tasks.supercon import read_reports
from tasks.workspace import Workspace


def _usable(table: pa.Table) -> pa.Table:
    """The superconductors of a table (SUPERCONDUCTORS), those of elements beyond Am left out."""
    found = table.filter(pc.greater(table["tc_kelvin"], 0))
    kept = [max(e.Z for e in Composition(formula).elements) <= ELEMENTS for formula in found["formula"].to_pylist()]
    return found.filter(pa.array(kept, pa.bool_()))


def learnt_formulas(workspace: Workspace) -> list[str]:
    """The compositions of the reports that the networks of the ensemble learn from."""
    return list(_usable(workspace.read_table(OUTPUT))["formula"].to_pylist())


def as_reports(table: pa.Table) -> Reports:
    """The superconductors of a table (SUPERCONDUCTORS), those of elements beyond Am left out."""
    found = _usable(table)
    return reports_of(*(found[name].to_pylist() for name in ("formula", "family", "year_first")))


@lru_cache(maxsize=1)
def reports_of_workspace(url: str, _data: str) -> Reports:
    """The superconductors of a workspace, read once a process for one state of the data."""
    return as_reports(Workspace(url).read_table(OUTPUT))


@lru_cache(maxsize=1)
def reports_of_file(source: str, _hash: str) -> Reports:
    """The superconductors of a table of reports as `meissner refresh --supercon` reads it, cleaned by its rules."""
    found = as_reports(clean_reports(read_reports(source), CleaningSettings()).tables[OUTPUT])
    if not len(found):
        raise InputError(f"{source} has no report with a Tc above 0 that the rules of cleaning keep")
    return found


def reports_for(
    reports: Reports, split: str, fold: Fold, features: np.ndarray, measured: Labelled | None = None
) -> Reports:
    """The reports that may be learnt from before a fold is judged.

    None is a relative of a held-out crystal (``Reports.apart_from``), be it by the composition of its cell or by that
    which was measured. Where a family is left out, none is of it, and where the later years are, none is of them nor of
    an unknown year.

    Parameters
    ----------
    features
        (crystals, 402) of ``crystal_features``.
    measured
        What was measured on the crystals, where that may differ from them; needed by ``family`` and ``year``.
    """
    apart = reports.apart_from(features[fold.test])
    if measured is None:
        return apart
    formulas = measured.formulas
    apart = apart.apart_from(composition_features([formulas[row] for row in fold.test]))
    if split == "family":
        apart = apart.where(apart.families != fold.name)
    if split == "year":
        years = measured.column("year_first")
        apart = apart.where(apart.years < min(years[row] for row in fold.test))
    return apart
