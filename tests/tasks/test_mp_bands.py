"""The Materials Project's open data: real Delta tables in emmet's schema, on disk and on S3, and the older files."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from emmet.core.arrow import arrowize
from emmet.core.band_theory import ElectronicBS
from pymatgen.core import Lattice, Structure
from pymatgen.electronic_structure.bandstructure import BandStructure
from pymatgen.electronic_structure.core import Spin

from tasks.exceptions import InputError, RemoteError
from tasks.mp_bands import KEPT_BANDS, read_mp_bands, read_mp_files
from tasks.mp_identifiers import material_number, table_identifier
from tests.tasks.lattice_models import FCC, HEXAGONAL, SIMPLE_CUBIC, coarse_points, free_electrons, lattice_bands

SCHEMA = pa.schema(arrowize(ElectronicBS))
CRYSTALS = {
    "mp-30": (FCC, (6, 6, 6), "Cu", 1),
    "mp-72": (HEXAGONAL, (6, 6, 4), "Ti", 2),
    "mp-131": (SIMPLE_CUBIC, (4, 4, 4), "Po", 1),
}


def crystal(lattice, element):
    return Structure(Lattice(lattice), [element], [[0, 0, 0]])


def plane_waves(name, lattice, grid, element, spins):
    """A row as emmet's ElectronicBS gives it: free electrons in an empty lattice, a second spin 0.3 eV higher."""
    kpoints, _ = coarse_points(lattice, grid)
    up = free_electrons(lattice, kpoints, 12)
    structure = crystal(lattice, element)
    document = ElectronicBS(
        identifier=table_identifier(name),
        run_type="GGA",
        qpoints=kpoints.tolist(),
        lattice_rec=structure.lattice.reciprocal_lattice.matrix.tolist(),
        efermi=float(np.median(up)),
        band_gap=0.0,
        is_direct=False,
        spin_up_bands=up.tolist(),
        spin_down_bands=(up + 0.3).tolist() if spins == 2 else None,
    )
    row = document.model_dump(mode="json")
    return {**{name: row.get(name) for name in SCHEMA.names}, "structure": structure.as_dict(), "labels_dict": []}


@pytest.fixture(scope="module")
def rows():
    return {name: plane_waves(name, *crystal) for name, crystal in CRYSTALS.items()}


def write_table(url, rows, **options):
    write_deltalake(url, pa.Table.from_pylist(list(rows), schema=SCHEMA), **options)
    return url


def read_all(batches):
    batches = list(batches)
    bands = {one.material_id: one for batch in batches for one in batch.bands}
    return bands, {one.item: one for batch in batches for one in batch.rejected}


def assert_as_written(bands, row):
    assert bands.lattice.tolist() == row["structure"]["lattice"]["matrix"]
    assert bands.kpoints.tolist() == row["qpoints"]
    assert bands.efermi == row["efermi"]
    channels = [row[spin] for spin in ("spin_up_bands", "spin_down_bands") if row[spin] is not None]
    assert bands.energies.tolist() == channels


def test_table_comes_back_with_its_grids_and_weights(tmp_path, rows):
    bands, rejected = read_all(read_mp_bands(write_table(str(tmp_path), rows.values()), identifiers=list(rows)))
    assert rejected == {}
    assert list(bands) == list(CRYSTALS)
    for name, (lattice, grid, element, spins) in CRYSTALS.items():
        assert_as_written(bands[name], rows[name])
        assert bands[name].species == (element,)
        assert bands[name].grid.tolist() == list(grid)
        assert len(bands[name].energies) == spins
        np.testing.assert_allclose(bands[name].weights, coarse_points(lattice, grid)[1], atol=1e-14)


def test_structures_as_strings_are_read(tmp_path, rows):
    table = pa.Table.from_pylist(list(rows.values()), schema=SCHEMA)
    texts = pa.array([json.dumps(row["structure"]) for row in rows.values()])
    place = SCHEMA.names.index("structure")
    write_deltalake(str(tmp_path), table.set_column(place, "structure", texts))
    bands, rejected = read_all(read_mp_bands(str(tmp_path)))
    assert rejected == {}
    assert_as_written(bands[table_identifier("mp-72")], rows["mp-72"])


def test_other_runs_and_insulators_are_left_out(tmp_path, rows):
    kept = rows["mp-30"]
    others = {
        table_identifier("lines"): {"path_convention": "setyawan_curtarolo"},
        "insulator": {"band_gap": 3.1},
        "narrow": {"band_gap": 0.2},
        "unknown": {"band_gap": None},
    }
    table = [kept, *({**kept, "identifier": name, **changes} for name, changes in others.items())]
    url = write_table(str(tmp_path), table, partition_by=["path_convention"])
    assert set(read_all(read_mp_bands(url))[0]) == {kept["identifier"], "narrow", "unknown"}
    assert "insulator" in read_all(read_mp_bands(url, max_gap_ev=None))[0]
    bands, rejected = read_all(read_mp_bands(url, identifiers=["mp-30", "insulator", "lines", "mp-999"]))
    assert set(bands) == {"mp-30"}
    reasons = {name: one.reason.removeprefix(f"{url} has ") for name, one in rejected.items()}
    lines = f"lines ({table_identifier('lines')})"
    assert reasons == {
        "insulator": "a gap of 3.100 eV for insulator (insulator), above the limit of 0.2 eV",
        "lines": f"no uniform run of {lines}, only one along lines (setyawan_curtarolo)",
        "mp-999": "no run of mp-999 (aaaaabml)",
    }


def test_batches_are_streamed(tmp_path, rows):
    url = str(tmp_path)
    for start in range(0, 90, 30):
        some = [{**rows["mp-131"], "identifier": table_identifier(str(start + i))} for i in range(30)]
        write_table(url, some, mode="append")
    batches = read_mp_bands(url, batch=40)
    assert len(next(batches).bands) == 40
    assert [len(batch.bands) for batch in batches] == [40, 10]


def test_bad_rows_are_told_and_the_rest_goes_on(tmp_path, rows):
    good = rows["mp-131"]
    ragged = [*good["spin_up_bands"][:-1], good["spin_up_bands"][-1][1:]]
    short = {name: good[name][1:] for name in ("qpoints",)} | {
        "spin_up_bands": [band[1:] for band in good["spin_up_bands"]]
    }
    changes = {
        "nostructure": {"structure": None},
        "noefermi": {"efermi": None},
        "ragged": {"spin_up_bands": ragged},
        "hole": {"spin_up_bands": [[None, *band[1:]] for band in good["spin_up_bands"]]},
        "short": short,
        "outside": {"efermi": 500.0},
        "shapes": {"spin_up_bands": good["spin_up_bands"][:3], "spin_down_bands": good["spin_up_bands"]},
        "cell": {"reciprocal_lattice": [[1.0, 0, 0], [0, 1, 0], [0, 0, 2]]},
        "empty": {"spin_up_bands": []},
    }
    table = [{**good, "identifier": name, **change} for name, change in changes.items()]
    bands, rejected = read_all(read_mp_bands(write_table(str(tmp_path), [*table, good, good])))
    assert set(bands) == {good["identifier"]}
    sentences = {
        "nostructure": "no structure",
        "noefermi": "no efermi",
        "ragged": "spin_up_bands is not a rectangular table of numbers, it has lists of 9 to 10",
        "hole": "12 numbers of energies are not finite",
        "short": "points missing",
        "outside": "E_F = 500.000 eV is outside all bands",
        "shapes": "the spins have bands of the shapes",
        "cell": "the reciprocal lattice is not that of the structure",
        "empty": "the spins have bands of the shapes []",
        good["identifier"]: "more than once",
    }
    assert set(rejected) == set(sentences)
    for name, sentence in sentences.items():
        assert sentence in rejected[name].reason


def test_only_bands_near_the_fermi_level_are_kept(tmp_path, rows):
    row = {**rows["mp-131"]}
    deep = [[-500.0 - i] * len(row["qpoints"]) for i in range(KEPT_BANDS)]
    bands, _ = read_all(
        read_mp_bands(write_table(str(tmp_path), [{**row, "spin_up_bands": deep + row["spin_up_bands"]}]))
    )
    energies = bands[row["identifier"]].energies[0]
    assert energies.shape[0] == KEPT_BANDS
    assert energies[-12:].tolist() == row["spin_up_bands"]
    assert energies[:-12].tolist() == deep[: KEPT_BANDS - 12]


def test_points_off_gamma_and_whole_grids_have_their_weights(tmp_path, rows):
    made = {
        "shifted": lattice_bands(SIMPLE_CUBIC, (4, 4, 4), [-1.0, 1.0], shift=(0.5, 0.5, 0.5)),
        "whole": lattice_bands(HEXAGONAL, (4, 4, 2), [-1.0, 1.0], full=True),
    }
    table = [
        {
            **rows["mp-131"],
            "identifier": name,
            "structure": crystal(one.lattice, "Cu").as_dict(),
            "reciprocal_lattice": None,
            "qpoints": one.kpoints.tolist(),
            "efermi": 0.0,
            "spin_up_bands": one.energies[0].tolist(),
        }
        for name, one in made.items()
    ]
    bands, rejected = read_all(read_mp_bands(write_table(str(tmp_path), table)))
    assert rejected == {}
    for name, one in made.items():
        assert bands[name].grid.tolist() == one.grid.tolist()
        np.testing.assert_allclose(bands[name].weights, one.weights, atol=1e-14)


def test_grids_and_weights_of_real_runs_are_found(tmp_path, shared_data):
    runs = pq.read_table(shared_data / "gpaw_bands" / "bands.parquet").slice(0, 40).to_pylist()
    table = [
        dict.fromkeys(SCHEMA.names)
        | {
            "identifier": run["material_id"],
            "structure": Structure.from_str(run["structure"], "json").as_dict(),
            "path_convention": "unknown",
            "qpoints": run["kpoints"],
            "efermi": run["efermi"],
            "spin_up_bands": run["energies"][0],
            "spin_down_bands": run["energies"][1] if len(run["energies"]) == 2 else None,
        }
        for run in runs
    ]
    bands, rejected = read_all(read_mp_bands(write_table(str(tmp_path), table)))
    assert rejected == {}
    for run in runs:
        found = bands[run["material_id"]]
        assert found.grid.tolist() == run["grid"]
        np.testing.assert_allclose(found.weights, run["weights"], atol=1e-9)


def test_files_without_rows_that_count_are_never_opened(tmp_path, rows):
    kept = rows["mp-30"]
    url = write_table(str(tmp_path), [kept])
    first = set(tmp_path.glob("*.parquet"))
    write_table(url, [{**kept, "identifier": "lines", "path_convention": "hinuma"}], mode="append")
    write_table(url, [{**kept, "identifier": "insulator", "band_gap": 2.0}], mode="append")
    write_table(url, [{**kept, "identifier": "zzzzzzzz"}], mode="append")
    for path in set(tmp_path.glob("*.parquet")) - first:
        path.write_bytes(b"no Parquet")
    bands, rejected = read_all(read_mp_bands(url, identifiers=["mp-30"]))
    assert rejected == {}
    assert_as_written(bands["mp-30"], kept)
    with pytest.raises(InputError, match="damaged"):
        list(read_mp_bands(url))


def test_s3_is_read_with_few_requests(s3_server, rows, caplog):
    url = f"{s3_server('parsed')}/core/bandstructures"
    row, numbers = rows["mp-131"], list(range(80))
    for half in (numbers[:40], numbers[40:]):
        some = [{**row, "identifier": table_identifier(str(number))} for number in half]
        write_table(url, some, mode="append", storage_options={"AWS_ALLOW_HTTP": "true"})
    with caplog.at_level(logging.INFO, logger="werkzeug"):
        caplog.clear()
        bands, rejected = read_all(read_mp_bands(url))
    requests = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
    assert rejected == {}
    assert len(bands) == len(numbers)
    assert_as_written(bands[table_identifier("39")], row)
    assert 5 <= len(requests) <= 20, requests  # log and two files, however many rows


def test_parquet_files_without_a_log_are_read(tmp_path, s3_server, rows):
    import fsspec

    table = pa.Table.from_pylist(list(rows.values()), schema=SCHEMA)
    for url in (str(tmp_path / "plain"), f"{s3_server('plain')}/bands"):
        files, root = fsspec.url_to_fs(url)
        files.makedirs(root, exist_ok=True)
        with files.open(f"{root}/part-0.parquet", "wb") as file:
            pq.write_table(table, file)
        bands, rejected = read_all(read_mp_bands(url, identifiers=["mp-72"]))
        assert rejected == {}
        assert_as_written(bands["mp-72"], rows["mp-72"])


def test_tables_that_cannot_be_used_are_refused(tmp_path, rows):
    with pytest.raises(InputError, match="does not exist"):
        read_mp_bands(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="neither a Delta table nor Parquet files"):
        read_mp_bands(str(tmp_path))
    url = write_table(str(tmp_path / "table"), rows.values())
    with pytest.raises(InputError, match="batch=0 must be at least 1"):
        read_mp_bands(url, batch=0)
    with pytest.raises(InputError, match="'Mp-1x' is no task id"):
        read_mp_bands(url, identifiers=["mp-1", "Mp-1x"])
    next(Path(url).glob("*.parquet")).write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="damaged"):
        list(read_mp_bands(url))
    write_deltalake(str(tmp_path / "other"), pa.table({"identifier": ["a"]}))
    with pytest.raises(InputError, match=r"lacks structure, qpoints, .*; its columns are \['identifier'\]"):
        read_mp_bands(str(tmp_path / "other"))


def test_a_silent_server_is_a_remote_error():
    options = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_SKIP_SIGNATURE": "true", "max_retries": "0"}
    with pytest.raises(RemoteError, match="s3://nobody/table does not answer"):
        read_mp_bands("s3://nobody/table", storage_options=options)


def pymatgen_document(row, gap=None):
    structure = Structure.from_dict(row["structure"])
    bands = {Spin.up: np.array(row["spin_up_bands"])}
    if row["spin_down_bands"]:
        bands[Spin.down] = np.array(row["spin_down_bands"])
    reciprocal = structure.lattice.reciprocal_lattice
    made = BandStructure(row["qpoints"], bands, reciprocal, row["efermi"], structure=structure).as_dict()
    made["structure"] = structure.as_dict()
    return made | ({"band_gap": {"energy": gap, "direct": False, "transition": None}} if gap else {})


@pytest.mark.parametrize("place", ["local", "s3"])
def test_old_files_are_read(tmp_path, s3_server, rows, place):
    import fsspec

    url = str(tmp_path / "bandstructures") if place == "local" else f"{s3_server('old')}/bandstructures"
    files, root = fsspec.url_to_fs(url)
    files.makedirs(root, exist_ok=True)
    wide = pymatgen_document(rows["mp-30"], gap=2.5)
    documents = {name: json.dumps(pymatgen_document(row)) for name, row in rows.items()}
    documents["mp-72"] = json.dumps([{"task_id": "mp-72", "data": json.loads(documents["mp-72"])}])
    documents |= {"mp-1": json.dumps(wide), "mp-2": '{"bands": ', "mp-3": '{"structure": {}}'}
    documents["mp-5"] = json.dumps({**wide, "band_gap": None, "structure": None})
    contents = {name: gzip.compress(text.encode()) for name, text in documents.items()}
    contents["mp-4"] = contents["mp-30"][:200]
    for name, content in contents.items():
        files.pipe_file(f"{root}/{name}.json.gz", content)
    batches = list(read_mp_files(url, [*contents, "mp-6"], batch=4, threads=2))
    assert [len(batch.bands) + len(batch.rejected) for batch in batches] == [4, 4, 1]
    bands, rejected = read_all(batches)
    assert list(bands) == list(rows)
    for name, row in rows.items():
        assert_as_written(bands[name], row)
        assert bands[name].grid.tolist() == list(CRYSTALS[name][1])
    sentences = {
        "mp-1": "the gap of 2.500 eV is above 0.2 eV",
        "mp-2": "cut short or not JSON",
        "mp-3": "not a band structure as pymatgen writes it",
        "mp-4": "cut short or not JSON",
        "mp-5": "has no structure",
        "mp-6": "There is no file",
    }
    assert {name: sentence in rejected[name].reason for name, sentence in sentences.items()} == dict.fromkeys(
        sentences, True
    )
    assert not any(rejection.retryable for rejection in rejected.values())


@pytest.mark.parametrize(
    ("task_id", "identifier"),
    [
        ("mp-149", "aaaaaaft"),
        ("149", "aaaaaaft"),
        ("mp-aaaaaaft", "aaaaaaft"),
        ("aaaaaaft", "aaaaaaft"),
        ("mvc-12", "aaaaaaam"),
        ("mp-3347530", "aaahilze"),
    ],
)
def test_identifiers(task_id, identifier):
    assert table_identifier(task_id) == identifier


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("aaaaaaft", "mp-149"),
        ("mp-996990", "mp-996990"),
        ("aaahilzd", "mp-3347529"),
        ("aaahilze", None),  # of emmet-core's new ones, which have no number
        ("niobiums", None),
        ("lines", None),
        ("MgB2", None),
        ("mp-12x", None),
    ],
)
def test_numbers_of_identifiers(name, number):
    assert material_number(name) == number
    assert number is None or table_identifier(number) in {name, table_identifier(name)}


@pytest.mark.parametrize("wrong", ["MP-ABC", "mp 149", "mp-12x", ""])
def test_wrong_identifiers_are_refused(wrong):
    with pytest.raises(InputError, match="no task id"):
        table_identifier(wrong)
