"""What BNAS looked at in one material, and what that picture is worth: planes, numbers and plain words."""

import csv
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pymatgen.core import Structure

from models.map_checks import SEEDS, mean_agreement, patch_symmetry, rank_correlation, symmetric_share
from models.rollout import to_mesh
from tasks.bands import ORDERED_TABLE, read_bands, safe_name
from tasks.bnas_data import NAME
from tasks.bnas_ensemble import BnasEnsemble, load_bnas
from tasks.exceptions import InputError
from tasks.explanations import Explanation
from tasks.figures import figure_bytes
from tasks.grids import make_grid
from tasks.held_out import read_held_out
from tasks.kpoints import point_group
from tasks.material_figures import nearest_band, plane_figure
from tasks.prediction import round_significant
from tasks.settings import GridSettings
from tasks.shards import INDEX, read_grids
from tasks.uniform_bands import UniformBands
from tasks.workspace import Workspace

SYMPREC = 0.01  # angstrom, of the search for the crystal's rotations
HIGH, LOW = 0.7, 0.3  # rank correlations from which on the words say "nearly the same", and up to which "another"
OBEYED = 0.99  # symmetric share from which on bands obey the crystal's rotations
FOLDER = "explain/bnas"
MEMORY = "The networks were trained on this material, so their Tc is a memory and no prediction."


class AttentionChecks(BaseModel):
    """What stands for and against an attention map."""

    model_config = ConfigDict(frozen=True)

    rotations: int | None = Field(description="Operations on k: the crystal's and time reversal; none: no crystal")
    symmetry: float | None = Field(description="Symmetric share of the rollout on the grid, 0 to 1")
    symmetry_shuffled: float | None = Field(description="The same, mean over all ways to shuffle the patches")
    symmetry_most: float | None = Field(description="The same, the most that any map in these patches can have")
    band_symmetry: float | None = Field(description="Symmetric share of the band shown beside the rollout")
    random_weights: float | None = Field(description="Mean rank correlation with networks of random weights, -1 to 1")
    random_weights_each: tuple[float, ...] = Field(description="The same, of each of them")
    agreement: float | None = Field(description="Mean rank correlation between the networks of the ensemble, -1 to 1")
    networks: int = Field(description="Networks of the ensemble")


def check_attention(
    bnas: BnasEnsemble, grids: NDArray, structures: Sequence[Structure | None], seeds: int = SEEDS
) -> list[AttentionChecks]:
    """Check the rollouts of grids (n, bands, k, k, k), each with its crystal or None where that is not known."""
    random = bnas.random_attention(grids, seeds) if len(grids) else np.empty((seeds, 0))
    return [
        _check(bnas.patch_attention(grid), random[:, number], grid, structure, nearest_band(grid))
        for number, (grid, structure) in enumerate(zip(grids, structures, strict=True))
    ]


def random_weights_control(bnas: BnasEnsemble, grid: NDArray, seeds: int = SEEDS) -> list[float]:
    """Rank correlation (-1 to 1) of the rollout of one grid with that of each of ``seeds`` untrained networks.

    The sanity check of Adebayo et al., NeurIPS 2018: an untrained network has the same configuration and fresh
    random weights. A high mean says that the picture says little about what was learnt.
    """
    return list(check_attention(bnas, grid[None], [None], seeds)[0].random_weights_each)


def crystal_rotations(structure: Structure | None) -> NDArray[np.int64] | None:
    """(n, 3, 3) operations on fractional k points (rows, k W), time reversal among them; None where none are found."""
    if structure is None:
        return None
    species = tuple(site.species_string for site in structure)
    lattice = np.asarray(structure.lattice.matrix, dtype=np.float64)
    try:
        return point_group(lattice, np.asarray(structure.frac_coords, dtype=np.float64), species, SYMPREC)
    except InputError:
        return None


def describe_checks(checks: AttentionChecks) -> list[str]:
    """What the checks mean, a sentence each."""
    said = [_say_symmetry(checks)]
    if checks.random_weights is not None:
        value = checks.random_weights
        meaning = (
            "so the picture says little about what was learnt: architecture and input alone give nearly the same"
            if value >= HIGH
            else "so part of the picture comes from architecture and input alone, without any learning"
            if value > LOW
            else "so the picture does not come from architecture and input alone; that it is right is not shown by this"
        )
        said.append(
            f"Networks with random weights give maps whose rank correlation with this one is {value:.2f} on average "
            f"(of {len(checks.random_weights_each)}), {meaning}."
        )
    if checks.agreement is not None:
        value = checks.agreement
        meaning = (
            "they look at the same places"
            if value >= HIGH
            else "they agree in part"
            if value > LOW
            else "they look at different places, so the picture hangs on each training's random start"
        )
        said.append(f"Between the {checks.networks} trained networks it is {value:.2f}: {meaning}.")
    return said


def patch_table(maps: NDArray, random: NDArray, mesh: int) -> list[dict[str, Any]]:
    """A row a patch, largest share first.

    Parameters
    ----------
    maps
        (networks, p, p, p), of the trained networks.
    random
        (seeds, p, p, p), of networks with random weights.
    mesh
        k points of the grid along an axis.

    Returns
    -------
    Rows with the patch's numbers, its first and last k point along each axis (fractional, in [0, 1)), its share of the
    class token's attention (sum 1 over the patches), the share in units of the mean, the spread over the networks, and
    the mean share in random networks.
    """
    side, mean, spread, untrained = maps.shape[-1], maps.mean(axis=0), maps.std(axis=0), random.mean(axis=0)
    width = mesh // side
    rows = []
    for place in itertools.product(range(side), repeat=3):
        row: dict[str, Any] = {f"patch_{axis}": number for axis, number in zip("xyz", place, strict=True)}
        for axis, number in zip("xyz", place, strict=True):
            row |= {f"k{axis}_first": number * width / mesh, f"k{axis}_last": ((number + 1) * width - 1) / mesh}
        row |= {"share": float(mean[place]), "times_mean": float(mean[place] / mean.mean())}
        row |= {"spread_of_networks": float(spread[place]), "share_random": float(untrained[place])}
        rows.append({name: round(value, 6) for name, value in row.items()})
    return sorted(rows, key=lambda row: -row["share"])


@dataclass(frozen=True, eq=False)
class Sample:
    """One material to explain.

    Attributes
    ----------
    grid
        (bands, k, k, k) eV relative to E_F.
    structure
        None where only the grid is stored, as in a collection.
    """

    name: str
    formula: str
    grid: NDArray
    structure: Structure | None


def find_sample(workspace: Workspace, name: str) -> Sample:
    """A material of the workspace, of one of its collections, or of a vasprun.xml.

    Raises
    ------
    InputError
        If there is neither, or the file cannot be read.
    MissingStageError
        If the workspace has no grids.
    """
    if "vasprun" in Path(name).name.lower() or Path(name).is_file():
        return _read_file(Path(name))
    places = [workspace, *collections_of(workspace)]
    same, count = [], 0
    for place in [one for one in places if one.exists(INDEX)] or [workspace]:
        index = place.read_table(INDEX, ["material_id", "formula"])
        if name in index["material_id"].to_pylist():
            found, grids = read_grids(place, [name])
            return Sample(name, found["formula"][0].as_py(), grids[0], read_crystal(place, name))
        same += index.filter(pc.equal(index["formula"], name))["material_id"].to_pylist()
        count += len(index)
    hint = f"; materials with this formula: {', '.join(same)}" if same else f", which has {count} materials"
    raise InputError(f"{name!r} is neither a vasprun.xml nor a material with a grid in {workspace.url}{hint}")


def collections_of(workspace: Workspace) -> list[Workspace]:
    """The collections of grids that a workspace has (``meissner grid --collection``), by name."""
    names = workspace.list(f"collections/*/{INDEX}")
    return [Workspace(workspace.path("/".join(name.split("/")[:2]))) for name in names]


def read_crystal(workspace: Workspace, material_id: str) -> Structure | None:
    """The crystal that a material's bands belong to; None where none is stored, as with a tight-binding model."""
    if not workspace.exists(ORDERED_TABLE):
        return None
    columns = ["material_id", "structure"]
    has_bands = bool(workspace.list("bands/*.parquet"))  # a collection has none, only the crystals beside its grids
    table = read_bands(workspace, columns) if has_bands else workspace.read_table(ORDERED_TABLE, columns)
    rows = table.filter(pc.equal(table["material_id"], pa.scalar(material_id)))["structure"].to_pylist()
    return Structure.from_str(rows[0], fmt="json") if rows else None


def explain(
    bnas: BnasEnsemble,
    sample: Sample,
    band: int | None = None,
    point: Sequence[float] = (0.0, 0.0, 0.0),
    seeds: int = SEEDS,
    trained_on: bool = False,
) -> Explanation:
    """Everything about where BNAS looked in one material.

    Parameters
    ----------
    band
        Channel of the band to show, from 0; None: the one nearest to E_F.
    point
        Fractional k point that the planes go through.
    trained_on
        Whether the networks were trained on this material.

    Raises
    ------
    InputError
        If there is no such band.
    """
    count, mesh = sample.grid.shape[0], sample.grid.shape[-1]
    if band is not None and not 0 <= band < count:
        raise InputError(f"Band {band + 1} is not one of the bands 1 to {count}")
    chosen = nearest_band(sample.grid) if band is None else band
    maps, random = bnas.patch_attention(sample.grid), bnas.random_attention(sample.grid[None], seeds)[:, 0]
    checks = _check(maps, random, sample.grid, sample.structure, chosen)
    figure = plane_figure(sample.grid, bnas.rollout(sample.grid), chosen, point)
    rows = patch_table(maps, random, mesh)
    prediction = bnas.predict(sample.grid[None], "cpu", formulas=[sample.formula])
    names = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin")
    numbers = {
        "material_id": sample.name,
        "formula": sample.formula,
        "bnas_version": bnas.version,
        **{name: round_significant(float(getattr(prediction, name)[0])) for name in names},
        "trained_on": trained_on,
        "band": chosen + 1,
        "point": [round(float(coordinate) * mesh) / mesh for coordinate in point],
        "patches": len(rows),
        **checks.model_dump(mode="json"),
    }
    words = describe_checks(checks) + ([MEMORY] if trained_on else [])
    files = {
        "planes.svg": figure_bytes(figure),
        "planes.png": figure_bytes(figure, "png", dpi=160),
        "numbers.json": (json.dumps(numbers | {"words": words}, indent=1, ensure_ascii=False) + "\n").encode(),
        "patches.csv": _as_csv(rows),
    }
    return Explanation(numbers, words, files)


def explain_material(
    workspace: Workspace,
    name: str,
    folder: str | None = None,
    band: int | None = None,
    point: Sequence[float] = (0.0, 0.0, 0.0),
) -> tuple[Explanation, list[str]]:
    """Explain one material by the latest BNAS, see ``find_sample`` and ``explain``; gives the files' places too.

    The files go to ``folder``, by default ``explain/bnas/<material>`` of the workspace.

    Raises
    ------
    InputError
        As ``find_sample`` and ``explain`` do.
    MissingStageError
        If no BNAS is trained.
    """
    bnas = load_bnas(workspace)
    trained_on = name in read_held_out(workspace, NAME, bnas.version).trained
    found = explain(bnas, find_sample(workspace, name), band, point, trained_on=trained_on)
    place = Workspace(folder or workspace.path(f"{FOLDER}/{safe_name(found.numbers['material_id'])}"))
    return found, found.write(place)


def _check(maps: NDArray, random: NDArray, grid: NDArray, structure: Structure | None, band: int) -> AttentionChecks:
    """Checks of the maps (networks, p, p, p) of one grid, with those (seeds, p, p, p) of random networks."""
    mean = maps.mean(axis=0)
    each = [value for other in random if (value := rank_correlation(mean, other)) is not None]
    return AttentionChecks(
        **_check_symmetry(mean, grid[band], structure),
        random_weights=_rounded(float(np.mean(each)) if each else None),
        random_weights_each=tuple(round(value, 4) for value in each),
        agreement=_rounded(mean_agreement(list(maps))),
        networks=len(maps),
    )


def _check_symmetry(mean: NDArray, band: NDArray, structure: Structure | None) -> dict[str, Any]:
    """The part of AttentionChecks that needs the crystal; all None without one."""
    mesh, rotations = len(band), crystal_rotations(structure)
    names = ("symmetry", "symmetry_shuffled", "symmetry_most", "band_symmetry")
    if rotations is None:
        return dict.fromkeys(("rotations", *names))
    reachable = patch_symmetry(len(mean), mesh, rotations)
    shares = (
        symmetric_share(to_mesh(mean, mesh), rotations),
        reachable.shuffled,
        reachable.most,
        symmetric_share(band, rotations),
    )
    return {"rotations": len(rotations)} | dict(zip(names, map(_rounded, shares), strict=True))


def _say_symmetry(checks: AttentionChecks) -> str:
    if checks.symmetry is None or checks.symmetry_shuffled is None or checks.symmetry_most is None:
        reason = "the crystal is not stored" if checks.rotations is None else "all patches have the same share"
        return f"The symmetry of the rollout is not known, because {reason}."
    reach = (checks.symmetry - checks.symmetry_shuffled) / max(checks.symmetry_most - checks.symmetry_shuffled, 1e-9)
    meaning = (
        "it has most of the symmetry that it could have"
        if reach >= HIGH
        else "it has part of the crystal's symmetry"
        if reach > LOW
        else "it shows hardly more of the crystal's symmetry than chance would"
    )
    bands = ""
    if checks.band_symmetry is not None and checks.band_symmetry < OBEYED:
        bands = f" The band itself keeps only {checks.band_symmetry:.2f}: its energies break the crystal's symmetry."
    return (
        f"Averaged over the {checks.rotations} operations that the crystal's symmetry has on k, the rollout keeps "
        f"{checks.symmetry:.2f} of its variance; shuffled patches would keep {checks.symmetry_shuffled:.2f}, the most "
        f"symmetric ones {checks.symmetry_most:.2f}: {meaning}.{bands}"
    )


def _read_file(path: Path) -> Sample:
    bands = UniformBands.from_vasprun(path)
    structure = Structure(bands.lattice, bands.species, bands.coords)
    grid = make_grid(bands, GridSettings()).energies
    return Sample(bands.material_id, structure.composition.reduced_formula, grid, structure)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4) + 0.0


def _as_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
