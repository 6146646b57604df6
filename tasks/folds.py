"""Materials with a label, and the folds of their cross-validations: one way for both networks and for the audit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from models.exceptions import ModelInputError
from models.splits import Fold, composition_key, connected_groups, make_folds
from tasks.settings import AuditSettings, NetworkSettings
from tasks.stages import hash_text


@dataclass(frozen=True)
class Labelled:
    """Materials to learn from or to audit, with the columns of GRID_INDEX; an audit may lack some of them."""

    table: pa.Table

    def column(self, name: str) -> list[Any]:
        """Values of a column."""
        return list(self.table[name].to_pylist())

    def optional(self, name: str) -> list[Any] | None:
        """Values of a column, None where the table has no such column."""
        return self.column(name) if name in self.table.column_names else None

    @property
    def tc_kelvin(self) -> np.ndarray:
        """(n,) kelvin."""
        return np.asarray(self.table["tc_kelvin"].to_numpy(), dtype=np.float64)

    @property
    def superconductors(self) -> np.ndarray | None:
        """(n,) bool, Tc above 0; None where the table has no Tc."""
        return self.tc_kelvin > 0 if "tc_kelvin" in self.table.column_names else None

    @property
    def formulas(self) -> list[str]:
        """The measured composition where it is known, or that of the ordered cell."""
        measured = self.optional("supercon_formula") or [None] * len(self.table)
        return [known or formula for known, formula in zip(measured, self.column("formula"), strict=True)]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that is learnt from: grids, labels, and what decides the folds and baselines."""
        columns = ["material_id", "sha256", "tc_kelvin", "formula", "supercon_formula", "parent_id", "family"]
        content = self.table.select([*columns, "chemical_system", "year_first"])
        return hash_text(*(str(row) for row in content.to_pylist()))

    @property
    def groups(self) -> np.ndarray:
        """Groups of related materials: one chemical system, parent crystal or composition, as far as they are known."""
        keys = [self.optional("chemical_system"), self.optional("parent_id")]
        if "formula" in self.table.column_names:
            keys.append([composition_key(formula) for formula in self.formulas])
        known = [key for key in keys if key is not None]
        if not known:
            raise ModelInputError("Groups of related materials need formulas or parent crystals")
        return connected_groups(*known)


def cross_validations(labelled: Labelled, settings: NetworkSettings | AuditSettings) -> dict[str, list[Fold]]:
    """Folds of every split in the settings."""
    common: dict[str, Any] = {"size": len(labelled.table), "folds": settings.folds, "seed": settings.seed}
    given: dict[str, Callable[[], dict[str, Any]]] = {
        "random": lambda: {"labels": labelled.superconductors},
        "chemical-system": lambda: {"labels": labelled.superconductors, "groups": labelled.groups},
        "family": lambda: {"groups": labelled.optional("family"), "related": labelled.groups},
        "year": lambda: {"years": labelled.optional("year_first"), "related": labelled.groups},
    }
    return {split: make_folds(split, **common, **given.get(split, dict)()) for split in settings.splits}
