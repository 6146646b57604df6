"""Activation maps of S2SNet and their checks, on published crystals and through the command line."""

import contextlib
import io
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from flows import cli
from models.crystal_trees import crystal_features, fit_trees
from models.crystals import crystal_arrays
from tasks.activation import (
    ActivationChecks,
    _title,
    describe_checks,
    equivalent_sites,
    explain_crystals,
    find_crystal,
    reference_structures,
)
from tasks.crystal_pictures import still_figure
from tasks.crystals import read_structure
from tasks.exceptions import InputError, MissingStageError
from tasks.report import build_report
from tasks.s2snet_ensemble import S2SEnsemble, load_s2snet
from tasks.settings import ReportSettings
from tasks.tree_contributions import SHOWN, describe_share
from tasks.workspace import Workspace
from tests.conftest import ROOT

CRYSTALS = ROOT / "docs" / "crystals"
FILES = ("crystal.html", "crystal.svg", "crystal.png", "numbers.json", "atoms.parquet")


@pytest.mark.parametrize(
    ("name", "sites", "group", "pair", "nearest"),
    [
        ("BaFe2S3", 24, "Cmcm", ("Fe", "S"), 2.26),
        ("H3S", 8, "Im-3m", ("H", "S"), 1.545),
        ("Sr2CuO2Cl2", 14, "I4/mmm", ("Cu", "O"), 1.9875),
    ],
)
def test_the_published_crystals_are_what_they_are_called(name, sites, group, pair, nearest):
    structure = read_structure(CRYSTALS / f"{name}.cif")
    assert (len(structure), structure.get_space_group_info()[0]) == (sites, group)
    symbols = [site.specie.symbol for site in structure]
    distances = structure.distance_matrix[np.ix_(*([s == element for s in symbols] for element in pair))]
    assert distances.min() == pytest.approx(nearest, abs=0.01)


@pytest.fixture(scope="module")
def explained(screened: Workspace, tmp_path_factory: pytest.TempPathFactory):
    """Three crystals, one of them of the workspace, and one that is not there."""
    folder = tmp_path_factory.mktemp("why")
    index = screened.read_table("crystals/ordered.parquet")
    labelled = index.filter(index["tc_kelvin"].is_valid())["material_id"][0].as_py()
    names = [str(CRYSTALS / "BaFe2S3.cif"), str(CRYSTALS / "H3S.cif"), labelled, "nothing[red]"]
    command = ["meissner", "explain", "s2snet", *names, "--workspace", screened.url, "--output", str(folder)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    found = [json.loads((folder / name / "numbers.json").read_text()) for name in ("BaFe2S3", "H3S", labelled)]
    return found, shown.getvalue(), folder


def test_every_crystal_has_its_files_and_what_is_missing_is_told(explained):
    found, shown, folder = explained
    assert [one["formula"] for one in found[:2]] == ["BaFe2S3", "H3S"]
    assert (
        "nothing[red] is left out: 'nothing[red]' is neither a CIF, POSCAR or JSON file nor an ordered crystal" in shown
    )
    assert sorted(path.name for path in (folder / "H3S").iterdir()) == sorted(FILES)
    assert all(str(folder / "H3S" / name) in shown for name in FILES)
    assert pq.read_table(folder / "crystals.parquet")["formula"].to_pylist()[:2] == ["BaFe2S3", "H3S"]


def test_the_command_prints_numbers_and_what_they_mean(explained):
    found, shown, _ = explained
    assert "atoms' share" in shown
    assert all(" ".join(one["words"]) in shown for one in found)


def test_the_table_holds_the_maps(explained, screened: Workspace):
    (numbers, *_), _, folder = explained
    structure = read_structure(CRYSTALS / "BaFe2S3.cif")
    table = pq.read_table(folder / "BaFe2S3" / "atoms.parquet")
    assert table["element"].to_pylist() == [site.specie.symbol for site in structure]
    np.testing.assert_allclose(table["activation"], load_s2snet(screened).atom_weights(structure), atol=1e-4)
    assert sum(table["gradients"].to_pylist()) == pytest.approx(numbers["gradients_difference"], abs=1e-3)
    assert numbers["gradients_sum"] == pytest.approx(numbers["gradients_difference"], abs=1e-3)
    assert (numbers["kinds"], numbers["sites"], numbers["trained_on"]) == (4, 24, False)
    assert -1 <= numbers["agreement"] <= 1
    assert len(numbers["random_weights_each"]) == 5


def test_two_kinds_of_sites_are_too_few_for_a_rank_correlation(explained):
    hydride = explained[0][1]
    assert (hydride["kinds"], hydride["agreement"]) == (2, None)
    assert "With 2 kinds of sites a rank correlation says nothing" in hydride["words"][1]


def test_a_crystal_of_the_training_set_is_called_one(explained):
    assert explained[0][2]["trained_on"] is True
    assert "a memory, no prediction" in explained[0][2]["words"][-1]


def test_the_contributions_add_up_to_the_answer(explained, screened: Workspace):
    s2snet = load_s2snet(screened)
    structures = [read_structure(CRYSTALS / "BaFe2S3.cif"), *reference_structures(screened)]
    own, *others = np.log(s2snet.predict(structures).probability / (1 - s2snet.predict(structures).probability))
    logit, mean = ((value - 0.2) / 2.0 for value in (own, np.mean(others)))  # the calibration that is stored there
    assert sum(explained[0][0]["contributions"].values()) == pytest.approx(logit - mean, abs=1e-3)


def test_the_page_stands_alone_beside_plotly(explained):
    folder = explained[2]
    page = (folder / "BaFe2S3" / "crystal.html").read_text()
    assert 'src="../plotly.min.js"' in page
    assert "BaFe<sub>2</sub>S<sub>3</sub>" in page
    assert page.count("Plotly.newPlot") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert (folder / "plotly.min.js").stat().st_size > 1_000_000


def test_a_still_picture_shows_the_numbers_it_is_given():
    structure = read_structure(CRYSTALS / "H3S.cif")
    weights = np.array([1.0 if site.specie.symbol == "H" else -1.0 for site in structure])
    axis = still_figure(structure, {"map": weights}).axes[0]
    (paint,) = axis.collections
    discs = {}
    for path, colour in zip(paint.get_paths(), paint.get_facecolors(), strict=True):
        if colour[3] > 0:  # no bond
            middle = path.get_extents().get_points().mean(axis=0).round(6)
            discs[tuple(middle)] = "red" if colour[0] > colour[2] else "blue"
    assert len(discs) == 9 + 12 + 6  # S on corners and in the middle, H on edges and faces
    shown = {(text.get_text(), discs[tuple(np.round(text.get_position(), 6))]) for text in axis.texts}
    assert shown == {("H", "red"), ("S", "blue")}


def test_sites_that_symmetry_joins_are_one_kind():
    kinds = equivalent_sites(read_structure(CRYSTALS / "Sr2CuO2Cl2.cif"))
    assert sorted(kinds.count(kind) for kind in set(kinds)) == [2, 4, 4, 4]


@pytest.fixture(scope="module")
def with_trees(screened: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace with trees that learnt its measured crystals at ten volumes, with a share of 0.6 of the logit."""
    folder = tmp_path_factory.mktemp("trees") / "workspace"
    shutil.copytree(screened.local("."), folder)
    workspace, features, labels = Workspace(folder), [], []
    table = workspace.read_table("crystals/ordered.parquet", ["tc_kelvin", "structure"])
    for row in table.filter(table["tc_kelvin"].is_valid()).to_pylist():
        structure = Structure.from_str(row["structure"], fmt="json")
        for scale in np.linspace(0.95, 1.05, 10):
            strained = structure.copy().scale_lattice(scale * structure.volume)
            features.append(crystal_features(crystal_arrays(strained)))
            labels.append(int(row["tc_kelvin"] > 0))
    for number in range(2):
        trees = fit_trees(np.array(features), np.array(labels), np.full(len(labels), np.nan), number)
        workspace.write_json(f"models/s2snet/{load_s2snet(screened).version}/trees-{number}.json", asdict(trees))
    set_share(workspace, 0.6)
    return workspace


def set_share(workspace: Workspace, share: float) -> S2SEnsemble:
    file = f"models/s2snet/{load_s2snet(workspace).version}/config.json"
    workspace.write_json(file, workspace.read_json(file) | {"shares": {"logit": share, "tc": share}})
    return load_s2snet(workspace)


def explain_one(workspace: Workspace, crystal: str, folder: Path):
    (found,), _, _ = explain_crystals(workspace, [str(CRYSTALS / f"{crystal}.cif")], str(folder))
    return found, pq.read_table(folder / crystal / "trees.parquet").to_pylist()


def test_trees_and_networks_together_give_the_probability(with_trees: Workspace, tmp_path: Path):
    s2snet = set_share(with_trees, 0.6)
    found, rows = explain_one(with_trees, "BaFe2S3", tmp_path)
    structure = read_structure(CRYSTALS / "BaFe2S3.cif")
    whole = s2snet.tree_contributions(structure)
    of_trees = sum(row["contribution"] for row in rows) + whole.expected
    alone = set_share(with_trees, 0.0)
    assert alone.tree_contributions(structure) is None
    probability = alone.predict([structure]).probability[0]
    networks = (np.log(probability / (1 - probability)) - 0.2) / 2.0  # the calibration that is stored there
    together = 1 / (1 + np.exp(-(2.0 * (of_trees + 0.4 * networks) + 0.2)))
    assert found.numbers["probability"] == pytest.approx(together, abs=2e-3)
    assert found.numbers["trees_share"] == 0.6
    assert len(rows) == 402
    sizes = [abs(row["contribution"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.01


def test_the_share_of_the_trees_is_told_wherever_atoms_are_weighed(with_trees: Workspace, tmp_path: Path):
    set_share(with_trees, 1.0)
    found, rows = explain_one(with_trees, "Sr2CuO2Cl2", tmp_path)
    assert found.words[0] == describe_share(1.0)
    title = _title(found.numbers)
    assert title.startswith(f"S2SNet: Sr₂Cu(ClO)₂, P = {found.numbers['probability']:.2f}; ")
    assert title.endswith("the trees have 100 % of the say; colours: the networks alone")
    assert "100 per cent" in found.words[0]
    assert "the networks have no say in it" in found.words[0]
    assert rows[0]["descriptor"] in found.words[1]
    page = (tmp_path / "Sr2CuO2Cl2" / "crystal.html").read_text()
    assert "<dt>share of the trees in its logit</dt><dd>100%</dd>" in page
    assert page.count("<tr>", page.index("What the trees go by")) == 1 + SHOWN
    assert (tmp_path / "Sr2CuO2Cl2" / "trees.png").read_bytes().startswith(b"\x89PNG")
    assert rows[0]["descriptor"] in (tmp_path / "Sr2CuO2Cl2" / "crystal.html").read_text()


def test_the_report_says_what_the_trees_go_by(with_trees: Workspace):
    set_share(with_trees, 0.6)
    page = build_report(with_trees, ReportSettings(top=1))["report/index.html"].decode()
    assert page.count("What S2SNet's trees go by") == 1
    assert page.count(describe_share(0.6)) == 2  # under the crystal and under the table


def test_without_trees_nothing_is_said_of_them(explained):
    found, shown, folder = explained
    assert found[0]["trees_share"] == 0
    assert _title(found[0]) == f"S2SNet: BaFe₂S₃, P = {found[0]['probability']:.2f}"
    assert "trees have" not in shown
    assert not list(folder.rglob("trees.*"))


@pytest.mark.parametrize(
    ("share", "sentence"),
    [(0.0, "it is that of the networks"), (0.4, "40 per cent"), (1.0, "the networks have no say in it")],
)
def test_a_share_is_told_in_words(share, sentence):
    assert sentence in describe_share(share)


CHECKS = ActivationChecks(
    kinds=4,
    agreement=0.9,
    same_sign=1.0,
    random_weights=0.1,
    random_weights_each=(0.1,),
    networks_agreement=0.9,
    gradients_sum=1.0,
    gradients_difference=1.0,
    contributions={"atoms": 1.0, "composition": -3.0},
    atoms_share=0.25,
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "carries 25 per cent: most of their answer does not pass through the atoms"),
        ({"atoms_share": 0.8}, "the picture speaks of this part only"),
        ({}, "the two methods agree"),
        ({"agreement": -0.2}, "neither picture can be trusted alone"),
        ({"random_weights": 0.8}, "architecture and elements alone give nearly this picture"),
        ({"networks_agreement": 0.0}, "the picture hangs on each training's random start"),
    ],
)
def test_the_words_say_what_the_numbers_mean(changes, sentence):
    assert sentence in " ".join(describe_checks(CHECKS.model_copy(update=changes)))


def test_what_is_not_there_is_told(screened: Workspace, tmp_path: Path):
    with pytest.raises(InputError, match="crystals with this formula: mp-"):
        find_crystal(screened, "NbN")
    with pytest.raises(InputError, match="is neither a CIF"):
        explain_crystals(screened, ["nothing"])
    alloy = Structure.from_spacegroup("Im-3m", Lattice.cubic(3.28), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]])
    (tmp_path / "alloy.cif").write_text(alloy.to(fmt="cif"))
    with pytest.raises(InputError, match="partial occupancy; give an ordered cell of it, or the id"):
        explain_crystals(screened, [str(tmp_path / "alloy.cif")])
    with pytest.raises(InputError, match="None of the 2 crystals can be explained"):
        explain_crystals(screened, ["nothing", "nowhere"])
    with pytest.raises(MissingStageError, match="No trained s2snet"):
        explain_crystals(Workspace(tmp_path), ["nothing"])
