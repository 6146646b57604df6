"""Predictions for materials that stood in the training data, by networks that had not seen them.

The final ensemble was fitted to these materials, so its answer on them is a memory, no prediction. The
cross-validation left an answer for each by a network that had seen neither the material nor its chemical system.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from models.splits import composition_key
from tasks.model_store import chosen_version, model_folder
from tasks.workspace import Workspace

HONEST_SPLITS = ("chemical-system", "random")  # the first one that was run is used
TC = "tc_predicted_kelvin"
VALUES = {"bnas": TC, "s2snet": "probability"}


def reports_file(network: str, version: str) -> str:
    """Where a model names the compositions of the reports without a crystal that it has learnt from, if it has."""
    return f"{model_folder(network, version)}/reports.json"


@dataclass(frozen=True)
class HeldOut:
    """Out-of-fold predictions of one network.

    Attributes
    ----------
    split
        The cross-validation they come from.
    values
        Kelvin (BNAS) or probability (S2SNet) by material id; the mean where a material was held out more than once.
    tc_kelvin
        Kelvin by material id, of both networks; without the materials that have none.
    trained
        Every material that stood in the training data.
    compositions
        Their compositions, and those of reports that were learnt from without a crystal, as ``composition_key`` spells
        them.
    """

    split: str | None
    values: Mapping[str, float]
    tc_kelvin: Mapping[str, float]
    trained: frozenset[str]
    compositions: frozenset[str]

    def origin(self, material_id: str | None, formula: str | None = None) -> str:
        """How a prediction for a material came about: ``ensemble``, ``out-of-fold`` or ``in-sample``.

        Parameters
        ----------
        material_id
            None where the material is of no workspace.
        formula
            Of a material of another source, which is in-sample where its composition was trained on.
        """
        if material_id in self.values:
            return "out-of-fold"
        seen = material_id in self.trained or (formula is not None and composition_key(formula) in self.compositions)
        return "in-sample" if seen else "ensemble"


def read_predictions(workspace: Workspace, network: str, version: str | None = None) -> pa.Table:
    """All out-of-fold predictions that were stored with a network: its own and its baselines' (PREDICTIONS)."""
    return workspace.read_table(
        f"{model_folder(network, version or chosen_version(workspace, network))}/predictions.parquet"
    )


def read_held_out(workspace: Workspace, network: str, version: str | None = None) -> HeldOut:
    """Out-of-fold predictions of ``bnas`` or ``s2snet`` from the most honest split that was run."""
    version = version or chosen_version(workspace, network)
    folds = workspace.read_table(f"{model_folder(network, version)}/folds.parquet", ["material_id"])
    table = read_predictions(workspace, network, version)
    table = table.filter(pc.equal(table["model"], network))
    split = next((split for split in HONEST_SPLITS if split in set(table["split"].to_pylist())), None)
    chosen = table.filter(pc.equal(table["split"], split)) if split else table.slice(0, 0)
    trained = frozenset(folds["material_id"].to_pylist())
    formulas = set(table["formula"].to_pylist())
    if workspace.exists(reports := reports_file(network, version)):
        formulas |= set(workspace.read_json(reports))
    compositions = frozenset(map(composition_key, formulas))
    values, tc_kelvin = _mean_by_material(chosen, VALUES[network]), _mean_by_material(chosen, TC)
    return HeldOut(split, values, tc_kelvin, trained, compositions)


def _mean_by_material(table: pa.Table, column: str) -> dict[str, float]:
    """Mean of a column by material id; rows without a value are left out."""
    collected: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(table["material_id"].to_pylist(), table[column].to_pylist(), strict=True):
        if value is not None:
            collected[name].append(value)
    return {name: sum(found) / len(found) for name, found in collected.items()}
