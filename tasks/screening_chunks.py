"""One chunk of materials by both networks: predicted in batches, judged for trust, and written as a part.

Numbers are rounded, so that a part is the same to the last byte however often the work was interrupted.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from pymatgen.core import Structure

from models.applicability import TrainingDistance
from models.augmentation import IMAGES
from models.crystals import CrystalGraph
from models.exceptions import MeissnerError
from tasks.bnas_ensemble import BnasEnsemble, load_bnas
from tasks.crystal_facts import Facts, read_crystal_facts
from tasks.held_out import HeldOut, read_held_out
from tasks.known import Known, KnownSuperconductors, element_amounts, find_hazards
from tasks.prediction import Predictor, networks_agree, round_significant
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.schemas import CANDIDATES
from tasks.screening_materials import Material, read_materials
from tasks.screening_plan import Chunk, choose_version
from tasks.settings import GridSettings, ScreeningSettings
from tasks.stages import Rejection, rejected_table
from tasks.workspace import Workspace

STAGE = "screen"
BATCH = 32  # materials given to the networks at once: 2.4 MB each, and a few times that inside BNAS
TC_COLUMNS = ("tc_kelvin", "tc_low_kelvin", "tc_high_kelvin", "tc_image_spread_kelvin")
S2SNET_COLUMNS = {name: name for name in ("probability", "probability_low", "probability_high")}
S2SNET_COLUMNS["s2snet_tc_kelvin"] = "tc_kelvin"  # the column, and the field of S2SNet's answer
TOLD = ("material_id", "formula", "space_group", "band_gap_ev", "structure", "energy_above_hull_ev", "theoretical")


@dataclass(frozen=True, eq=False)
class Asked:
    """What all materials are asked and measured by, read once a process."""

    bnas: BnasEnsemble
    s2snet: S2SEnsemble
    known: KnownSuperconductors
    distance: TrainingDistance
    facts: Facts
    held_out: Mapping[str, HeldOut]

    def origin(self, network: str, facts: Mapping[str, Any], own: bool) -> str:
        """How a prediction for a material of the workspace itself, or of another source, comes about."""
        return self.held_out[network].origin(facts["material_id"], None if own else facts["formula"])


def open_networks(home: Workspace, settings: ScreeningSettings) -> Asked:
    """Load what screening asks.

    Raises
    ------
    MissingStageError, InputError
        If a network or its version is not there.
    CheckpointError
        If weights are damaged or belong to another architecture.
    """
    versions = {name: choose_version(home, name, getattr(settings, f"{name}_version")) for name in ("bnas", "s2snet")}
    predictor = Predictor(home)
    return Asked(
        bnas=load_bnas(home, versions["bnas"], settings.coverage),
        s2snet=load_s2snet(home, versions["s2snet"]),
        known=predictor.known,
        distance=predictor.distance,
        facts=read_crystal_facts(home),
        held_out={name: read_held_out(home, name, version) for name, version in versions.items()},
    )


def forget_networks() -> None:
    """Give the memory of the networks back."""
    _networks_once.cache_clear()


@lru_cache(maxsize=1)
def _networks_once(url: str, settings: ScreeningSettings, _context: str) -> Asked:
    return open_networks(Workspace(url), settings)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A material, with what can be said before a network is asked."""

    material: Material
    graph: CrystalGraph
    row: dict[str, Any]
    own: bool

    @cached_property
    def name(self) -> str:
        return str(self.row["material_id"])


def screen_materials(
    home: Workspace,
    chunk: Chunk,
    settings: ScreeningSettings,
    place: Workspace | None = None,
    grid: GridSettings = GridSettings(),
    last: bool = False,
) -> tuple[pa.Table, list[Rejection]]:
    """Predict and judge the materials of a chunk.

    Parameters
    ----------
    home
        The workspace with the networks.
    place
        Where the grids are, by default ``home``.
    grid
        How bands that are not on a grid yet are brought onto one.
    last
        Refuse what a server does not give; otherwise RemoteError is raised.

    Returns
    -------
    Rows of CANDIDATES without a rank, in the chunk's order, and the materials that were refused.
    """
    asked = _networks_once(home.url, settings, chunk.context)
    own = chunk.items[0].kind == "grid"
    rows: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    found = read_materials(place or home, chunk, grid, asked.facts, last)
    usable = _usable(found, asked, own, rejected)
    while batch := list(itertools.islice(usable, BATCH)):
        for row in _ask(batch, asked, chunk.images):
            if row["tc_kelvin"] is None or row["probability"] is None:
                reason = f"A network answers {row['material_id']} with a number that is not finite"
                rejected.append(Rejection(row["material_id"], reason))
            else:
                rows.append(_judge(row, settings))
    nearest = asked.known.nearest([element_amounts(row["formula"]) for row in rows])
    for row, (position,) in zip(rows, nearest, strict=True):
        row["nearest_formula"] = asked.known.formulas[position]
    return pa.Table.from_pylist(rows, schema=CANDIDATES), rejected


def screen_to_part(
    home: Workspace,
    chunk: Chunk,
    settings: ScreeningSettings,
    place: Workspace | None = None,
    grid: GridSettings = GridSettings(),
    last: bool = False,
) -> int:
    """Screen a chunk on one thread and write its part, the rows last; gives the number of refused materials."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    started = time.perf_counter()
    place = place or home
    with threadpool_limits(1):
        table, rejected = screen_materials(home, chunk, settings, place, grid, last)
    passing = any(rejection.retryable for rejection in rejected)
    if passing:
        place.write_bytes(chunk.again, b"")
    place.write_table(chunk.rejected, rejected_table(STAGE, rejected))
    place.write_json(chunk.timing, {"seconds": round(time.perf_counter() - started, 2)})
    place.write_table(chunk.result, table)
    if not passing:
        place.remove(chunk.again)
    return len(rejected)


def _usable(
    found: Iterable[Material | Rejection], asked: Asked, own: bool, rejected: list[Rejection]
) -> Iterable[_Candidate]:
    """Those that the networks can take; the others go to ``rejected``."""
    for one in found:
        if isinstance(one, Rejection):
            rejected.append(one)
            continue
        try:
            graph = asked.s2snet.graph(Structure.from_str(one.facts["structure"], fmt="json"))
            yield _Candidate(one, graph, _identify(one.facts, asked), own)
        except MeissnerError as error:
            rejected.append(Rejection(one.facts["material_id"], str(error)))


def _identify(facts: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """What is known of a material before a network is asked."""
    amounts = element_amounts(facts["formula"])
    known = asked.known.find(amounts)
    if known.match == "none" and facts.get("tc_kelvin") is not None:  # its label came through an ordered, doped cell
        known = Known("doped", facts.get("supercon_formula") or facts["formula"], facts["tc_kelvin"])
    return {
        **{name: facts.get(name) for name in TOLD},
        "hazards": find_hazards(list(amounts)),
        "known": known.match,
        "known_formula": known.formula,
        "known_tc_kelvin": known.tc_kelvin,
        "distance": float(asked.distance([amounts])[0]),
    }


def _ask(batch: Sequence[_Candidate], asked: Asked, images: int) -> list[dict[str, Any]]:
    """Both networks' answers for a few materials, rounded; None where there is no finite number."""
    rows = [one.row for one in batch]
    for answers in (_ask_bnas(batch, asked, images), _ask_s2snet(batch, asked)):
        rows = [row | answer for row, answer in zip(rows, answers, strict=True)]
    return [
        {name: round_significant(value) if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]


def _ask_bnas(batch: Sequence[_Candidate], asked: Asked, images: int) -> list[dict[str, Any]]:
    """Tc of each material: held out where it was trained on, so that no memory is shown as a prediction."""
    held_out = asked.held_out["bnas"]
    origins = [asked.origin("bnas", one.row, one.own) for one in batch]
    places = [place for place, origin in enumerate(origins) if origin != "out-of-fold"]
    prediction = None
    if places:
        grids = np.stack([batch[place].material.grid for place in places])
        formulas = [str(batch[place].row["formula"]) for place in places]
        prediction = asked.bnas.predict(grids, images=images, formulas=formulas)
    answers = []
    for place, (one, origin) in enumerate(zip(batch, origins, strict=True)):
        answer: dict[str, Any] = dict.fromkeys((*TC_COLUMNS, "images"))
        if origin == "out-of-fold":
            answer["tc_kelvin"] = held_out.values[one.name]
        else:
            row = places.index(place)
            answer |= {column: float(getattr(prediction, column)[row]) for column in TC_COLUMNS} | {"images": images}
            if images < IMAGES:
                answer["tc_image_spread_kelvin"] = None
        answers.append(answer | {"tc_origin": origin, "bnas_version": asked.bnas.version})
    return answers


def _ask_s2snet(batch: Sequence[_Candidate], asked: Asked) -> list[dict[str, Any]]:
    """Probability and Tc of each material, held out where it was trained on."""
    held_out = asked.held_out["s2snet"]
    origins = [asked.origin("s2snet", one.row, one.own) for one in batch]
    places = [place for place, origin in enumerate(origins) if origin != "out-of-fold"]
    prediction = asked.s2snet.predict_graphs([batch[place].graph for place in places]) if places else None
    answers = []
    for place, (one, origin) in enumerate(zip(batch, origins, strict=True)):
        answer: dict[str, Any] = dict.fromkeys(S2SNET_COLUMNS)
        if origin == "out-of-fold":
            answer["probability"] = held_out.values[one.name]
            answer["s2snet_tc_kelvin"] = held_out.tc_kelvin.get(one.name)
        else:
            row = places.index(place)
            answer = {column: float(getattr(prediction, name)[row]) for column, name in S2SNET_COLUMNS.items()}
        answers.append(answer | {"probability_origin": origin, "s2snet_version": asked.s2snet.version})
    return answers


def _judge(row: dict[str, Any], settings: ScreeningSettings) -> dict[str, Any]:
    """Add what follows from both answers."""
    return row | {
        "agree": networks_agree(row["tc_kelvin"], row["probability"]),
        "abstain": row["distance"] > settings.max_distance,
        "score": round_significant(row["probability"] * row["tc_kelvin"]),
    }
