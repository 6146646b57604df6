"""Which atoms S2SNet's answer hangs on in a crystal, and what that picture is worth: figures, numbers, plain words.

Atoms are weighed by the networks alone; what the trees beside them go by is told by ``tasks.tree_contributions``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from pydantic import BaseModel, ConfigDict, Field
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from pymatgen.util.string import unicodeify

from models.attributions import Parts, map_correlation, path_share
from models.exceptions import MeissnerError
from models.map_checks import SEEDS, mean_agreement
from tasks.bands import safe_name
from tasks.crystal_pictures import PLOTLY, crystal_page, still_figure
from tasks.crystals import read_structure
from tasks.exceptions import InputError
from tasks.explanations import Explanation
from tasks.figures import figure_bytes
from tasks.held_out import read_held_out
from tasks.prediction import round_significant
from tasks.s2snet_data import NAME, ORDERED
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.stages import Rejection
from tasks.tree_contributions import describe_share, describe_trees, shown_rows, tree_figure, tree_table
from tasks.workspace import Workspace

FOLDER = "explain/s2snet"
TABLE = "crystals.parquet"
REFERENCES = 64  # crystals of the training set that the share of the atoms' path is measured against
SYMPREC = 0.01  # angstrom, of the search for equivalent sites
HIGH, LOW = 0.7, 0.3  # rank correlations from which on the words say "agree", and up to which "do not"
HALF = 0.5  # share of the atoms' path below which the words warn
MEMORY = "The networks were trained on a crystal of this composition, so their probability is a memory, no prediction."
TITLES = ("Class activation", "Integrated gradients")


class ActivationChecks(BaseModel):
    """What stands for and against a map over atoms."""

    model_config = ConfigDict(frozen=True)

    kinds: int = Field(description="Kinds of sites: atoms that the symmetry turns into each other are one")
    agreement: float | None = Field(description="Rank correlation of class activation and integrated gradients")
    same_sign: float = Field(description="Share of the atoms to which both give the same sign")
    random_weights: float | None = Field(description="Mean rank correlation with networks of random weights, -1 to 1")
    random_weights_each: tuple[float, ...] = Field(description="The same, of each of them")
    networks_agreement: float | None = Field(description="Mean rank correlation between the networks of the ensemble")
    gradients_sum: float = Field(description="Integrated gradients, summed over the atoms")
    gradients_difference: float = Field(
        description="The networks' logit minus that with the elements hidden: what it must be"
    )
    contributions: dict[str, float] = Field(
        description="What each way into the networks' head adds to their mean training logit"
    )
    atoms_share: float | None = Field(description="Share of the atoms' path in the sizes of these, 0 to 1")


@dataclass(frozen=True, eq=False)
class Sample:
    """One crystal to explain."""

    name: str
    structure: Structure
    trained_on: bool


def find_crystal(workspace: Workspace, name: str) -> Sample:
    """A crystal in a file (CIF, POSCAR, JSON) or an ordered crystal of the workspace, by its id.

    Raises
    ------
    InputError
        If there is neither, or the file cannot be read.
    """
    columns = ["material_id", "formula", "tc_kelvin"]
    table = workspace.read_table(ORDERED, [*columns, "structure"]) if workspace.exists(ORDERED) else None
    measured = set(table.filter(pc.is_valid(table["tc_kelvin"]))["formula"].to_pylist()) if table else set()
    if Path(name).is_file():
        structure = read_structure(name)
        if not structure.is_ordered:
            raise InputError(
                f"{name}: {structure.formula} has sites of partial occupancy; give an ordered cell of it, or the id of "
                f"an ordered crystal of {workspace.url}"
            )
        return Sample(Path(name).stem, structure, structure.composition.reduced_formula in measured)
    rows = table.filter(pc.equal(table["material_id"], pa.scalar(name))).to_pylist() if table else []
    if not rows:
        same = table.filter(pc.equal(table["formula"], pa.scalar(name)))["material_id"].to_pylist() if table else []
        hint = f"; crystals with this formula: {', '.join(same)}" if same else ""
        raise InputError(
            f"{name!r} is neither a CIF, POSCAR or JSON file nor an ordered crystal of {workspace.url}{hint}"
        )
    structure = Structure.from_str(rows[0]["structure"], fmt="json")
    return Sample(name, structure, name in read_held_out(workspace, NAME).trained)


def reference_structures(workspace: Workspace, count: int = REFERENCES) -> list[Structure]:
    """At most ``count`` of the crystals with a measurement, evenly through the order of their ids."""
    table = workspace.read_table(ORDERED, ["material_id", "tc_kelvin", "structure"]).sort_by("material_id")
    texts = table.filter(pc.is_valid(table["tc_kelvin"]))["structure"].to_pylist()
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(int))
    return [Structure.from_str(texts[place], fmt="json") for place in chosen]


def explain(s2snet: S2SEnsemble, sample: Sample, references: Sequence[Parts], seeds: int = SEEDS) -> Explanation:
    """Everything about which atoms S2SNet's answer hangs on in one crystal.

    Parameters
    ----------
    references
        As ``S2SEnsemble.references`` gives them.

    Raises
    ------
    ModelInputError
        If the network cannot take the crystal.
    """
    structure = sample.structure
    weights = s2snet.atom_weights(structure)
    attribution = s2snet.attribute(structure)
    random = s2snet.random_atom_weights(structure, seeds)
    kinds = equivalent_sites(structure)
    contributions = s2snet.path_contributions(structure, references)
    each = [value for other in random if (value := map_correlation(weights, other)) is not None]
    members = [np.round(one, 4) for one in s2snet.atom_weights_each(structure)]
    enough = len(set(kinds)) > 2
    checks = ActivationChecks(
        kinds=len(set(kinds)),
        agreement=_rounded(map_correlation(weights, attribution.atoms)),
        same_sign=round(float(np.mean(np.sign(weights) == np.sign(attribution.atoms))), 4),
        random_weights=_rounded(float(np.mean(each)) if each else None),
        random_weights_each=tuple(round(value, 4) for value in each),
        networks_agreement=_rounded(mean_agreement(members)) if enough else None,
        gradients_sum=round(float(attribution.atoms.sum()), 4) + 0.0,
        gradients_difference=round(attribution.difference, 4) + 0.0,
        contributions={name: round(value, 4) + 0.0 for name, value in contributions.items()},
        atoms_share=_rounded(path_share(contributions)),
    )
    prediction = s2snet.predict([structure])
    names = ("probability", "probability_low", "probability_high")
    numbers = {
        "material_id": sample.name,
        "formula": structure.composition.reduced_formula,
        "sites": len(structure),
        "s2snet_version": s2snet.version,
        **{name: round_significant(float(getattr(prediction, name)[0])) for name in names},
        "trained_on": sample.trained_on,
        "trees_share": round(s2snet.trees_share, 4),
        **checks.model_dump(mode="json"),
    }
    trees = s2snet.tree_contributions(structure)
    of_trees = [] if trees is None else tree_table(trees)
    words = [describe_share(s2snet.trees_share)] if s2snet.trees else []
    words += [describe_trees(of_trees)] if of_trees else []
    words += describe_checks(checks) + ([MEMORY] if sample.trained_on else [])
    table = site_table(structure, kinds, weights, attribution.atoms, random)
    largest = np.abs(attribution.atoms).max()
    scaled = attribution.atoms / largest if largest > 0 else np.zeros_like(attribution.atoms)
    maps = dict(zip(TITLES, (weights, scaled), strict=True))
    still = still_figure(structure, maps, _title(numbers))
    files = {
        "crystal.html": crystal_page(structure, maps, _facts(numbers), words, kind_rows(table), shown_rows(of_trees)),
        "crystal.svg": figure_bytes(still),
        "crystal.png": figure_bytes(still, "png", dpi=160),
        "numbers.json": (json.dumps(numbers | {"words": words}, indent=1, ensure_ascii=False) + "\n").encode(),
        "atoms.parquet": _as_parquet(table),
    }
    if trees is not None:
        bars = tree_figure(of_trees, trees.expected, s2snet.trees_share, numbers["formula"])
        files["trees.svg"] = figure_bytes(bars)
        files["trees.png"] = figure_bytes(bars, "png", dpi=160)
        files["trees.parquet"] = _as_parquet(of_trees)
    return Explanation(numbers, words, files)


def explain_crystals(
    workspace: Workspace, names: Sequence[str], folder: str | None = None
) -> tuple[list[Explanation], list[str], list[Rejection]]:
    """Explain crystals by the latest S2SNet; gives the explanations, the files' places, and what was refused.

    Each crystal has a folder of its own in ``folder``, by default ``explain/s2snet`` of the workspace, with
    ``crystals.parquet`` and plotly beside.

    Raises
    ------
    InputError
        If no crystal can be explained.
    MissingStageError
        If no S2SNet is trained, or the crystals that it was trained on are gone.
    """
    s2snet = load_s2snet(workspace)
    references = s2snet.references(reference_structures(workspace))
    found, rejected = [], []
    for name in dict.fromkeys(names):
        try:
            found.append(explain(s2snet, find_crystal(workspace, name), references))
        except MeissnerError as error:
            if len(names) == 1:
                raise
            rejected.append(Rejection(name, str(error)))
    if not found:
        raise InputError(f"None of the {len(rejected)} crystals can be explained; {rejected[0].reason}")
    place = Workspace(folder or workspace.path(FOLDER))
    place.write_bytes(PLOTLY, get_plotlyjs().encode())
    place.write_bytes(TABLE, _as_parquet([_flat(one.numbers) for one in found]))
    files = [place.path(PLOTLY), place.path(TABLE)]
    for one in found:
        files += one.write(place, safe_name(one.numbers["material_id"]))
    return found, files, rejected


def describe_checks(checks: ActivationChecks) -> list[str]:
    """What the checks mean, a sentence each."""
    said = []
    if checks.atoms_share is not None:
        ways = ", ".join(f"{name} {value:+.2f}" for name, value in checks.contributions.items())
        meaning = (
            "most of their answer does not pass through the atoms, so the picture explains the smaller part of it"
            if checks.atoms_share < HALF
            else "the picture speaks of this part only"
        )
        said.append(
            f"Compared with training crystals, the ways into the networks' head add to their logit: {ways}. The "
            f"atoms' path carries {100 * checks.atoms_share:.0f} per cent: {meaning}."
        )
    signs = f"both give the same sign to {100 * checks.same_sign:.0f} per cent of the atoms"
    if checks.agreement is None:
        few = f"With {checks.kinds} kind{'s' if checks.kinds > 1 else ''} of sites a rank correlation says nothing"
        return [*said, f"{few}; class activation and integrated gradients: {signs}."]
    meaning = (
        "the two methods agree"
        if checks.agreement >= HIGH
        else "they agree in part"
        if checks.agreement > LOW
        else "they do not agree, so neither picture can be trusted alone"
    )
    said.append(
        f"Class activation and integrated gradients have a rank correlation of {checks.agreement:.2f}, and {signs}: "
        f"{meaning}."
    )
    if checks.random_weights is not None:
        alike = abs(checks.random_weights) >= HIGH
        meaning = (
            "so architecture and elements alone give nearly this picture"
            if alike
            else "so it does not come from architecture and elements alone; that it is right is not shown by this"
        )
        said.append(
            f"With networks of random weights it is {checks.random_weights:.2f} on average (of "
            f"{len(checks.random_weights_each)}), {meaning}."
        )
    if checks.networks_agreement is not None:
        value = checks.networks_agreement
        meaning = (
            "they see the same atoms"
            if value >= HIGH
            else "they agree in part"
            if value > LOW
            else "they see different atoms, so the picture hangs on each training's random start"
        )
        said.append(f"Between the trained networks it is {value:.2f}: {meaning}.")
    return said


def equivalent_sites(structure: Structure) -> list[int]:
    """For each site, the number of the first site that symmetry turns into it; its own where none is found."""
    try:
        found = SpacegroupAnalyzer(structure, SYMPREC).get_symmetry_dataset()
        return [int(number) for number in found.equivalent_atoms]
    except (ValueError, TypeError, AttributeError):  # spglib finds no symmetry
        return list(range(len(structure)))


def site_table(
    structure: Structure, kinds: Sequence[int], weights: NDArray, gradients: NDArray, random: NDArray
) -> list[dict[str, Any]]:
    """A row a site: element, place, kind, class activation, integrated gradients, mean of the random networks."""
    return [
        {
            "site": number + 1,
            "element": site.specie.symbol,
            **{axis: round(float(value), 6) for axis, value in zip("abc", site.frac_coords, strict=True)},
            "kind": kinds[number] + 1,
            "activation": round(float(weights[number]), 4) + 0.0,
            "gradients": round(float(gradients[number]), 5) + 0.0,
            "activation_random": round(float(random[:, number].mean()), 4) + 0.0,
        }
        for number, site in enumerate(structure)
    ]


def kind_rows(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ``site_table`` of one of each kind of sites, with how many there are, as a page shows them."""
    kinds = [row["kind"] for row in table]
    return [
        {
            "site": row["site"],
            "element": row["element"],
            "atoms in the cell": kinds.count(row["kind"]),
            "class activation": f"{row['activation']:.3f}",
            "integrated gradients (logit)": f"{row['gradients']:.3f}",
            "random weights, mean": f"{row['activation_random']:.3f}",
        }
        for place, row in enumerate(table)
        if row["kind"] not in kinds[:place]
    ]


def _title(numbers: dict[str, Any]) -> str:
    """What a picture of the atoms says of the answer, and what its colours are not."""
    title = f"S2SNet: {unicodeify(numbers['formula'])}, P = {numbers['probability']:.2f}"
    if not numbers["trees_share"]:
        return title
    return f"{title}; the trees have {100 * numbers['trees_share']:.0f} % of the say; colours: the networks alone"


def _facts(numbers: dict[str, Any]) -> dict[str, str]:
    interval = f"{numbers['probability_low']:.2f} to {numbers['probability_high']:.2f}"
    return {
        "probability of superconductivity": f"{numbers['probability']:.2f} (members of the ensemble: {interval})",
        "share of the trees in its logit": f"{numbers['trees_share']:.0%}",
        "sum of integrated gradients": f"{numbers['gradients_sum']:.3f}, must be {numbers['gradients_difference']:.3f}",
        "S2SNet": numbers["s2snet_version"],
    }


def _flat(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a crystal as a row of a table."""
    kept = {name: value for name, value in numbers.items() if name not in {"contributions", "random_weights_each"}}
    return kept | {f"contribution_{name}": value for name, value in numbers["contributions"].items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4) + 0.0


def _as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue())
