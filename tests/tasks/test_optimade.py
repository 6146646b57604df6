"""OPTIMADE databases: the reference server with structures of ours, and answers that the reference would not give."""

import json

import pytest
from optimade.adapters.structures.pymatgen import from_pymatgen
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from tasks.crystals import plain_structure, structure_hash
from tasks.exceptions import InputError, RemoteError
from tasks.optimade import FIELDS, OptimadeSource, structure_from_optimade
from tasks.settings import FetchSettings, OptimadeSettings
from tests.postgres import free_port
from tests.tasks.local_servers import scripted, serve

STRUCTURES = {
    "agm1": Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.05), ["Al"], [[0, 0, 0]]),
    "agm2": Structure.from_spacegroup(
        "P6/mmm", Lattice.hexagonal(3.086, 3.524), ["Mg", "B"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]]
    ),
    "agm3": Structure.from_spacegroup("Im-3m", Lattice.cubic(3.28), [{"Nb": 0.5, "Ti": 0.5}], [[0, 0, 0]]),
    "agm4": Structure.from_spacegroup("Im-3m", Lattice.cubic(3.3), [{"Nb": 0.9}], [[0, 0, 0]]),
    "agm5": Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.35), ["Po"], [[0, 0, 0]]),
}


def attributes(structure):
    """Attributes of an entry; the library writes ordered structures only, so sites shared by species are put in."""
    whole = structure.copy()
    for index, site in enumerate(structure):
        whole[index] = min(site.species)
    found = from_pymatgen(whole).model_dump(mode="json", exclude_none=True)
    if not structure.is_ordered:
        amounts = {str(element): amount for element, amount in structure[0].species.items()}
        amounts |= {"vacancy": 1 - sum(amounts.values())} if sum(amounts.values()) < 1 else {}
        shared = {"name": "M", "chemical_symbols": list(amounts), "concentration": list(amounts.values())}
        found |= {"species": [shared], "species_at_sites": ["M"] * len(structure), "structure_features": ["disorder"]}
    return found | {"last_modified": "2026-01-01T00:00:00Z"}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The address of the reference server, under the prefix of Alexandria."""
    folder = tmp_path_factory.mktemp("optimade")
    lines = [{"x-optimade": {"meta": {"api_version": "1.2.0"}}}]
    for number, (name, structure) in enumerate(STRUCTURES.items()):
        values = attributes(structure) | {"hull_distance": 0.01 * number, "band_gap": 0.0}
        lines.append({"id": name, "type": "structures", "attributes": values})
    (folder / "structures.jsonl").write_text("\n".join(map(json.dumps, lines)))
    port = free_port()
    fields = [{"name": n, "type": "float", "unit": "eV", "description": n} for n in ("hull_distance", "band_gap")]
    configuration = {
        "database_backend": "mongomock",
        "insert_test_data": False,
        "insert_from_jsonl": str(folder / "structures.jsonl"),
        "base_url": f"http://127.0.0.1:{port}",
        "provider": {"prefix": "alexandria", "name": "Alexandria", "description": "", "homepage": None},
        "provider_fields": {"structures": fields},
        "page_limit_max": 10,
        "log_dir": str(folder),
    }
    (folder / "server.json").write_text(json.dumps(configuration))
    file = str(folder / "server.json")
    with serve("optimade.server.main:app", "/v1/info", folder / "log", port, OPTIMADE_CONFIG_FILE=file) as url:
        yield url


def settings(**asked):
    return FetchSettings(
        retries=0, backoff_seconds=0.01, timeout_seconds=20, optimade=OptimadeSettings(page=2).model_copy(update=asked)
    )


def rows(url, **asked):
    pages = list(OptimadeSource(f"optimade:{url}", settings(**asked)).pages(None))
    assert all(page.next for page in pages[:-1])
    assert pages[-1].next is None
    return [row for page in pages for row in page.rows]


def test_structures_come_back_as_they_went(database):
    found = {row["crystal_id"].removeprefix("alexandria-"): row for row in rows(database)}
    assert found.keys() == STRUCTURES.keys()
    for name, structure in STRUCTURES.items():
        again = plain_structure(structure_from_optimade(found[name]["text"]))
        assert structure_hash(again) == structure_hash(structure), name
    assert set(json.loads(found["agm1"]["text"])) == set(FIELDS)
    assert {key: value for key, value in found["agm2"].items() if key != "text"} == {
        "crystal_id": "alexandria-agm2",
        "kind": "optimade",
        "energy_above_hull_ev": 0.01,
        "band_gap_ev": 0.0,
        "theoretical": None,
        "crystal_source": "optimade:alexandria",
        "reference": f"{database}/v1/structures/agm2",
        "licence": "CC BY 4.0",
    }


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"filter": 'elements HAS ALL "Mg", "B"'}, ["agm2"]),
        ({"filter": "_alexandria_hull_distance <= 0.015"}, ["agm1", "agm2"]),
        ({"filter": 'NOT elements HAS ANY "Nb", "Ti"', "page": 10}, ["agm1", "agm2", "agm5"]),
    ],
    ids=["elements", "provider's own field", "one page"],
)
def test_filters(database, asked, names):
    assert [row["crystal_id"] for row in rows(database, **asked)] == [f"alexandria-{name}" for name in names]


def test_pages_go_on_from_a_cursor(database):
    source = OptimadeSource(f"optimade:{database}/v1/", settings())
    first = next(source.pages(None))
    assert first.total == 5
    rest = [row["crystal_id"] for page in source.pages(first.next) for row in page.rows]
    assert rest == ["alexandria-agm3", "alexandria-agm4", "alexandria-agm5"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"filter": "_alexandria_unknown > 2"}, r"refuses the request \(400\): '_alexandria_unknown' is not a known"),
        ({"page": 50}, r"\(403\): Max allowed page_limit is 10.*fetch.optimade.page"),
    ],
    ids=["unknown field", "page too large"],
)
def test_what_the_database_refuses(database, asked, sentence):
    with pytest.raises(InputError, match=sentence):
        rows(database, **asked)


def test_a_filter_is_checked_at_the_door():
    with pytest.raises(InputError, match="filter 'elements HAS' is no OPTIMADE filter: Unable to parse"):
        OptimadeSource("optimade:http://127.0.0.1:1", settings(filter="elements HAS"))


def test_no_database_at_an_address(database):
    with pytest.raises(InputError, match=r"\(404\).*no OPTIMADE database is at this address"):
        rows(f"{database}/nowhere")
    with pytest.raises(InputError, match="names no database"):
        OptimadeSource("optimade:", settings())


def entry(**changes):
    return {"id": "1", "type": "structures", "attributes": attributes(STRUCTURES["agm1"]) | changes}


def info(prefix="oqmd", **values):
    return 200, {"data": {"attributes": values}, "meta": {"provider": {"prefix": prefix}}}, {}


def page(*entries, following=None, **meta):
    return 200, {"data": list(entries), "links": {"next": following}, "meta": meta}, {}


@pytest.mark.parametrize(
    ("declared", "licence"),
    [
        ({}, "CC BY 4.0"),
        ({"available_licenses": ["CC-BY-NC-4.0", "ODC-By-1.0"]}, "CC BY-NC 4.0 or ODC-By-1.0"),
        ({"available_licenses": ["CC0-1.0"]}, "CC0 1.0"),
    ],
)
def test_energy_licence_and_name_of_a_provider(declared, licence):
    with scripted(info(**declared), page(entry(_oqmd_stability=-0.02, _oqmd_band_gap=1))) as (url, seen):
        (row,) = rows(url)
    assert (row["crystal_id"], row["energy_above_hull_ev"], row["band_gap_ev"]) == ("oqmd-1", -0.02, 1.0)
    assert row["licence"] == licence
    assert "_oqmd_stability" in seen[1].path


def test_a_provider_that_nobody_knows():
    link = {"license": {"href": "https://example.org/terms"}}
    with scripted(info("new", **link), page(entry())) as (url, _):
        (row,) = rows(url)
    assert (row["energy_above_hull_ev"], row["licence"]) == (None, "https://example.org/terms")


def test_the_materials_project_nests_its_energy():
    nested = {"gga_gga+u": {"energy_above_hull": 0.03}, "last_updated": {}}
    with scripted(info("mp"), page(entry(_mp_stability=nested))) as (url, _):
        assert rows(url)[0]["energy_above_hull_ev"] == 0.03


@pytest.mark.parametrize("following", ["URL/next", {"href": "/next"}], ids=["text", "object, relative"])
def test_kinds_of_links(following):
    with scripted(info(), page(entry(), following=following), page(entry())) as (url, seen):
        assert len(rows(url)) == 2
    assert seen[2].path == "/next"


def test_a_database_that_leads_in_a_circle():
    circle = page(entry(), following="URL/next")
    with scripted(info(), circle, circle, circle) as (url, _), pytest.raises(RemoteError, match="leads in a circle"):
        rows(url)


@pytest.mark.parametrize("body", [{"data": None}, {"errors": ["?"]}])
def test_what_is_no_page(body):
    with scripted(info(), (200, body, {})) as (url, _), pytest.raises(RemoteError, match="no list of structures"):
        rows(url)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"structure_features": ["assemblies"]}, "groups of sites that exclude each other"),
        ({"structure_features": ["site_attachments"]}, "hang on a site"),
        ({"structure_features": ["implicit_atoms"]}, "atoms without positions"),
        ({"nperiodic_dimensions": 2, "dimension_types": [1, 1, 0]}, "is periodic in 2 directions"),
        ({"cartesian_site_positions": None}, "lacks its cell or positions"),
        ({"cartesian_site_positions": [[0, 0, None]] * 4}, "lacks its cell or positions"),
        ({"lattice_vectors": [[1, 0, 0], [0, 1, 0], None]}, "lacks its cell or positions"),
    ],
    ids=["assemblies", "attachments", "implicit", "slab", "positions", "a coordinate", "a vector"],
)
def test_entries_that_are_no_crystal(changes, reason):
    with pytest.raises(InputError, match=reason):
        structure_from_optimade(json.dumps(attributes(STRUCTURES["agm1"]) | changes))


def test_an_entry_that_says_little():
    values = attributes(STRUCTURES["agm1"])
    little = {name: values[name] for name in ("lattice_vectors", "cartesian_site_positions", "species_at_sites")}
    assert structure_from_optimade(json.dumps(little)).reduced_formula == "Al"


@pytest.fixture
def providers(monkeypatch):
    """The consortium's list of providers and a provider's index, on loopback."""
    monkeypatch.setattr("optimade.utils.PROVIDER_LIST_URLS", ["http://127.0.0.1:1", "URL"])

    def start(*children):
        links = [
            {
                "id": name,
                "type": "links",
                "attributes": {
                    "name": name,
                    "description": name,
                    "base_url": address,
                    "homepage": None,
                    "link_type": "child",
                },
            }
            for name, address in children
        ]
        known = {"id": "abc", "type": "links", "attributes": {"base_url": "URL/index"}}
        return [(200, {"data": [known]}, {}), (200, {"data": links}, {})]

    return start


def ask(monkeypatch, name, *answers):
    with scripted(*answers) as (url, seen):
        monkeypatch.setattr("optimade.utils.PROVIDER_LIST_URLS", [f"{url}/providers"])
        return [row for found in OptimadeSource(name, settings()).pages(None) for row in found.rows], seen


def test_a_provider_by_name(monkeypatch, providers):
    found, seen = ask(monkeypatch, "optimade:abc", *providers(("one", "URL/db")), info("abc"), page(entry()))
    assert [row["crystal_id"] for row in found] == ["abc-1"]
    paths = [request.path.partition("?")[0] for request in seen]
    assert paths == ["/providers", "/index/v1/links", "/db/v1/info", "/db/v1/structures"]


def test_one_of_several_databases(monkeypatch, providers):
    several = providers(("one", "URL/1"), ("two", "URL/2"))
    _, seen = ask(monkeypatch, "optimade:abc/two", *several, info("abc"), page(entry()))
    assert seen[2].path == "/2/v1/info"
    for name in ("optimade:abc", "optimade:abc/three"):
        with pytest.raises(InputError, match=f"{name} is not one database; abc has optimade:abc/one, optimade:abc/two"):
            ask(monkeypatch, name, *several)


def test_a_provider_that_is_not_there(monkeypatch, providers):
    with pytest.raises(InputError, match="optimade:xyz is neither an address nor one of the providers abc"):
        ask(monkeypatch, "optimade:xyz", *providers(("one", "URL")))
    with pytest.raises(InputError, match="provider abc has no database at present"):
        ask(monkeypatch, "optimade:abc", *providers())
    index, _ = providers()
    with pytest.raises(RemoteError, match="provider abc cannot be listed"):
        ask(monkeypatch, "optimade:abc", index, (500, {}, {}))
