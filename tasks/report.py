"""The report: one page that needs no network, with honest scores first, and the files that go with it.

``report/index.html`` holds plotly once and all figures; ``candidates.csv`` all rows, ``candidates.parquet`` with their
crystals; ``structures/`` the crystals of the first candidates; ``provenance.json`` the way from source to number of
each of them; ``figures/`` the densities of states by Tc, drawn and as numbers.
"""

import base64
import gzip
import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jinja2 import Environment, StrictUndefined
from prefect import task
from pymatgen.core import Structure

from tasks.attention import check_attention
from tasks.bands import read_bands
from tasks.bnas_ensemble import load_bnas
from tasks.densities import MeanDensities, densities_table
from tasks.figures import figure_bytes
from tasks.progress import Advance, leave_summary, silent, stage_progress
from tasks.report_data import Provenance, label_noise, read_refusals, read_scores, read_stages, trained_labels
from tasks.report_panels import PanelInputs, make_panel
from tasks.report_papers import papers_section
from tasks.report_sections import (
    COLUMNS,
    LIMITS,
    candidate_row,
    chemistry_section,
    draw_densities,
    facts,
    report_densities,
    score_section,
    stage_row,
)
from tasks.report_time_machine import time_machine_section
from tasks.s2snet_ensemble import load_s2snet
from tasks.screening import RESULT, summarise
from tasks.screening_kept import read_source_rows
from tasks.settings import ReportSettings
from tasks.shards import read_grids
from tasks.stages import StageOutcome, StageReport, hash_text, run_stage
from tasks.workspace import Workspace

CODE_VERSION = 4
STAGE = "report"
FOLDER = "report"
PAGE = f"{FOLDER}/index.html"
DENSITIES = f"{FOLDER}/figures/dos_by_tc"  # .svg and .parquet
INDEX = "grids/index.parquet"
SUPERCONDUCTORS = "supercon/superconductors.parquet"
MAX_ROWS = 3000  # rows of the page's table, some kilobytes each; all are in the files beside it
PAGE_ROWS = 200  # of them shown at once: a browser lays out thousands only with a pause
BAND_COLUMNS = (
    "material_id",
    "sites",
    "grid",
    "dos_energies",
    "dos_s",
    "dos_p",
    "dos_d",
    "bands_hash",
    "engine",
    "engine_version",
    "engine_settings",
    "seconds",
)


def build_report(workspace: Workspace, settings: ReportSettings, advance: Advance = silent) -> dict[str, bytes]:
    """Make every file of the report, by its name in the workspace; ``advance`` counts the panels.

    Raises
    ------
    MissingStageError
        If nothing was screened yet.
    """
    candidates = workspace.read_table(RESULT)
    bands = read_bands(workspace, list(BAND_COLUMNS))
    index = workspace.read_table(INDEX)
    measured = workspace.read_table(SUPERCONDUCTORS)
    top = candidates.filter(pc.is_valid(candidates["rank"])).slice(0, settings.top).to_pylist()
    provenance = Provenance(workspace, bands, index, read_source_rows(workspace))
    panels = _make_panels(workspace, top, provenance, bands, measured, advance)
    densities = report_densities(bands, index, candidates)
    general = _general_context(workspace, candidates, densities, index, measured)
    page = render_page(general | {"panels": panels, **_table(candidates, top)})
    return {
        PAGE: page.encode(),
        **_density_files(densities),
        f"{FOLDER}/candidates.csv": _as_csv(candidates),
        f"{FOLDER}/candidates.parquet": _as_parquet(candidates),
        f"{FOLDER}/provenance.json": json.dumps(
            {panel["row"]["material_id"]: panel["provenance"] for panel in panels}, indent=1, default=str
        ).encode(),
        **{f"{FOLDER}/structures/{panel['file_name']}.cif": panel["cif"].encode() for panel in panels},
    }


def render_page(context: dict[str, Any]) -> str:
    """The page from its template; every text is escaped, and the page holds its style, scripts and figures."""
    templates = files("tasks") / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    from plotly.offline import get_plotlyjs

    return environment.from_string((templates / "report.html").read_text("utf-8")).render(
        **context,
        style=(templates / "report.css").read_text("utf-8"),
        script=(templates / "report.js").read_text("utf-8"),
        plotly=_packed(get_plotlyjs()) if context["panels"] else "",
    )


def _packed(text: str) -> str:
    """Gzipped and in base64, which browsers unpack themselves; the same bytes each time."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def report_inputs(workspace: Workspace) -> list[str]:
    """What the page depends on: the candidates, and the keys of all stages before it."""
    stages = [f"{stage.stage} {stage.key} {stage.finished.isoformat()}" for stage in read_stages(workspace)]
    templates = [file.read_text("utf-8") for file in sorted((files("tasks") / "templates").iterdir(), key=str)]
    return [workspace.fingerprint(RESULT), hash_text(*stages), hash_text(*templates)]


def _make_panels(
    workspace: Workspace,
    top: list[dict[str, Any]],
    provenance: Provenance,
    bands: pa.Table,
    measured: pa.Table,
    advance: Advance,
) -> list[dict[str, Any]]:
    """Panels of the first candidates, by the networks that made their numbers."""
    if not top:
        return []
    stored = set(workspace.read_table(INDEX, ["material_id"])["material_id"].to_pylist())
    index, grids = read_grids(workspace, [row["material_id"] for row in top if row["material_id"] in stored])
    names, bnas = index["material_id"].to_pylist(), load_bnas(workspace, top[0]["bnas_version"])
    crystals = {row["material_id"]: Structure.from_str(row["structure"], fmt="json") for row in top}
    checks = check_attention(bnas, grids, [crystals[name] for name in names])
    inputs = PanelInputs(
        bands={row["material_id"]: row for row in bands.to_pylist()},
        grids=dict(zip(names, grids, strict=True)),
        bnas=bnas,
        s2snet=load_s2snet(workspace, top[0]["s2snet_version"]),
        measured=measured,
        provenance=provenance,
        versions=_versions(),
        attention=dict(zip(names, checks, strict=True)),
    )
    panels = []
    for row in top:
        panels.append({"row": candidate_row(row, has_panel=True), **make_panel(row, inputs)})
        advance(1)
    return panels


def _general_context(
    workspace: Workspace,
    candidates: pa.Table,
    densities: Mapping[str, MeanDensities],
    index: pa.Table,
    measured: pa.Table,
) -> dict[str, Any]:
    """What the page says about the whole run."""
    stages = read_stages(workspace)
    networks = [scores for name in ("bnas", "s2snet") if (scores := read_scores(workspace, name))]
    screened = next((stage.settings for stage in stages if stage.stage == "screen"), {})
    summary = summarise(candidates)
    labels = [tc for tc in index["tc_kelvin"].to_pylist() if tc is not None] or trained_labels(networks)
    return {
        "versions": _versions(),
        "summary": summary,
        "tiles": [
            (summary["ranked"], "new candidates"),
            (summary["both_say_superconductor"], "superconductors to both networks"),
            (summary["above_2_kelvin"], "above 2 K"),
            (summary["above_10_kelvin"], "above 10 K"),
            (summary["known"], "already measured"),
            (summary["abstained"], "too far to judge"),
            (len(labels), "materials trained on"),
        ],
        "time_machine": time_machine_section(workspace),
        "papers": papers_section(workspace, candidates),
        "networks": [score_section(network) for network in networks],
        "noise": label_noise(measured, labels),
        "chemistry": chemistry_section(candidates, measured, densities),
        "stages": [stage_row(stage) for stage in stages],
        "refusals": read_refusals(workspace, stages),
        "facts": facts(networks, stages, workspace.url),
        "limits": LIMITS,
        "max_distance": screened.get("max_distance", 1.0),
        "coverage": f"{100 * screened.get('coverage', 0.9):.0f}",
    }


def _table(candidates: pa.Table, top: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidate table, cut where it would be too long for a page."""
    shown = {row["material_id"] for row in top}
    rows = candidates.slice(0, MAX_ROWS).drop_columns(["structure"]).to_pylist()
    return {
        "columns": COLUMNS,
        "rows": [candidate_row(row, row["material_id"] in shown) for row in rows],
        "page_rows": PAGE_ROWS,
        "omitted": max(0, len(candidates) - MAX_ROWS),
    }


def _density_files(densities: Mapping[str, MeanDensities]) -> dict[str, bytes]:
    """The figure of densities of states by Tc and its numbers; nothing where no material has densities."""
    if not densities:
        return {}
    return {
        f"{DENSITIES}.svg": figure_bytes(draw_densities(densities)),
        f"{DENSITIES}.parquet": _as_parquet(densities_table(densities)),
    }


def _as_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _as_csv(candidates: pa.Table) -> bytes:
    """All rows without structures; hazards joined by semicolons."""
    hazards = pa.array(["; ".join(found or ()) for found in candidates["hazards"].to_pylist()], pa.string())
    flat = candidates.drop_columns(["structure"])
    flat = flat.set_column(flat.column_names.index("hazards"), "hazards", hazards)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(flat, buffer)
    return buffer.getvalue()


def _versions() -> dict[str, str]:
    return {"meissner": version("meissner")}


@task(name="write-report", task_run_name="write-report")
def write_report(workspace: str, settings: ReportSettings) -> StageReport:
    """Write the report unless it is there for the same candidates, scores and settings."""
    store = Workspace(workspace)

    def compute() -> StageOutcome:
        candidates = store.read_table(RESULT, ["rank"])
        panels = min(settings.top, len(candidates) - candidates["rank"].null_count)
        with stage_progress(STAGE, panels) as advance:
            made = build_report(store, settings, advance)
        for name, content in made.items():
            store.write_bytes(name, content)
        for old in {*store.list(f"{FOLDER}/structures/*.cif"), *store.list(f"{DENSITIES}.*")} - set(made):
            store.remove(old)
        counts = {"panels": panels, "page_megabytes": round(len(made[PAGE]) / 1e6, 2)}
        return StageOutcome(len(candidates), len(candidates), counts=counts, files=list(made))

    report = run_stage(store, STAGE, compute, code_version=CODE_VERSION, inputs=report_inputs(store), settings=settings)
    return leave_summary(store, report)
