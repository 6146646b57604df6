"""The Materials Project through its own client, against a server of its own kind: fields, pages, keys and faults."""

import json
from types import SimpleNamespace

import pytest
import requests
from pydantic import SecretStr
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from tasks.crystal_sources import fetch_source
from tasks.crystals import collect_crystals
from tasks.exceptions import InputError, RemoteError
from tasks.materials_project import FIELDS, SYSTEMS_A_QUERY, MaterialsProjectSource
from tasks.settings import CrystalSettings, FetchSettings, MaterialsProjectSettings
from tasks.workspace import Workspace
from tests.postgres import free_port
from tests.tasks.local_servers import scripted
from tests.tasks.materials_project import DIBORIDE, KEY, materials_project


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with materials_project(tmp_path_factory.mktemp("mp")) as url:
        yield url


@pytest.fixture
def project(server):
    """The stand-in's address, its log of requests emptied, and a way to ask for faults."""
    requests.get(f"{server}/seen")
    return SimpleNamespace(
        url=server,
        fail=lambda *faults: requests.post(f"{server}/faults", json=list(faults)).raise_for_status(),
        seen=lambda: requests.get(f"{server}/seen").json(),
    )


def source(url, key=KEY, retries=2, **asked):
    settings = FetchSettings(
        retries=retries,
        backoff_seconds=0.01,
        timeout_seconds=20,
        materials_project=MaterialsProjectSettings(endpoint=url, **asked),
    )
    return MaterialsProjectSource(settings, SecretStr(key))


def names(url, cursor=None, **asked):
    return [row["crystal_id"] for page in source(url, **asked).pages(cursor) for row in page.rows]


def test_what_is_asked_and_what_comes(project):
    (page,) = source(project.url).pages(None)
    rows = {row["crystal_id"]: row for row in page.rows}
    assert list(rows) == ["mp-134", "mp-2217", "mp-22862", "mp-763", "mp-910"]
    assert Structure.from_dict(json.loads(rows["mp-763"]["text"])) == DIBORIDE
    assert {key: value for key, value in rows["mp-2217"].items() if key != "text"} == {
        "crystal_id": "mp-2217",
        "kind": "json",
        "energy_above_hull_ev": 0.4,
        "band_gap_ev": 0.0,
        "theoretical": True,
        "crystal_source": "Materials Project",
        "reference": "https://materialsproject.org/materials/mp-2217 (database 2026.10.1)",
        "licence": "CC BY-NC 4.0",
    }
    assert rows["mp-763"]["licence"] == "CC BY 4.0"
    (asked,) = project.seen()
    assert asked["key"] == KEY
    assert asked["query"]["_fields"] == ",".join(FIELDS)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"chemical_systems": ("C-Nb", "Al")}, ["mp-134", "mp-2217", "mp-910"]),
        ({"chemical_systems": ("Nb-C",)}, ["mp-2217", "mp-910"]),
        ({"elements": ("Nb", "C"), "max_above_hull_ev": 0.1}, ["mp-910"]),
        ({"max_band_gap_ev": 0.2, "max_above_hull_ev": 0.0}, ["mp-134", "mp-763", "mp-910"]),
        ({"elements": ("Xe",)}, []),
    ],
    ids=["systems", "order of elements", "elements", "stable metals", "nothing"],
)
def test_filters(project, asked, expected):
    assert names(project.url, **asked) == expected


def test_pages_are_few_and_go_on_from_a_cursor(project):
    pages = list(source(project.url, page=2).pages(None))
    assert [len(page.rows) for page in pages] == [2, 2, 1]
    assert [page.next for page in pages] == ["0:2", "0:3", None]
    assert len(project.seen()) == 3
    assert names(project.url, cursor="0:3", page=2) == ["mp-910"]


OTHERS = [element.symbol for element in Element if element.Z <= 35 and element.symbol not in ("Ti", "V")]


def test_many_chemical_systems_are_asked_in_batches():
    many = [f"Al-{a}" for a in ("B", "C", "N")] * 30 + [f"{a}-{b}" for a in ("Nb", "Ti", "V") for b in OTHERS]
    batches = source("http://127.0.0.1", chemical_systems=("Cu-*", *many))._batches()
    assert batches[0] == {"chemsys": ["*-Cu"]}
    assert max(len(batch["chemsys"]) for batch in batches) == SYSTEMS_A_QUERY
    assert sum(len(batch["chemsys"]) for batch in batches) == 1 + len({*map(frozenset, (m.split("-") for m in many))})


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504])
def test_a_passing_fault_is_waited_for(project, fault):
    project.fail(fault, fault)
    assert len(names(project.url)) == 5
    assert len(project.seen()) == 3


@pytest.mark.parametrize("fault", [429, 503])
def test_a_fault_that_stays_is_one_sentence(project, fault):
    project.fail(fault, fault)
    with pytest.raises(RemoteError, match=f"The Materials Project answers {fault} .* after 2 tries; try again later"):
        names(project.url, retries=1)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [(403, "check the key in MEISSNER_MP_API_KEY.*reading much in a short time is blocked"), (400, r"\(400\)")],
)
def test_a_refusal_is_not_asked_again(project, fault, sentence):
    project.fail(fault)
    with pytest.raises(InputError, match=sentence):
        names(project.url)
    assert len(project.seen()) == 1


def test_a_page_about_maintenance(project):
    project.fail("html")
    with pytest.raises(RemoteError, match="answer is not understood"):
        names(project.url)


def test_a_wrong_key_is_one_sentence_without_the_key(project):
    wrong = KEY[::-1]
    with pytest.raises(
        InputError, match=r"refuses the request \(401\): Invalid key …; check the key in MEISS"
    ) as raised:
        names(project.url, key=wrong)
    assert wrong not in str(raised.value)
    assert wrong not in repr(raised.value.__cause__)


@pytest.mark.parametrize(("key", "reason"), [("", "is not given"), ("abc", "has 3 characters in place of 32")])
def test_a_key_that_cannot_be_one_asks_nothing(key, reason):
    with pytest.raises(InputError, match=f"The Materials Project's key {reason}; check the key in MEISSNER_MP_API_KEY"):
        names("http://127.0.0.1:1", key=key)
    with pytest.raises(InputError, match="is not given"):
        MaterialsProjectSource(FetchSettings(), None).check()


@pytest.mark.parametrize("asked", [{"elements": ("Mg", "Bx")}, {"chemical_systems": ("Mg-Bx",)}])
def test_what_is_no_element_asks_nothing(asked):
    with pytest.raises(InputError, match=f"fetch.materials_project.{next(iter(asked))} names 'Bx'"):
        source("http://127.0.0.1:1", **asked)


def test_a_fetch_writes_the_answer_and_not_the_key(project, tmp_path, caplog):
    """A fetch that breaks off, goes on, and is taken from the workspace afterwards, without a key."""
    place = Workspace(tmp_path)
    asked = MaterialsProjectSettings(endpoint=project.url, page=2)
    settings = FetchSettings(retries=0, timeout_seconds=20, materials_project=asked)
    project.fail(200, 503)
    with pytest.raises(RemoteError) as raised:
        fetch_source(place, "mp", settings, SecretStr(KEY))
    assert [page["query"]["_page"] for page in project.seen()] == ["1", "2"]
    assert fetch_source(place, "mp", settings, SecretStr(KEY)).rows == 5
    assert [page["query"]["_page"] for page in project.seen()] == ["2", "3"]
    assert fetch_source(place, "mp", settings, None).reused
    report = collect_crystals.fn(place.url, "mp", CrystalSettings())
    assert report.counts["licences"] == "CC BY 4.0: 4, CC BY-NC 4.0: 1"
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Materials Project" in written
    assert KEY.encode() not in written
    assert KEY not in caplog.text + str(raised.value) + repr(settings)


def test_the_query_tells_all_but_the_key(project):
    query = source(project.url, elements=("Nb",)).query
    assert query["elements"] == ("Nb",)
    assert query["endpoint"] == project.url
    assert KEY not in json.dumps(query)


def test_a_server_that_is_not_there_or_something_else():
    with pytest.raises(RemoteError, match="The Materials Project does not answer at"):
        names(f"http://127.0.0.1:{free_port()}")
    page = (200, "<html>", {"Content-Type": "text/html"})
    with scripted(page) as (url, _), pytest.raises(RemoteError, match="answers text/html in place of a JSON object"):
        names(url)
    other = (200, {"status": "OK"}, {})
    with scripted(other, other, other) as (url, _), pytest.raises(RemoteError, match="answer is not understood"):
        names(url)
