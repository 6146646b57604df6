"""A small finished workspace: real crystals, tight-binding bands, real (untrained) networks, stored like trained ones.

Every table has its declared schema; grids, weights and manifests are written by the code that writes them in a run.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pymatgen.core import Composition, Lattice, Structure

from models.bnas import CONFIGS as BNAS_CONFIGS
from models.bnas import Bnas
from models.metrics import classification_scores, regression_scores
from models.s2snet import CONFIGS as S2S_CONFIGS
from models.s2snet import S2SNet
from tasks.grids import assemble_index, make_chunk, plan_chunks
from tasks.model_store import save_model
from tasks.schemas import BANDS, CRYSTALS, FOLDS, ORDERED, PREDICTIONS, SUPERCONDUCTORS
from tasks.screening import join_parts, plan_screening, screen_to_part
from tasks.settings import GridSettings, ScreeningSettings
from tasks.stages import Rejection, StageOutcome, hash_text, run_stage
from tasks.workspace import Workspace

COARSE = 6  # k points along each axis of the coarse bands
BASELINES = ("mean", "element fractions, network", "Magpie, random forest")
# Formula, lattice constant (angstrom), measured Tc (kelvin; None: to screen). First in rocksalt, then caesium chloride.
ROCKSALT = (
    ("NbN", 4.40, 16.0),
    ("NbC", 4.47, 11.1),
    ("ZrN", 4.58, 10.0),
    ("HfN", 4.52, 8.8),
    ("TaC", 4.45, 10.3),
    ("MoC", 4.28, 14.3),
    ("TiN", 4.24, 5.5),
    ("YS", 5.49, 1.9),
    ("ScN", 4.51, 0.0),
    ("TiC", 4.33, 0.0),
    ("VC", 4.16, None),
    ("WN", 4.36, None),
    ("LaAs", 6.13, None),
)
CAESIUM_CHLORIDE = (("NiAl", 2.88, 0.0), ("CuZn", 2.94, 0.0), ("HfRu", 3.22, None), ("CsXe", 4.30, None))
GAPPED = "ScN"  # gets a band gap


@pytest.fixture(scope="session")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace with everything screened, made once; copy it before changing it."""
    workspace = make_workspace(tmp_path_factory.mktemp("screened"))
    settings = ScreeningSettings(chunk=80)  # 10 a chunk where all images are asked about
    plan = plan_screening(workspace, settings)
    for chunk in plan.chunks:
        screen_to_part(workspace, chunk, settings)
    join_parts(workspace, plan, settings)
    return workspace


def make_workspace(folder: Path) -> Workspace:
    """A workspace with everything that screening and the report read."""
    workspace = Workspace(folder)
    materials = [_material(*entry, kind="rocksalt") for entry in ROCKSALT]
    materials += [_material(*entry, kind="caesium chloride") for entry in CAESIUM_CHLORIDE]
    fill_workspace(workspace, materials)
    return workspace


def fill_workspace(workspace: Workspace, materials: Sequence[Mapping[str, Any]]) -> None:
    """Write all tables, grids and networks for materials with ``tc_kelvin``, ``structure`` and the columns of BANDS."""
    _write_sources(workspace, materials)
    rows = [{field.name: material.get(field.name) for field in BANDS} for material in materials]
    workspace.write_table("bands/test.parquet", pa.Table.from_pylist(rows, schema=BANDS))
    settings = GridSettings()
    for chunk in plan_chunks(workspace, settings):
        make_chunk(workspace, chunk, settings)
    run_stage(workspace, "grid", lambda: assemble_index(workspace), code_version=1, inputs=[], settings=settings)
    labelled = [material for material in materials if material["tc_kelvin"] is not None]
    save_networks(workspace, labelled)


def save_networks(workspace: Workspace, labelled: Sequence[Mapping[str, Any]], seed: int = 0) -> None:
    """Untrained networks with made-up held-out predictions, of which those of the networks are good."""
    torch.manual_seed(seed)
    bnas, s2snet = BNAS_CONFIGS["tiny"][0], S2S_CONFIGS["starter"].network
    networks = [Bnas(bnas) for _ in range(2)]
    for network in networks:
        torch.nn.init.constant_(list(network.parameters())[-1], 1.5)  # the output's bias: about 3.5 K
    crystal_networks = [S2SNet(s2snet) for _ in range(2)]
    for network in crystal_networks:
        torch.nn.init.constant_(network.head.fully_connected[-1].bias[1:], 1.0)  # about 1.7 K
    tables = _held_out(labelled, seed)
    folds = [
        {"split": split, "fold": "0", "material_id": material["material_id"], "side": "test"}
        for split in ("random", "chemical-system")
        for material in labelled
    ]
    for name, members, config in (
        ("bnas", networks, {"network": bnas.model_dump()}),
        (
            "s2snet",
            crystal_networks,
            {"network": s2snet.model_dump(), "calibration": {"slope": 2.0, "intercept": 0.2}},
        ),
    ):
        table = tables[name]
        save_model(
            workspace,
            name,
            hash_text(name, str(seed))[:10],
            members=[member.state_dict() for member in members],
            config=config,
            metrics={"scores": _scores(table, name)},
            predictions=table,
            folds=pa.Table.from_pylist(folds, schema=FOLDS),
        )


def _material(formula: str, length: float, tc_kelvin: float | None, kind: str) -> dict[str, Any]:
    """A crystal with tight-binding bands from its shortest lattice vectors, so with the full symmetry."""
    half = length / 2
    lattice = (
        Lattice([[0, half, half], [half, 0, half], [half, half, 0]]) if kind == "rocksalt" else Lattice.cubic(length)
    )
    structure = Structure(lattice, list(Composition(formula)), [[0, 0, 0], [0.5, 0.5, 0.5]])
    kpoints = np.array(list(itertools.product(range(COARSE), repeat=3))) / COARSE
    shifts = np.array([shift for shift in itertools.product((-1, 0, 1), repeat=3) if any(shift)])
    lengths = np.linalg.norm(shifts @ lattice.matrix, axis=1)
    shortest = shifts[lengths < lengths.min() + 1e-6]
    waves = np.cos(2 * np.pi * kpoints @ shortest.T).sum(axis=1) / len(shortest)
    centres = np.linspace(-7, 7, 20) + 0.1 * structure.composition.average_electroneg
    widths = 0.6 + 0.08 * np.arange(20)
    energies = centres[:, None] - widths[:, None] * waves
    if formula == GAPPED:
        energies = energies + np.where(centres > 0, 3.0, -3.0)[:, None]
    grid = np.linspace(-10, 6, 81)
    text = structure.to_json()
    return {
        "material_id": f"mp-{sum(map(ord, formula))}{len(formula)}",
        "formula": structure.composition.reduced_formula,
        "chemical_system": structure.composition.chemical_system,
        "space_group": "Fm-3m" if kind == "rocksalt" else "Pm-3m",
        "sites": 2,
        "structure": text,
        "structure_hash": hash_text(text),
        "kpoints": kpoints.tolist(),
        "weights": [1 / len(kpoints)] * len(kpoints),
        "grid": [COARSE] * 3,
        "energies": [(energies + 5.0).tolist()],
        "efermi": 5.0,
        "band_gap_ev": 5.0 if formula == GAPPED else 0.0,
        "dos_energies": grid.tolist(),
        **{f"dos_{orbital}": np.exp(-((grid + place) ** 2)).tolist() for place, orbital in enumerate("spd")},
        "engine": "tight-binding",
        "engine_version": "1",
        "engine_settings": json.dumps({"hopping": 0.6}),
        "seconds": 0.1,
        "bands_hash": hash_text(formula),
        "tc_kelvin": tc_kelvin,
    }


def _write_sources(workspace: Workspace, materials: Sequence[Mapping[str, Any]]) -> None:
    """The tables of the clean, crystals and order stages, and a manifest of the first with a refusal."""
    measured = {m["formula"]: m["tc_kelvin"] for m in materials if m["tc_kelvin"] is not None}
    superconductors = [
        {
            "formula": formula,
            "tc_kelvin": tc,
            "tc_std_kelvin": 0.4 if place % 2 else 0.0,
            "reports": 2 if place % 2 else 1,
            "year_first": 1950 + place,
            "references": ["a journal, 1"],
            "family": "other",
            "source": "supercon.csv",
            "source_rows": [place + 1],
        }
        for place, (formula, tc) in enumerate(sorted(measured.items()))
    ]
    table = pa.Table.from_pylist(superconductors, schema=SUPERCONDUCTORS)
    outcome = StageOutcome(
        len(table) + 1,
        len(table),
        {"supercon/superconductors.parquet": table},
        [Rejection("row 99: <b>Nb3X</b>", "X is no element & cannot be read")],
        {"compositions": len(table)},
    )
    run_stage(workspace, "clean", lambda: outcome, code_version=1, inputs=["made for a test"])
    crystals = [
        {
            "crystal_id": m["material_id"],
            "formula": m["formula"],
            "space_group": m["space_group"],
            "sites": m["sites"],
            "ordered": True,
            "energy_above_hull_ev": 0.012,
            "crystal_source": "crystals.csv",
            "reference": "a handbook",
            "structure": m["structure"],
        }
        for m in materials
    ]
    ordered = [
        {
            "material_id": m["material_id"],
            "parent_id": m["material_id"],
            "formula": m["formula"],
            "supercon_formula": m["formula"] if m["tc_kelvin"] is not None else None,
            "tc_kelvin": m["tc_kelvin"],
            "year_first": 1960 if m["tc_kelvin"] is not None else None,
            "family": "other",
            "match": "exact" if m["tc_kelvin"] is not None else None,
            "space_group": m["space_group"],
            "sites": m["sites"],
            "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
            "composition_error": 0.0,
            "structure_hash": m["structure_hash"],
            "structure": m["structure"],
        }
        for m in materials
    ]
    workspace.write_table("crystals/crystals.parquet", pa.Table.from_pylist(crystals, schema=CRYSTALS))
    workspace.write_table("crystals/ordered.parquet", pa.Table.from_pylist(ordered, schema=ORDERED))


def _held_out(labelled: Sequence[Mapping[str, Any]], seed: int) -> dict[str, pa.Table]:
    """Held-out predictions: the network's have little noise, the baselines' more."""
    generator = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, Any]]] = {"bnas": [], "s2snet": []}
    for (network, found), split in itertools.product(rows.items(), ("random", "chemical-system")):
        for place, model in enumerate((network, *BASELINES)):
            noise = (0.2 + 0.25 * place) * (1 if split == "random" else 2)
            for material in labelled:
                tc = material["tc_kelvin"]
                label = np.log1p(tc) + noise * generator.normal()
                likely = 1 / (1 + np.exp(-(2.0 if tc > 0 else -2.0) - 2 * noise * generator.normal()))
                found.append(
                    {
                        "split": split,
                        "fold": "0",
                        "model": model,
                        "material_id": material["material_id"],
                        "formula": material["formula"],
                        "tc_kelvin": tc,
                        "tc_predicted_kelvin": max(0.0, float(np.expm1(label))) if network in ("bnas", model) else None,
                        "superconductor": tc > 0,
                        "probability": float(likely) if network == "s2snet" else None,
                    }
                )
    return {name: pa.Table.from_pylist(found, schema=PREDICTIONS) for name, found in rows.items()}


def _scores(table: pa.Table, network: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Scores of every model and split as the training stages store them."""
    frame = table.to_pandas()
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for (split, model), part in frame.groupby(["split", "model"]):
        if network == "bnas":
            found = regression_scores(part["tc_kelvin"].to_numpy(), part["tc_predicted_kelvin"].to_numpy(), seed=0)
        else:
            label = part["superconductor"].to_numpy(dtype=float)
            found = classification_scores(label, part["probability"].to_numpy(dtype=float), seed=0)
        scores.setdefault(split, {})[model] = {name: score.as_json() for name, score in found.items()}
    return scores
