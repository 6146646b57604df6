"""What is screened, in which chunks: grids that stand in a workspace, rows of a table, or bands in files.

A chunk is named by a hash of everything that its answers depend on: code, networks, labels, limits, and the content of
each material. So a part that is there is never made again, and a change reaches every part that hangs on it.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from models.augmentation import IMAGES
from tasks.band_sources import BandItem, list_bands
from tasks.crystal_facts import hash_facts, read_crystal_facts
from tasks.exceptions import InputError
from tasks.formulas import SYMBOLS
from tasks.model_store import chosen_version, model_folder
from tasks.mp_grids import as_tables, list_rows, share_out
from tasks.prediction import INDEX, SUPERCONDUCTORS
from tasks.settings import MpBandSettings, ScreeningSettings
from tasks.sources import read_bytes
from tasks.stages import Rejection, hash_text
from tasks.workspace import Workspace

CODE_VERSION = 3
IMAGES_SHARE = 8  # a chunk that is asked about in all images has so many times fewer materials
PARTS = "candidates/parts"
PLAN = "candidates/plan.json"  # the parts that the newest finished screening was made of


class Chunk(BaseModel):
    """Materials that are screened together, and the name of the part that holds the answer.

    ``images`` says how many of the 24 images BNAS is asked about, ``context`` is the hash of what all materials share,
    and ``table`` and ``listed`` name the table that rows come from, and when it was listed.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    items: tuple[BandItem, ...]
    images: int
    context: str
    table: str = ""
    listed: str = ""

    @property
    def material_ids(self) -> tuple[str, ...]:
        """Names of the materials."""
        return tuple(item.material_id for item in self.items)

    @property
    def result(self) -> str:
        """The part's rows of CANDIDATES; written last, so that its presence says that the chunk is done."""
        return f"{PARTS}/{self.part}.parquet"

    @property
    def rejected(self) -> str:
        """What the chunk refused."""
        return f"{PARTS}/{self.part}-rejected.parquet"

    @property
    def timing(self) -> str:
        """How long it took."""
        return f"{PARTS}/{self.part}.json"

    @property
    def again(self) -> str:
        """There where something was refused that may pass another time: the chunk is not done for good."""
        return f"{PARTS}/{self.part}.again"


class Plan(BaseModel):
    """What is to be screened and what is not: a gap that is too large, what cannot be had, or not asked for."""

    model_config = ConfigDict(frozen=True)

    chunks: tuple[Chunk, ...]
    excluded: tuple[Rejection, ...] = ()
    refused: tuple[Rejection, ...] = ()
    not_asked: int = 0

    @property
    def materials(self) -> int:
        """Materials in the chunks."""
        return sum(len(chunk.items) for chunk in self.chunks)


def plan_screening(
    home: Workspace, settings: ScreeningSettings, place: Workspace | None = None, sources: Sequence[str] = ()
) -> Plan:
    """Choose the materials and cut them into chunks.

    Parameters
    ----------
    home
        The workspace with the networks and what is measured.
    place
        Where the grids are and the answers go; by default ``home``.
    sources
        Sources of bands: files, folders, or tables as ``mp:PLACE``; without any, the grids of ``place``, in the order
        of their ids.

    Returns
    -------
    Materials with a larger gap than ``max_gap_ev`` are excluded with that reason; those without one of ``elements``,
    those that ``ids`` does not name and those beyond ``limit`` are only counted.

    Raises
    ------
    InputError
        If nothing is left, and for versions of networks, elements, ids and sources that cannot be used.
    RemoteError
        If a server does not answer.
    """
    context = hash_context(home, settings)
    if unknown := [symbol for symbol in settings.elements if symbol not in SYMBOLS]:
        raise InputError(f"Elements {unknown} of screening.elements are no chemical symbols; they are like Nb,Ti")
    if not sources:
        return _plan_grids(place or home, settings, context)
    files, tables = as_tables(sources)
    if files and (settings.elements or settings.ids or settings.since):
        raise InputError(
            f"screening.elements, ids and since choose rows of a table or grids, and {', '.join(files)} is neither; "
            "make the grids first (--keep-grids)"
        )
    chunks: list[Chunk] = []
    refused: list[Rejection] = []
    left = settings.limit
    if files:
        items = [item for source in files for item in list_bands(source)][:left]
        chunks += cut(items, settings, context, _images(len(items), settings))
        left = None if left is None else left - len(items)
    for table in tables if left is None or left > 0 else ():
        items, lost = list_rows(table, _choice(settings, left), settings.elements)
        listed = datetime.now(UTC).isoformat()
        chunks += cut(items, settings, context, _images(len(items), settings), table, listed)
        refused += lost
        left = None if left is None else left - len(items)
    if not chunks:
        why = f"; {refused[0].reason}" if refused else ""
        raise InputError(f"No material to screen in {', '.join(sources)} with these choices{why}")
    return Plan(chunks=tuple(chunks), refused=tuple(refused))


def plan_best(plan: Plan, names: Iterable[str], settings: ScreeningSettings) -> tuple[Chunk, ...]:
    """The chunks of some materials of a plan again, to be asked about in all images, in the same order."""
    wanted = set(names)
    found: dict[tuple[str, str, str], list[BandItem]] = {}
    for chunk in plan.chunks:
        some = [item for item in chunk.items if item.material_id in wanted]
        if some and chunk.images < IMAGES:
            found.setdefault((chunk.table, chunk.listed, chunk.context), []).extend(some)
    return tuple(
        chunk
        for (table, listed, context), items in found.items()
        for chunk in cut(items, settings, context, IMAGES, table, listed)
    )


def hash_context(home: Workspace, settings: ScreeningSettings) -> str:
    """What every material's answer depends on: code, networks, what is measured, the training set, the limits."""
    return hash_text(
        str(CODE_VERSION),
        choose_version(home, "bnas", settings.bnas_version),
        choose_version(home, "s2snet", settings.s2snet_version),
        home.fingerprint(SUPERCONDUCTORS),
        home.fingerprint(INDEX),
        str(settings.max_distance),
        str(settings.coverage),
        hash_facts(read_crystal_facts(home)),
    )


def choose_version(home: Workspace, name: str, version: str | None) -> str:
    """The version of a network that is named, or the one in use: promoted, or else latest.

    Raises
    ------
    MissingStageError
        If none is trained.
    InputError
        If the workspace has no such version.
    """
    version = version or chosen_version(home, name)
    if not home.exists(f"{model_folder(name, version)}/config.json"):
        there = sorted(found.split("/")[2] for found in home.list(f"models/{name}/*/config.json"))
        raise InputError(
            f"The workspace {home.url} has no {name} of version {version!r}; its versions are {', '.join(there)}"
        )
    return version


def pin_networks(home: Workspace, settings: ScreeningSettings) -> ScreeningSettings:
    """The settings with the versions of both networks named: a promotion meanwhile changes nothing."""
    names = {name: choose_version(home, name, getattr(settings, f"{name}_version")) for name in ("bnas", "s2snet")}
    return settings.model_copy(update={f"{name}_version": version for name, version in names.items()})


def cut(
    items: Sequence[BandItem],
    settings: ScreeningSettings,
    context: str,
    images: int,
    table: str = "",
    listed: str = "",
) -> list[Chunk]:
    """Chunks of materials, for a table by row groups as far as that gives chunks of a good size."""
    size = max(settings.chunk // IMAGES_SHARE, 1) if images == IMAGES else settings.chunk
    shares: list[Sequence[BandItem]]
    shares = (
        [*share_out(items, max(size // 2, 1), size)]
        if table
        else [items[start : start + size] for start in range(0, len(items), size)]
    )
    return [
        Chunk(
            part=hash_text(context, str(images), *(_content(item) for item in share))[:24],
            items=tuple(share),
            images=images,
            context=context,
            table=table,
            listed=listed,
        )
        for share in shares
    ]


def _content(item: BandItem) -> str:
    facts = f"{item.energy_above_hull_ev} {item.theoretical}"
    return f"{item.kind} {item.material_id} {item.content} {facts}"


def _images(materials: int, settings: ScreeningSettings) -> int:
    """Images to ask about at first: all where all materials are among the best."""
    return IMAGES if materials <= settings.best else 1


def _choice(settings: ScreeningSettings, limit: int | None) -> MpBandSettings:
    return MpBandSettings(max_gap_ev=settings.max_gap_ev, ids=settings.ids, limit=limit, since=settings.since)


def _plan_grids(place: Workspace, settings: ScreeningSettings, context: str) -> Plan:
    if settings.since:
        raise InputError("screening.since chooses rows of a table; grids in a workspace do not tell when they changed")
    columns = ["material_id", "band_gap_ev", "sha256", "bands_hash", "chemical_system"]
    rows = place.read_table(INDEX, columns).sort_by("material_id").to_pylist()
    wanted = [row for row in rows if row["band_gap_ev"] <= settings.max_gap_ev]
    elements, names = set(settings.elements), _read_names(settings.ids)
    asked = [row for row in wanted if not elements or elements & set(row["chemical_system"].split("-"))]
    asked = [row for row in asked if names is None or row["material_id"] in names]
    asked = asked[: settings.limit]
    if not asked:
        holding = f" and holds one of {', '.join(settings.elements)}" if elements else ""
        named = f" and is named in {settings.ids}" if names is not None else ""
        raise InputError(
            f"None of the {len(rows)} materials in {INDEX} has a band gap up to {settings.max_gap_ev} eV"
            f"{holding}{named}"
        )
    items = [
        BandItem(material_id=row["material_id"], kind="grid", url="", content=f"{row['sha256']} {row['bands_hash']}")
        for row in asked
    ]
    unknown = sorted((names or set()) - {row["material_id"] for row in rows})
    excluded = [row for row in rows if row["band_gap_ev"] > settings.max_gap_ev]
    return Plan(
        chunks=tuple(cut(items, settings, context, _images(len(items), settings))),
        excluded=tuple(
            Rejection(row["material_id"], f"band gap {row['band_gap_ev']:.3f} eV is above {settings.max_gap_ev} eV")
            for row in excluded
        ),
        refused=tuple(Rejection(name, f"{INDEX} in {place.url} has no grid of {name}") for name in unknown),
        not_asked=len(wanted) - len(asked),
    )


def _read_names(file: str | None) -> set[str] | None:
    """Names in a file, one a line; None without a file."""
    if file is None:
        return None
    lines = read_bytes(file).decode("utf-8", errors="replace").splitlines()
    return {line.strip() for line in lines if line.strip()}


def best_names(table: pa.Table, count: int) -> list[str]:
    """The ``count`` best of the materials that can have a rank, by score, then by id."""
    able = table.filter(pc.and_(pc.equal(table["known"], "none"), pc.invert(table["abstain"])))
    order = [("score", "descending"), ("material_id", "ascending")]
    return list(able.sort_by(order)["material_id"].to_pylist()[:count])
