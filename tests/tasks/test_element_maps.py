"""How S2SNet sees the elements: the data beside the figures are what the network and the workspace say."""

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from models.element_maps import SYMBOLS
from models.s2snet import S2SNet
from models.training import build
from tasks.element_maps import count_elements, describe, explain_elements, judge_embeddings
from tasks.exceptions import MissingStageError
from tasks.model_store import load_model
from tasks.report_data import read_scores
from tasks.s2snet_ensemble import load_s2snet
from tasks.training_figures import draw_calibration, embedding_figures
from tasks.workspace import Workspace

PAIRS = ("correlation", "tsne", "tsne-predicted", "frequency", "roc")


@pytest.fixture(scope="module")
def drawn(screened: Workspace, tmp_path_factory: pytest.TempPathFactory):
    """What the command printed, and the folder with its files."""
    folder = tmp_path_factory.mktemp("elements")
    command = ["meissner", "explain", "elements", "--workspace", screened.url, "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return shown.getvalue(), folder


def test_each_figure_has_its_data_beside_it(drawn):
    shown, folder = drawn
    names = {path.name for path in folder.iterdir()}
    assert names >= {f"{name}.{kind}" for name in PAIRS for kind in ("svg", "parquet")} | {"numbers.json"}
    assert all(b"<svg" in (folder / f"{name}.svg").read_bytes() for name in PAIRS)
    words = json.loads((folder / "numbers.json").read_text())["words"]
    assert all(sentence in shown for sentence in words)
    assert str(folder / "frequency.svg") in shown


def test_the_matrix_is_that_of_the_networks(drawn, screened: Workspace):
    table = pq.read_table(drawn[1] / "correlation.parquet")
    network = load_s2snet(screened)
    embeddings = network.element_embeddings()
    assert embeddings.shape == (95, len(network.networks) * network.config.width)
    column = table["element"].to_pylist().index("Nb")
    expected = np.corrcoef(embeddings[[SYMBOLS.index("Nb"), SYMBOLS.index("N")]])[0, 1]
    assert table["N"][column].as_py() == pytest.approx(expected)


def test_frequencies_are_counted_by_hand():
    rows = {"formula": ["Nb3Sn", "NbN", "MgB2", "Al"], "probability": [0.9, 0.5, 0.49, 0.1]}
    found = count_elements(pa.table(rows))
    assert (found.predicted, found.screened) == (2, 4)
    assert found.by_materials == {"N": 0.5, "Nb": 1.0, "Sn": 0.5}
    assert found.by_atoms == {"N": 1 / 6, "Nb": 4 / 6, "Sn": 1 / 6}
    assert found.of_screened == {"Al": 0.25, "B": 0.25, "Mg": 0.25, "N": 0.25, "Nb": 0.5, "Sn": 0.25}


def test_the_curves_have_the_area_that_was_stored(drawn, screened: Workspace):
    table = pq.read_table(drawn[1] / "roc.parquet").to_pandas()
    scores = load_model(screened, "s2snet").metrics["scores"]["random"]
    curves = table[table["split"] == "Random by material"].groupby("model")
    assert set(curves.groups) == {"S2SNet", *scores} - {"s2snet"}
    for model, curve in curves:
        area = np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])
        assert area == pytest.approx(scores["s2snet" if model == "S2SNet" else model]["roc_auc"]["value"])


def test_untrained_networks_are_called_what_they_are(screened: Workspace):
    ensemble = load_s2snet(screened)  # its weights are random, so it is as like to random ones as these to each other
    numbers = judge_embeddings(ensemble)
    assert numbers["likeness_random"] > 0.7
    assert numbers["same_group"] > numbers["other_group"] + 0.2  # the Magpie properties alone
    assert "most of the picture is the Magpie properties" in describe(numbers, None)[1]
    assert "run `meissner screen`" in describe(numbers, None)[2]


def test_learned_tables_of_untrained_networks_know_no_groups(screened: Workspace):
    ensemble = load_s2snet(screened)
    config = ensemble.config.model_copy(update={"elements": "learned"})
    learned = replace(ensemble, config=config, networks=[build(lambda: S2SNet(config), seed) for seed in (1, 2)])
    numbers = judge_embeddings(learned)
    assert abs(numbers["same_group"] - numbers["other_group"]) < 0.1
    assert abs(numbers["likeness_random"]) < 0.2
    assert "was learnt" in describe(numbers, None)[1]


def test_trainings_leave_the_figures_of_the_elements(screened: Workspace):
    found = embedding_figures(load_s2snet(screened))
    assert list(found) == ["elements", "element-map"]
    shown = {text.get_text() for text in found["element-map"][0].axes[0].texts}
    assert shown == set(SYMBOLS)


def test_reliability_is_drawn_before_and_after(screened: Workspace):
    rows = [{"predicted": 0.2, "observed": 0.25, "materials": 8}, {"predicted": 0.8, "observed": 1.0, "materials": 4}]
    calibration = {
        "reliability": rows,
        "reliability_uncalibrated": [{"predicted": 0.6, "observed": 0.5, "materials": 12}],
    }
    network = replace(read_scores(screened, "s2snet"), calibration=calibration)
    axis = draw_calibration(network)[0].axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["after"] == [[0.2, 0.25], [0.8, 1.0]]
    assert lines["before"] == [[0.6, 0.5]]


def test_without_a_network_the_missing_stage_is_named(tmp_path: Path):
    with pytest.raises(MissingStageError, match="No trained s2snet"):
        explain_elements(Workspace(tmp_path))
