"""The report: complete, escaped, self-contained, honest about baselines, and working in a real browser."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from pymatgen.core import Structure

from tasks.attention import check_attention, describe_checks
from tasks.bnas_ensemble import load_bnas
from tasks.exceptions import MissingStageError
from tasks.figures import Interval
from tasks.report import PAGE, build_report, write_report
from tasks.report_data import BNAS_METRICS, NOT_TRAINED, NetworkScores, label_noise, read_scores
from tasks.report_panels import NO_BANDS, kelvin_text, pretty_formula
from tasks.schemas import CANDIDATES, SUPERCONDUCTORS
from tasks.screening import RESULT
from tasks.settings import ReportSettings
from tasks.shards import read_grids
from tasks.workspace import Workspace
from tests.browser import BROWSER, DRIVER, open_page, use_page

TOP = 2


@pytest.fixture(scope="module")
def files(screened: Workspace) -> dict[str, bytes]:
    return build_report(screened, ReportSettings(top=TOP))


@pytest.fixture(scope="module")
def page(files: dict[str, bytes]) -> str:
    return files[PAGE].decode()


@pytest.fixture(scope="module")
def text(page: str) -> str:
    """The page without scripts and images."""
    plain = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"data:[^\"]*", "", plain)


@pytest.fixture
def copy(screened: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(screened.local("."), tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def test_the_page_loads_nothing_from_anywhere(page: str, text: str):
    assert "default-src 'none'" in page
    assert not re.search(r"<(?:script|img|iframe|link)[^>]*\s(?:src|href)=[\"'](?!data:|\")", text)
    assert "@import" not in page.split("</style>", maxsplit=1)[0]
    assert "url(" not in page.split("</style>", maxsplit=1)[0]


def test_the_page_is_light(files: dict[str, bytes]):
    assert len(files[PAGE]) < 12e6


def test_every_section_is_there(text: str):
    for section in ("time-machine", "papers", "trust", "candidates", "panels", "chemistry", "run", "limits"):
        assert f'id="{section}"' in text


def test_strings_from_the_data_are_escaped(text: str):
    assert "row 99: &lt;b&gt;Nb3X&lt;/b&gt;" in text
    assert "X is no element &amp; cannot be read" in text
    assert "<b>Nb3X</b>" not in text


def test_each_row_of_the_table_is_a_candidate(text: str, screened: Workspace):
    table = screened.read_table(RESULT)
    assert text.count("<tr data-status=") == len(table)
    assert text.count('data-status="new"') == len(table) - table["rank"].null_count


def test_networks_stand_beside_their_baselines_in_every_split(text: str):
    assert text.count("Folds random by material") == 2
    assert text.count("Folds grouped by chemical system") == 2
    assert text.count('<tr class="own">') == 4
    assert text.count("Magpie, random forest</th>") == 4


def test_numbers_of_trained_materials_are_marked(text: str):
    assert text.count('<span class="held">held out</span>') == 11


def test_each_panel_has_its_figures_and_they_are_plotly_json(page: str):
    found = re.findall(r'<script type="application/json" id="(figure-[^"]+)">(.*?)</script>', page, flags=re.DOTALL)
    assert len(found) == 3 * TOP
    for _, document in found:
        assert json.loads(document)["data"]


def test_each_panel_tells_the_temperature_of_s2snet(text: str, screened: Workspace):
    for row in screened.read_table(RESULT).to_pylist()[:TOP]:
        told = escape(f"and, as a second opinion, a Tc of {kelvin_text(row['s2snet_tc_kelvin'])} K.")
        assert str(told) in text
    assert text.count("as a second opinion, a Tc of") == TOP


def test_each_panel_says_what_its_attention_map_is_worth(text: str, screened: Workspace):
    assert text.count("What the attention map is worth") == TOP
    assert text.count("rank correlation with random weights</th><td>") == TOP
    row = screened.read_table(RESULT).to_pylist()[0]
    grid = read_grids(screened, [row["material_id"]])[1]
    structure = Structure.from_str(row["structure"], fmt="json")
    (checks,) = check_attention(load_bnas(screened), grid, [structure])
    assert f"symmetric share of the rollout</th><td>{checks.symmetry:.2f}</td>" in text
    assert str(escape(describe_checks(checks)[0])) in text


def test_files_beside_the_page_can_be_read(files: dict[str, bytes], screened: Workspace):
    rows = screened.read_table(RESULT).to_pylist()
    table = list(csv.DictReader(io.StringIO(files["report/candidates.csv"].decode())))
    assert [row["material_id"] for row in table] == [row["material_id"] for row in rows]
    assert [float(row["s2snet_tc_kelvin"]) for row in table] == [row["s2snet_tc_kelvin"] for row in rows]
    assert pq.read_table(io.BytesIO(files["report/candidates.parquet"])).equals(screened.read_table(RESULT))
    crystals = [content.decode() for name, content in files.items() if name.endswith(".cif")]
    assert len(crystals) == TOP
    formulas = [Structure.from_str(crystal, fmt="cif").composition.reduced_formula for crystal in crystals]
    assert formulas == [row["formula"] for row in rows[:TOP]]


def test_provenance_leads_from_the_source_to_the_code(files: dict[str, bytes], screened: Workspace):
    trace = json.loads(files["report/provenance.json"])
    first = screened.read_table(RESULT).to_pylist()[0]
    chain = trace[first["material_id"]]
    assert list(chain) == ["crystal", "structure", "bands", "grid", "split", "weights", "code"]
    assert chain["weights"]["bnas"] == first["bnas_version"]
    weights = screened.fingerprint(f"models/bnas/{first['bnas_version']}/weights-0.safetensors")
    assert chain["weights"]["bnas_sha256"][0] == weights
    assert chain["split"] == {"bnas": NOT_TRAINED, "s2snet": NOT_TRAINED}
    assert chain["crystal"]["reference"] == "a handbook"
    assert re.fullmatch(r"[0-9a-f]{64}", chain["grid"]["sha256"])


def test_the_same_input_gives_the_same_page(files: dict[str, bytes], screened: Workspace):
    assert build_report(screened, ReportSettings(top=TOP)) == files


def test_a_second_run_is_instant_and_other_settings_are_not(copy: Workspace, prefect_harness):
    from flows.report import report

    copy.write_bytes("report/structures/99-old.cif", b"from an earlier run")
    assert not report(copy.url, ReportSettings(top=1)).reused
    assert report(copy.url, ReportSettings(top=1)).reused
    assert len(copy.list("report/structures/*.cif")) == 1


def test_without_a_screening_the_missing_stage_is_named(copy: Workspace):
    copy.remove("candidates")
    with pytest.raises(MissingStageError, match=r"candidates/candidates.parquet is not in the workspace"):
        write_report.fn(copy.url, ReportSettings())


def test_a_run_without_new_candidates_has_a_page_all_the_same(copy: Workspace):
    rows = [row | {"rank": None, "abstain": True} for row in copy.read_table(RESULT).to_pylist()]
    copy.write_table(RESULT, pa.Table.from_pylist(rows, schema=CANDIDATES))
    page = build_report(copy, ReportSettings())[PAGE].decode()
    assert 'id="panels"' not in page
    assert len(page) < 3e6  # plotly is left out where nothing needs it


def test_the_page_says_how_to_run_the_time_machine_where_it_was_not(text: str):
    assert "<code>meissner validate time-machine</code>" in text


def test_a_candidate_without_bands_says_so(copy: Workspace):
    rows = copy.read_table(RESULT).to_pylist()
    rows[0]["material_id"] = "mp-996990"
    copy.write_table(RESULT, pa.Table.from_pylist(rows, schema=CANDIDATES))
    page = build_report(copy, ReportSettings(top=1))[PAGE].decode()
    assert page.count(f'<p class="missing">{NO_BANDS}</p>') == 3
    assert NO_BANDS in page.split("What the attention map is worth")[1]
    assert "<td>rank 1, another" not in page
    assert re.search(r"<td>mp-996990</td><td>above 10 K</td><td>rank 1</td>", page)


def scores(own: Interval, other: Interval) -> NetworkScores:
    name = "r2_log_all"
    table = {"random": {"bnas": {name: own}, "forest": {name: other}}}
    return NetworkScores("bnas", "BNAS", "1", BNAS_METRICS, table, None, {})


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (Interval(0.8, 0.7, 0.9), Interval(0.5, 0.4, 0.6), "BNAS is ahead of the best baseline, “forest”"),
        (Interval(0.5, 0.4, 0.6), Interval(0.8, 0.7, 0.9), "the baseline “forest” beats BNAS"),
        (Interval(0.7, 0.6, 0.9), Interval(0.8, 0.7, 0.9), "intervals overlap, so the order is not certain"),
        (Interval(0.801, 0.7, 0.9), Interval(0.799, 0.7, 0.9), "the baseline “forest” is as good as BNAS"),
    ],
    ids=["ahead", "behind", "uncertain", "level"],
)
def test_the_verdict_says_plainly_who_wins(own: Interval, other: Interval, expected: str):
    assert expected in scores(own, other).verdict("random")


def test_calibration_is_told_as_it_was_observed():
    coverage = [{"expected": 0.9, "observed": 0.84}, {"expected": 0.95, "observed": None}]
    found = {"coverage": coverage, "materials": 58, "split": "chemical-system"}
    text = replace(scores(Interval(0, 0, 0), Interval(0, 0, 0)), calibration=found).calibration_text
    assert (
        text
        == "Intervals held, in per cent of 58 held-out materials, folds grouped by chemical system: 84 for 90 meant."
    )


def test_scores_without_a_network_are_none(tmp_path: Path):
    assert read_scores(Workspace(tmp_path), "bnas") is None


def test_label_noise_bounds_what_a_model_can_reach(screened: Workspace):
    table = screened.read_table("supercon/superconductors.parquet")
    noise = label_noise(table, table["tc_kelvin"].to_pylist())
    assert noise["rms_kelvin"] == pytest.approx(0.4)
    assert 0.9 < noise["r2_kelvin"] < 1
    assert label_noise(SUPERCONDUCTORS.empty_table(), [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("formula", "html"),
    [("MgB2", "MgB<sub>2</sub>"), ("La1.85Sr0.15CuO4", "La<sub>1.85</sub>Sr<sub>0.15</sub>CuO<sub>4</sub>")],
    ids=str,
)
def test_amounts_become_subscripts(formula: str, html: str):
    assert pretty_formula(formula) == html
    assert pretty_formula("<img>2") == "&lt;img&gt;2"


def test_tiny_temperatures_are_not_shown_as_numbers():
    assert kelvin_text(0.0003) == "< 0.01"
    assert kelvin_text(9.2345) == "9.23"


def test_a_browser_sorts_filters_opens_a_candidate_and_prints(page: str, tmp_path: Path):
    if BROWSER is None or DRIVER is None:
        pytest.skip("Chromium and its chromedriver are not installed")
    (tmp_path / "index.html").write_text(page, "utf-8")
    with open_page(tmp_path / "index.html") as browser:
        assert use_page(browser)["rows"] == 16
