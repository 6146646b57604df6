"""The S2S benchmark on bundled crystals with tiny networks: same folds, resumed parts, the paper's tables."""

import csv
import json
import re

import numpy as np
import pytest
from scipy.special import expit

from models.blending import held_out_blend
from models.crystal_trees import crystal_features, fit_trees
from models.exceptions import LeakageError
from models.splits import Fold, composition_key
from tasks.benchmark_methods import SHORT, choose_methods, choose_size, list_methods, paper_reading
from tasks.benchmark_parts import run_part
from tasks.benchmark_plan import FOLDER, count_seen, make_plan, pretraining_rows
from tasks.benchmark_s2s import PREDICTED, TABLES, gather
from tasks.benchmark_tables import METHODS_FILE, OUTPUT, RELIABILITY
from tasks.crystal_files import build_structure, read_crystals
from tasks.exceptions import InputError
from tasks.s2s_files import dataset_from_s2s
from tasks.schemas import BENCHMARK, PREDICTIONS
from tasks.settings import BenchmarkSettings
from tasks.train_bnas import part_seed
from tasks.workspace import Workspace
from tests.conftest import STARTER

EACH = 10  # crystals of each class
SETTINGS = BenchmarkSettings(
    folds=2,
    splits=("random",),
    methods=("cgcnn", "megnet", "blend", "blend-pretrained", "paper"),
    config="tiny",
    width=8,
    layers=(1, 2),
    epochs=1,
    graph_epochs=1,
    device="cpu",
)


def starter_lines(each: int = EACH) -> list[dict]:
    """The first small crystals of each class among the bundled ones, in the layout of S2S."""
    with (STARTER / "supercon.csv").open() as file:
        told = {
            row["formula"]: row["tc_kelvin"] or "0" for row in csv.DictReader(file)
        }  # some rows are wrong on purpose
    known = {formula: float(tc) > 0 for formula, tc in told.items() if re.fullmatch(r"[\d.]+", tc)}
    lines = []
    wanted = {True: each, False: each}
    for text in read_crystals(str(STARTER / "crystals.csv")):
        formula = text.crystal_id.rsplit("-", 1)[0]
        if not wanted.get(known.get(formula)):
            continue
        structure = build_structure(text)
        if len(structure) > 6 or not structure.is_ordered:
            continue
        wanted[known[formula]] -= 1
        lines.append(
            {
                "superconductor": int(known[formula]),
                "lattice": structure.lattice.matrix.tolist(),
                "atomic_numbers": list(structure.atomic_numbers),
                "frac_coords": structure.frac_coords.tolist(),
            }
        )
    return lines


def write_lines(path, lines) -> str:
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture(scope="module")
def lines():
    return starter_lines()


@pytest.fixture(scope="module")
def judged(tmp_path_factory, lines):
    """A workspace with a finished benchmark of all methods, its plan and outcome."""
    folder = tmp_path_factory.mktemp("benchmark")
    data = write_lines(folder / "s2s.jsonl", [*lines, {"superconductor": 1}])
    workspace = Workspace(folder / "workspace")
    plan = make_plan(data, SETTINGS)
    for part in plan.parts:
        run_part(workspace.url, plan, part)
    outcome = gather(workspace, plan)
    for name, table in outcome.tables.items():
        workspace.write_table(name, table)
    return workspace, plan, outcome


def test_every_model_predicts_every_crystal_once_on_the_same_folds(judged):
    workspace, plan, outcome = judged
    table = workspace.read_table(PREDICTED)
    assert table.schema.equals(PREDICTIONS)
    found: dict[str, list] = {}
    for row in table.to_pylist():
        found.setdefault(row["model"], []).append((row["fold"], row["material_id"]))
    titles = {method.title for method in plan.methods} - {"baselines"}
    assert titles | {"Magpie, random forest", "size only", "element fractions, network"} <= set(found)
    assert len({tuple(sorted(rows)) for rows in found.values()}) == 1
    assert len(next(iter(found.values()))) == 2 * EACH
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected) == 2 * EACH + 1
    assert outcome.counts["superconductors"] == EACH


def test_scores_have_a_spread_an_interval_and_a_gain_over_the_forest(judged):
    rows = judged[0].read_table(OUTPUT)
    assert rows.schema.equals(BENCHMARK)
    predictions = judged[0].read_table(PREDICTED).to_pylist()
    for row in rows.to_pylist():
        assert row["folds"] == 2
        assert row["low"] <= row["pooled"] <= row["high"]
        if row["model"] == "Magpie, random forest":
            assert row["gain"] == row["gain_low"] == row["gain_high"] == 0
        if row["score"] == "accuracy":
            own = [p for p in predictions if p["model"] == row["model"]]
            right = np.array([(p["probability"] >= 0.5) == p["superconductor"] for p in own])
            folds = np.array([p["fold"] for p in own])
            each = [right[folds == fold].mean() for fold in ("0", "1")]
            assert row["mean"] == pytest.approx(np.mean(each))
            assert row["spread"] == pytest.approx(np.std(each, ddof=1))


def test_the_papers_tables_stand_beside_ours(judged):
    text = judged[0].read_bytes(TABLES).decode()
    assert "width 8 in place of 512" in text
    refused = r"lines refused: 1 \(stages/benchmark-s2s/rejected\.parquet\)"
    assert re.search(rf"\ns2s\.jsonl \(hash \w{{12}}\), {refused}: 10 ", text)
    told = judged[0].read_json(METHODS_FILE)["data"]
    assert told["hash"] == judged[1].data_hash
    assert told["refused"] == 1
    lines = [line for line in text.splitlines() if line.startswith("|")]

    def row(start: str) -> list[str]:
        return [cell.strip() for line in lines if line.startswith(f"| {start}") for cell in line.split("|")[2:-1]]

    assert row("S2SNet as printed, 2 layers |")[-4:][0] == "91.28 / 91.18"
    assert row("CGCNN |")[-4:][:2] == ["82.42 / 86.40", "not possible here: no formation energies"]
    assert "±" in row("CGCNN |")[-1]
    assert row("Statistic")[2] == "83.33 / 78.52"
    assert [cell for cell in row("2 |") if "±" in cell]
    published = row("without lattice")
    assert published[0] == "90.41 / 89.22"
    assert published[2] == "87.79 / 86.20"
    assert all("±" in published[place] for place in (1, 3))
    assert "chosen on inner folds" in text
    assert "none has the composition of a held-out one" in text
    drawn = {f"{FOLDER}/{name}.svg" for name in ("roc", "scores", "reliability")}
    assert set(judged[0].list(f"{FOLDER}/*.svg")) == drawn


def test_tables_tell_of_what_was_run_alone(tmp_path, lines):
    data = write_lines(tmp_path / "s2s.jsonl", lines)
    workspace = Workspace(tmp_path / "w")
    plan = make_plan(data, SETTINGS.model_copy(update={"methods": ("baselines",)}))
    for part in plan.parts:
        run_part(workspace.url, plan, part)
    gather(workspace, plan)
    text = workspace.read_bytes(TABLES).decode()
    assert "| Statistic (Magpie, random forest) |" in text
    assert "refused" not in text
    for other in ("Epochs in place", "scaled down", "Table 3", "Table 4", "not possible here"):
        assert other not in text


def test_too_few_crystals_are_told_with_the_lines_that_were_refused(tmp_path, lines):
    data = write_lines(tmp_path / "s2s.jsonl", [lines[0], {"superconductor": 1}])
    with pytest.raises(
        InputError, match=r"2 folds need at least 2 crystals of each class; .* Lines refused: 1, the first of them: "
    ):
        make_plan(data, SETTINGS)


def test_every_method_has_its_reliability(judged):
    workspace, _, _ = judged
    rows = workspace.read_table(RELIABILITY).to_pandas()
    predicted = workspace.read_table(PREDICTED).to_pandas()
    assert set(rows["model"]) == set(predicted["model"])
    for (split, model), curve in rows.groupby(["split", "model"]):
        own = predicted[(predicted["split"] == split) & (predicted["model"] == model)]
        assert curve["materials"].sum() == len(own)
        assert (curve["observed"] * curve["materials"]).sum() == pytest.approx(own["superconductor"].sum())
        assert (curve["predicted"] * curve["materials"]).sum() == pytest.approx(own["probability"].sum())
        assert (curve["low"] - 1e-9 <= curve["observed"]).all()
        assert (curve["observed"] <= curve["high"] + 1e-9).all()


def test_a_run_goes_on_with_the_parts_that_are_missing(judged, tmp_path):
    workspace, plan, _ = judged
    again = make_plan(plan.data, SETTINGS)
    assert again == plan
    fewer = make_plan(plan.data, SETTINGS.model_copy(update={"methods": ("s2snet",)}))
    assert {part.file for part in fewer.parts} < {part.file for part in plan.parts}
    part = next(part for part in plan.parts if part.method.name == "s2snet-pretrained")
    run_part(tmp_path.as_posix(), plan, part)
    assert Workspace(tmp_path).read_bytes(part.file) == workspace.read_bytes(part.file)
    assert not workspace.list(f"{FOLDER}/parts/*checkpoint*")
    other = make_plan(plan.data, SETTINGS.model_copy(update={"graph_epochs": 2}))
    changed = {part.method.family for part in other.parts if part.file not in {p.file for p in plan.parts}}
    assert changed == {"cgcnn", "megnet"}


def test_a_blend_is_fitted_on_the_other_folds_as_in_a_training(judged):
    workspace, plan, _ = judged
    table = workspace.read_table(PREDICTED)
    for name in ("blend", "blend-pretrained"):
        of = next(method for method in plan.methods if method.name == name)
        network, trees, both = (_ordered(table, plan, method) for method in (*of.of, name))
        logits = [np.log(rows["probability"] / (1 - rows["probability"])) for rows in (network, trees)]
        expected = held_out_blend(*logits, both["superconductor"].astype(int), both["fold"])[1]
        np.testing.assert_allclose(both["probability"], expected, atol=1e-9)


def test_the_trees_are_those_of_a_training(tmp_path):
    data = write_lines(tmp_path / "s2s.jsonl", starter_lines(24))
    plan = make_plan(data, SETTINGS.model_copy(update={"methods": ("trees",)}))
    part = next(part for part in plan.parts if part.method.name == "trees")
    run_part(tmp_path.as_posix(), plan, part)
    found = Workspace(tmp_path).read_table(part.file)
    dataset, fold = plan.read(), plan.fold(part)
    features = np.array([crystal_features(crystal) for crystal in dataset.crystals])
    unknown = np.full(len(fold.train), np.nan)
    trees = fit_trees(features[fold.train], dataset.labels[fold.train], unknown, part_seed(0, "random-0"))
    expected = expit(trees.logits(features[fold.test]))
    assert np.std(expected) > 0.01
    np.testing.assert_allclose(found["probability"].to_numpy(), expected)
    assert found["material_id"].to_pylist() == [dataset.names[row] for row in fold.test]


def test_reports_beside_the_crystals_are_methods_of_their_own(tmp_path, lines):
    settings = SETTINGS.model_copy(
        update={"methods": ("blend-reports", "reports"), "reports": str(STARTER / "supercon.csv")}
    )
    plan = make_plan(write_lines(tmp_path / "s2s.jsonl", lines), settings)
    workspace = Workspace(tmp_path / "workspace")
    for part in plan.parts:
        run_part(workspace.url, plan, part)
    scores = gather(workspace, plan).tables[OUTPUT]
    found = {"Reports alone", "S2SNet's trees, with reports", "S2SNet, with trees and reports"}
    assert found <= set(scores["model"].to_pylist())
    text = workspace.read_bytes(TABLES).decode()
    assert "supercon.csv, without those of a chemical system that is held out" in text
    assert "| S2SNet, ours: network, trees and reports |" in text
    without = make_plan(plan.data, settings.model_copy(update={"reports": None, "methods": ("blend",)}))
    with pytest.raises(InputError, match="reports needs a table of reports: give it with --reports"):
        make_plan(plan.data, settings.model_copy(update={"reports": None, "methods": ("blend-reports",)}))
    names = [method.name for method in without.methods]
    assert "trees-reports" not in names
    files = {part.method.name: part.file for part in plan.parts if part.number == 0}
    other = tmp_path / "more.csv"
    other.write_text("name,Tc\nNb3Sn,18\n")
    again = make_plan(plan.data, settings.model_copy(update={"reports": str(other)}))
    changed = {part.method.name for part in again.parts if part.number == 0 and part.file != files[part.method.name]}
    assert changed == {"reports", "trees-reports"}


def _ordered(table, plan, name):
    title = next(method.title for method in plan.methods if method.name == name)
    rows = [row for row in table.to_pylist() if row["model"] == title]
    rows.sort(key=lambda row: (row["fold"], row["material_id"]))
    return {key: np.array([row[key] for row in rows]) for key in ("fold", "superconductor", "probability")}


def test_the_size_fills_in_what_is_not_named():
    short = choose_size(BenchmarkSettings(device="cpu", graph_epochs=9))
    assert (short.size, short.width, short.graph_epochs, short.epochs) == ("short", SHORT["width"], 9, None)
    assert choose_size(short) == short
    published = choose_size(BenchmarkSettings(device="cpu", size="published"))
    assert (published.width, published.printed_epochs, published.graph_epochs) == (512, None, None)
    assert choose_size(BenchmarkSettings(device="cpu", epochs=4)).printed_epochs is None


@pytest.mark.parametrize("split", ["random", "chemical-system"])
def test_no_relative_of_a_held_out_crystal_is_learnt_from_without_labels(tmp_path, lines, split):
    dataset = dataset_from_s2s(write_lines(tmp_path / "s2s.jsonl", lines))
    test = np.array([0, 1, 2])
    fold = Fold("0", np.arange(3, len(lines)), test)
    own, others = pretraining_rows(dataset, dataset, split, fold)
    held_out = {composition_key(dataset.formulas[row]) for row in test}
    assert len(own)
    assert len(others)
    for row in [*own, *others]:
        assert composition_key(dataset.formulas[row]) not in held_out
        if split == "chemical-system":
            assert dataset.chemical_systems[row] not in {dataset.chemical_systems[row] for row in test}
    assert count_seen(dataset, fold, own, others, dataset) == 0
    with pytest.raises(LeakageError, match="3 held-out crystals would be seen"):
        count_seen(dataset, fold, own, np.arange(len(lines)), dataset)


def test_more_crystals_and_their_energies_are_for_pretraining(judged, tmp_path, lines):
    energies = [line | {"formation_energy_per_atom": -0.1 * number} for number, line in enumerate(lines)]
    source = write_lines(tmp_path / "more.jsonl", energies)
    asked = SETTINGS.model_copy(update={"unlabelled": source, "methods": ("cgcnn-pretrained",)})
    plan = make_plan(judged[1].data, asked)
    part = next(part for part in plan.parts if part.method.pretrained)
    run_part(tmp_path.as_posix(), plan, part)
    table = Workspace(tmp_path).read_table(part.file)
    assert table["model"].unique().to_pylist() == ["CGCNN, pre-trained"]
    assert table.num_rows == EACH
    baselines = {part.file for part in plan.parts if part.method.name == "baselines"}
    assert baselines == {part.file for part in judged[1].parts if part.method.name == "baselines"}


def test_what_was_done_is_written_down(judged):
    found = judged[0].read_json(METHODS_FILE)
    assert found["methods"]["S2SNet as printed, 2 layers, pre-trained"]["freeze"]
    assert not found["methods"]["S2SNet as printed, 2 layers"]["freeze"]
    assert found["methods"]["CGCNN"]["models"]["published"]["network"]["neighbours"] == 12
    assert len(found["chosen"]["CGCNN, tuned"]) == 2
    assert [row["pretraining"] for row in found["leakage"]["random"]] == [0, 0]


def test_the_reading_of_the_paper_is_scaled_only_below_its_width():
    published = paper_reading(512, 10, lattice=True)
    assert (published.network.heads, published.network.feed_forward, published.finetuning.batch_size) == (16, 2048, 8)
    scaled = paper_reading(16, 5, lattice=False)
    assert (scaled.network.heads, scaled.network.lattice, scaled.network.layers) == (2, "none", 5)


BAD_SETTINGS = {
    "method": ({"methods": ("forest",)}, r"--methods 'forest' is not one of baselines, cgcnn"),
    "configuration": ({"config": "huge"}, "no configuration 'huge'"),
    "folds": ({"folds": 11}, "10 superconduct, 10 do not"),
    "split": ({"splits": ("year",)}, "'year' is not one of random, chemical-system"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_mistake_is_told_before_anything_is_trained(judged, changes, message):
    with pytest.raises(InputError, match=message):
        make_plan(judged[1].data, SETTINGS.model_copy(update=changes))


def test_the_methods_are_those_of_the_papers_tables():
    names = {method.name for method in list_methods(BenchmarkSettings())}
    assert {"paper-5-pretrained", "paper-10-pretrained", "paper-15-pretrained", "paper-10"} <= names
    assert {"paper-10-no-lattice", "paper-10-no-lattice-pretrained", "megnet", "cgcnn-tuned"} <= names
    assert "cgcnn-pretrained" not in names
    chosen = choose_methods(BenchmarkSettings(methods=("paper-10",)))
    assert [method.name for method in chosen] == ["baselines", "paper-10"]
    blended = choose_methods(BenchmarkSettings(methods=("blend",)))
    assert [method.name for method in blended] == ["baselines", "s2snet", "trees", "blend"]
