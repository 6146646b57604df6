import shutil

import numpy as np
import pyarrow as pa
import pytest
from pymatgen.core import Lattice, Structure

from models.applicability import TrainingDistance
from models.crystal_trees import REPORTED, CrystalTrees, attribute_trees, crystal_features
from models.crystals import crystal_arrays, graph
from models.exceptions import CheckpointError, ModelInputError
from models.s2snet import CONFIGS, S2SNet
from models.s2snet_training import predict_answers, train_network
from tasks.bnas_data import cross_validations
from tasks.exceptions import InputError, MissingStageError
from tasks.held_out import read_held_out
from tasks.known import element_amounts
from tasks.model_store import load_model
from tasks.prediction import NEEDS_BANDS, predict
from tasks.s2snet_data import choose_network, make_plan, pretraining_rows, read_crystals
from tasks.s2snet_scores import NETWORK_ALONE, TREES_ALONE
from tasks.schemas import FOLDS, ORDERED, PREDICTIONS
from tasks.schemas import SUPERCONDUCTORS as MEASURED_SCHEMA
from tasks.settings import S2SNetTrainingSettings
from tasks.stages import hash_text
from tasks.train_s2snet import gather, load_s2snet, score_part, train_part
from tasks.workspace import Workspace
from tests.models.crystal_examples import BODY_CENTRED, EXAMPLES, FACE_CENTRED

NETWORK = CONFIGS["tiny"].network
SETTINGS = S2SNetTrainingSettings(config="tiny", epochs=1, folds=2, ensemble=2, device="cpu")

# Lattice constants in angstrom; face- and body-centred elements, rock salt.
CUBIC = {
    **{("face", (symbol,)): a for symbol, a in (("Al", 4.05), ("Pb", 4.95), ("Cu", 3.61), ("Ag", 4.09), ("Au", 4.08))},
    **{("body", (symbol,)): a for symbol, a in (("Nb", 3.30), ("V", 3.03), ("Ta", 3.31), ("Na", 4.29), ("K", 5.33))},
    ("face", ("Nb", "N")): 4.39,
    ("face", ("Na", "Cl")): 5.64,
    ("face", ("K", "Cl")): 6.29,
    ("face", ("Mg", "O")): 4.21,
    ("face", ("Li", "F")): 4.03,
    ("face", ("Zr", "N")): 4.58,
}
SUPERCONDUCTORS = {"Al": 1.2, "Pb": 7.2, "Nb": 9.3, "V": 5.4, "Ta": 4.5, "NbN": 16.0, "ZrN": 10.0}
UNKNOWN = {"Au", "LiF"}
MEASURED = [
    {"formula": formula, "tc_kelvin": tc, "tc_std_kelvin": 0.0, "reports": 1, "family": "other", "source": "made"}
    | {"source_rows": [1]}
    for formula, tc in SUPERCONDUCTORS.items()
]


def cubic(centring: str, symbols: tuple[str, ...], a: float) -> Structure:
    """Give a primitive cell: one element on a centred lattice, or two in the structure of rock salt."""
    vectors = a * (FACE_CENTRED if centring == "face" else BODY_CENTRED)
    return Structure(Lattice(vectors), symbols, [[0, 0, 0], [0.5, 0.5, 0.5]][: len(symbols)])


def row(structure: Structure, name: str | None = None) -> dict:
    formula, text = structure.composition.reduced_formula, structure.to(fmt="json")
    measured = formula not in UNKNOWN
    return {
        "material_id": name or f"crystal-{formula}",
        "parent_id": f"parent-{formula}",
        "formula": formula,
        "supercon_formula": formula if measured else None,
        "tc_kelvin": SUPERCONDUCTORS.get(formula, 0.0) if measured else None,
        "year_first": 1950,
        "family": "other",
        "match": "exact",
        "space_group": "",
        "sites": len(structure),
        "supercell": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "composition_error": 0.0,
        "structure_hash": hash_text(text),
        "structure": text,
    }


def write(workspace: Workspace, rows: list[dict]) -> Workspace:
    complete = [dict.fromkeys(ORDERED.names) | found for found in rows]
    workspace.write_table("crystals/ordered.parquet", pa.Table.from_pylist(complete, schema=ORDERED))
    return workspace


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    disordered = Structure(Lattice.cubic(3.2), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]])
    return [row(cubic(*key, a)) for key, a in CUBIC.items()] + [row(disordered, "crystal-disordered")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, rows):
    """A workspace with a trained ensemble, and what the stage told of it."""
    workspace = write(Workspace(tmp_path_factory.mktemp("trained")), rows)
    plan = make_plan(workspace, read_crystals(workspace, NETWORK), SETTINGS)
    for part in plan.parts:
        work = score_part if part.kind == "baselines" else train_part
        work(workspace.url, SETTINGS, plan, part)
    return workspace, plan, gather(workspace, SETTINGS, plan)


def test_what_is_read_and_what_is_refused(tmp_path, rows):
    crystals = read_crystals(write(Workspace(tmp_path), rows), NETWORK)
    assert len(crystals.graphs) == len(CUBIC)
    assert len(crystals.labels) == len(CUBIC) - len(UNKNOWN)
    assert crystals.labels.sum() == len(SUPERCONDUCTORS)
    assert [(found.item, "partial occupancy" in found.reason) for found in crystals.rejected] == [
        ("crystal-disordered", True)
    ]


@pytest.mark.parametrize("split", ["random", "chemical-system"])
def test_no_held_out_crystal_is_seen_in_pretraining(tmp_path, rows, split):
    twin = row(cubic("face", ("Al",), 4.2), "crystal-Al-again") | {"tc_kelvin": None, "supercon_formula": None}
    crystals = read_crystals(write(Workspace(tmp_path), [*rows, twin]), NETWORK)
    ids = np.array(crystals.rows.column("material_id"))
    for fold in cross_validations(crystals.measured, SETTINGS)[split]:
        test = crystals.labelled[fold.test]
        seen = pretraining_rows(crystals, split, test)
        assert not set(seen) & set(test)
        assert {"crystal-Au", "crystal-LiF"} <= set(ids[seen])
        if split == "chemical-system" and "crystal-Al" in ids[test]:
            assert "crystal-Al-again" not in ids[seen]


def test_the_stage_accounts_for_every_crystal(trained):
    _, plan, outcome = trained
    assert outcome.rows_in == outcome.accounted + len(outcome.rejected) == len(CUBIC) + 1
    assert outcome.counts["superconductors"] == len(SUPERCONDUCTORS)
    assert len(plan.parts) == 2 * 2 * 2 + 2


def test_scores_stand_beside_the_baselines_on_the_same_folds(trained):
    workspace, plan, _ = trained
    metrics = load_model(workspace, "s2snet", plan.version).metrics
    for split in SETTINGS.splits:
        models = metrics["scores"][split]
        assert {"s2snet", "mean", "size only", "Magpie, random forest"} <= set(models)
        for scores in models.values():
            assert set(scores) == {"roc_auc", "accuracy", "brier"}
            assert scores["brier"]["low"] <= scores["brier"]["value"] <= scores["brier"]["high"]
        assert {NETWORK_ALONE, TREES_ALONE} <= set(models)
        for part in (NETWORK_ALONE, TREES_ALONE):
            gain = models["s2snet"]["roc_auc"]["value"] - models[part]["roc_auc"]["value"]
            assert metrics["fusion_adds"][split][part]["value"] == pytest.approx(gain)
        temperatures = metrics["tc_scores"][split]
        assert set(temperatures) == set(models)
        assert all(scores["r2_log_all"]["value"] <= 1 for scores in temperatures.values())
        assert all(0 <= scores["roc_auc"]["value"] <= 1 for scores in temperatures.values())
        families = metrics["families"][split].values()
        parts = [(family["materials"], family["scores"]["s2snet"]["brier"]["value"]) for family in families]
        mean = sum(count * brier for count, brier in parts) / metrics["materials"]
        assert mean == pytest.approx(models["s2snet"]["brier"]["value"])
    assert metrics["calibration"]["split"] == "chemical-system"
    assert sum(entry["materials"] for entry in metrics["calibration"]["reliability"]) == len(CUBIC) - len(UNKNOWN)
    compared = metrics["calibration"]["compared"]
    assert set(compared) == {"none", "temperature", "platt", "isotonic"}
    method = metrics["calibration"]["method"]
    assert compared[method]["log_loss"] == min(compared[name]["log_loss"] for name in compared if name != "none")
    assert compared[method]["brier"] == pytest.approx(metrics["calibration"]["brier"])
    assert metrics["calibration"]["fitted"]["method"] == method


def test_each_measured_crystal_is_predicted_once_a_split_and_model(trained):
    workspace, plan, _ = trained
    table = workspace.read_table(f"models/s2snet/{plan.version}/predictions.parquet")
    assert table.schema.equals(PREDICTIONS)
    for split in SETTINGS.splits:
        found = [r["material_id"] for r in table.to_pylist() if r["split"] == split and r["model"] == "s2snet"]
        assert len(found) == len(set(found)) == len(CUBIC) - len(UNKNOWN)
    assert all(0 <= r["probability"] <= 1 for r in table.to_pylist())
    assert workspace.read_table(f"models/s2snet/{plan.version}/folds.parquet").schema.equals(FOLDS)


def test_the_same_training_gives_the_same_weights_and_leaves_no_checkpoint(trained, tmp_path, rows):
    workspace, plan, _ = trained
    other = write(Workspace(tmp_path), rows)
    assert make_plan(other, read_crystals(other, NETWORK), SETTINGS) == plan
    for part in (plan.members[0], plan.folds[0]):
        train_part(other.url, SETTINGS, plan, part)
        assert other.read_bytes(part.file) == workspace.read_bytes(part.file)
    assert not other.list("models/**/*checkpoint*")


def test_ensemble_answers_with_a_probability_between_its_members(trained):
    workspace, plan, _ = trained
    ensemble = load_s2snet(workspace)
    assert ensemble.version == plan.version
    prediction = ensemble.predict([EXAMPLES[name]() for name in ("MgB2", "NaCl")])
    assert prediction.probability.shape == (2,)
    assert (prediction.probability_low <= prediction.probability + 1e-12).all()
    assert (prediction.probability <= prediction.probability_high + 1e-12).all()
    assert ((prediction.probability > 0) & (prediction.probability < 1)).all()
    assert prediction.tc_kelvin.shape == (2,)
    assert (prediction.tc_kelvin >= 0).all()


def test_crystals_in_one_question_do_not_touch_each_other(trained):
    ensemble = load_s2snet(trained[0])
    together = ensemble.predict([EXAMPLES[name]() for name in EXAMPLES]).probability
    alone = [ensemble.predict([make()]).probability[0] for make in EXAMPLES.values()]
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.fixture
def no_grids(trained, tmp_path) -> Workspace:
    """A copy of the workspace with the ensemble, with what is measured and without grids or BNAS."""
    shutil.copytree(trained[0].local("."), tmp_path / "no-grids")
    workspace = Workspace(tmp_path / "no-grids")
    measured = [dict.fromkeys(MEASURED_SCHEMA.names) | found for found in MEASURED]
    workspace.write_table("supercon/superconductors.parquet", pa.Table.from_pylist(measured, schema=MEASURED_SCHEMA))
    return workspace


def test_a_crystal_is_answered_without_grids(no_grids, tmp_path):
    crystal = cubic("face", ("Nb", "C"), 4.47)
    crystal.to(str(tmp_path / "NbC.cif"))
    (answer,) = predict([tmp_path / "NbC.cif"], no_grids)
    assert answer.error is None
    assert (answer.formula, answer.known, answer.tc_kelvin, answer.note) == ("NbC", "none", None, NEEDS_BANDS)
    assert 0 < answer.probability < 1
    formulas = {"".join(symbols) for _, symbols in CUBIC} - UNKNOWN
    distance = TrainingDistance([element_amounts(formula) for formula in sorted(formulas)])
    expected = distance([element_amounts("NbC")])[0]
    assert answer.distance == pytest.approx(expected, abs=1e-4)
    assert answer.abstain == (expected > 1)


def test_predict_answers_with_the_calibrated_blend_of_networks_and_trees(no_grids, tmp_path):
    folder = f"models/s2snet/{load_model(no_grids, 's2snet').version}"
    config = no_grids.read_json(f"{folder}/config.json")
    calibration = {"method": "platt", "slope": 0.8, "intercept": 0.3}
    shares = {"logit": 0.3, "tc": 0.6}  # neither network nor trees alone
    no_grids.write_json(f"{folder}/config.json", config | {"shares": shares, "calibration": calibration})
    crystal = cubic("face", ("Nb", "C"), 4.47)
    crystal.to(str(tmp_path / "POSCAR"))
    (answer,) = predict([tmp_path / "POSCAR"], no_grids)

    arrays = crystal_arrays(crystal)
    features, logits, log_tc = crystal_features(arrays)[None], [], []
    for number, state in enumerate(load_model(no_grids, "s2snet").members):
        network = S2SNet(NETWORK)
        network.load_state_dict(state)
        (own,) = predict_answers(network, [graph(arrays, NETWORK.radius)])
        trees = CrystalTrees(**no_grids.read_json(f"{folder}/trees-{number}.json"))
        logits.append(0.7 * own[0] + 0.3 * trees.logits(features)[0])
        log_tc.append(0.4 * own[1] + 0.6 * trees.log_tc(features)[0])
    logit = np.mean(logits)
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-(0.8 * logit + 0.3))), abs=1e-4)
    assert answer.s2snet_tc_kelvin == pytest.approx(max(np.expm1(np.mean(log_tc)), 0), rel=1e-3, abs=1e-4)


def test_atom_weights_are_one_a_site(trained):
    weights = load_s2snet(trained[0]).atom_weights(EXAMPLES["MgB2"]())
    assert weights.shape == (3,)
    assert np.abs(weights).max() == pytest.approx(1)


def test_a_crystal_that_the_network_cannot_take_is_refused(trained):
    with pytest.raises(ModelInputError, match="partial occupancy"):
        load_s2snet(trained[0]).predict([Structure(Lattice.cubic(3.2), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]])])


def test_nothing_trained_says_how_to_train(tmp_path):
    with pytest.raises(MissingStageError, match="meissner train s2snet"):
        load_s2snet(Workspace(tmp_path))


def test_a_configuration_of_another_network_is_refused(trained, tmp_path):
    workspace, plan, _ = trained
    name = f"models/s2snet/{plan.version}"
    other = Workspace(tmp_path)
    for file in [
        *workspace.list(f"{name}/*.safetensors"),
        *workspace.list(f"{name}/trees-*"),
        f"{name}/metrics.json",
        "models/s2snet/latest.json",
    ]:
        other.write_bytes(file, workspace.read_bytes(file))
    config = workspace.read_json(f"{name}/config.json")
    other.write_json(f"{name}/config.json", config | {"network": {"depth": 3}})
    with pytest.raises(CheckpointError, match="is not one of this network"):
        load_s2snet(other)
    other.write_json(f"{name}/config.json", config | {"network": config["network"] | {"width": 4}})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_s2snet(other)


def test_too_few_of_a_class_says_what_is_needed(tmp_path, rows):
    few = [found for found in rows if found["tc_kelvin"] in {None, 0.0, 16.0}]
    workspace = write(Workspace(tmp_path), few)
    with pytest.raises(InputError, match=r"at least 2 superconductors and 2 measured others.*has 1 and"):
        make_plan(workspace, read_crystals(workspace, NETWORK), SETTINGS)


def test_an_unknown_configuration_names_the_known_ones():
    with pytest.raises(InputError, match="'large'; choose one of paper, s2snet, starter, tiny"):
        choose_network(SETTINGS.model_copy(update={"config": "large"}))


def test_a_frozen_trunk_needs_a_pretraining(tmp_path, rows):
    workspace = write(Workspace(tmp_path), rows)
    settings = SETTINGS.model_copy(update={"config": "s2snet", "freeze": True})
    crystals = read_crystals(workspace, choose_network(settings).network)
    with pytest.raises(ModelInputError, match=r"^--freeze keeps .*, but there is no pre-training: give --pretrained"):
        make_plan(workspace, crystals, settings)
    assert make_plan(workspace, crystals, settings.model_copy(update={"freeze": False})).pretrained is None
    frozen = CONFIGS["tiny"]._replace(freeze=True)
    with pytest.raises(ModelInputError, match="there is no pre-training"):
        train_network(frozen, crystals.graphs, crystals.labels, [], 0, device="cpu")


def test_trees_learn_from_reports_without_a_crystal_where_that_is_asked_for(trained, tmp_path, rows):
    settings = SETTINGS.model_copy(update={"reports": True, "ensemble": 1})
    workspace = write(Workspace(tmp_path), rows)
    crystals = read_crystals(workspace, NETWORK)
    with pytest.raises(InputError, match=r"superconductors\.parquet.*meissner refresh"):
        make_plan(workspace, crystals, settings)
    reports = [*MEASURED, MEASURED[0] | {"formula": "Nb3Ge", "tc_kelvin": 23.0}]
    complete = [dict.fromkeys(MEASURED_SCHEMA.names) | found for found in reports]
    workspace.write_table("supercon/superconductors.parquet", pa.Table.from_pylist(complete, schema=MEASURED_SCHEMA))
    with pytest.raises(InputError, match="no-trees"):
        make_plan(workspace, crystals, settings.model_copy(update={"trees": False}))
    plan = make_plan(workspace, crystals, settings)
    assert plan.version != trained[1].version
    for part in plan.parts:
        (score_part if part.kind == "baselines" else train_part)(workspace.url, settings, plan, part)
    gather(workspace, settings, plan)
    ensemble = load_s2snet(workspace, plan.version)
    assert ensemble.trees[0].reported is not None
    assert load_s2snet(trained[0]).trees[0].reported is None
    titanium_nitride = cubic("face", ("Ti", "N"), 4.24)
    assert 0 < ensemble.predict([titanium_nitride]).probability[0] < 1
    contributions = attribute_trees(ensemble.trees, crystal_features(crystal_arrays(titanium_nitride)), 1.0)
    assert contributions.names[-1] == REPORTED
    assert len(contributions.names) == len(contributions.features) == len(contributions.contributions) == 403
    known, unknown = (read_held_out(workspace, "s2snet", plan.version).origin(None, f) for f in ("Nb3Ge", "TiN"))
    assert (known, unknown) == ("in-sample", "ensemble")


def test_version_follows_data_and_settings(trained, tmp_path, rows):
    _, plan, _ = trained
    workspace = write(Workspace(tmp_path), rows[:-2])
    crystals = read_crystals(workspace, NETWORK)
    other_data = make_plan(workspace, crystals, SETTINGS)
    other_seed = make_plan(workspace, crystals, SETTINGS.model_copy(update={"seed": 1}))
    assert len({plan.version, other_data.version, other_seed.version}) == 3


@pytest.mark.usefixtures("prefect_harness")
def test_the_flow_trains_once_and_reuses_what_is_there(tmp_path, rows):
    from flows.train_s2snet import train_s2snet

    workspace = write(Workspace(tmp_path), rows)
    settings = SETTINGS.model_copy(update={"splits": ("chemical-system",), "ensemble": 1})
    report = train_s2snet(workspace.url, settings, 1)
    assert report.stage == "train-s2snet"
    assert report.rows_refused == 1
    assert "roc_auc chemical-system" in report.counts
    assert train_s2snet(workspace.url, settings, 1).reused
