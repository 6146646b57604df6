"""What databases answer is asked for once, kept with its query, and taken up where it broke off."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from optimade.adapters.structures.pymatgen import from_pymatgen
from prefect.states import Completed, Failed
from pymatgen.io.cif import CifWriter

from tasks import crystal_sources, crystals
from tasks.crystal_sources import (
    FetchReport,
    check_databases,
    fetch_source,
    fetched_name,
    is_database,
    read_fetch_report,
    read_sources,
    source_hash,
)
from tasks.crystals import OUTPUT, collect_crystals
from tasks.exceptions import InputError, MissingStageError, RemoteError
from tasks.schemas import FETCHED_CRYSTALS
from tasks.settings import CrystalSettings, FetchSettings, OptimadeSettings
from tasks.workspace import Workspace
from tests.tasks.local_servers import scripted
from tests.tasks.materials_project import ALUMINIUM, CARBIDE, DIBORIDE, SALT

INFO = (200, {"data": {"attributes": {}}, "meta": {"provider": {"prefix": "oqmd"}}}, {})
GONE = (503, {}, {})


def page(**structures):
    """A page of entries; ``next`` is where the following page is."""
    following = structures.pop("next", None)
    entries = [
        {"id": name, "type": "structures", "attributes": from_pymatgen(structure).model_dump(mode="json")}
        for name, structure in structures.items()
    ]
    return 200, {"data": entries, "links": {"next": following}, "meta": {}}, {}


def settings(refetch=False, **asked):
    quick = {"retries": 0, "backoff_seconds": 0.0, "timeout_seconds": 10}
    return FetchSettings(refetch=refetch, optimade=OptimadeSettings(**asked), **quick)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


def fetch(workspace, url, **choices):
    return fetch_source(workspace, f"optimade:{url}", settings(**choices), None)


def ids(workspace, url):
    return workspace.read_table(fetched_name(f"optimade:{url}"))["crystal_id"].to_pylist()


def test_an_answer_is_kept_with_its_query_and_not_asked_for_again(workspace):
    with scripted(INFO, page(a=ALUMINIUM, next="URL/2"), page(b=DIBORIDE)) as (url, seen):
        first = fetch(workspace, url, page=1)
        again = fetch(workspace, url, page=1)
        assert len(seen) == 3
    source = f"optimade:{url}"
    assert (first.rows, first.source, first.reused, again.reused) == (2, source, False, True)
    table = workspace.read_table(fetched_name(source))
    assert table.schema.equals(FETCHED_CRYSTALS)
    stored = json.loads(table.schema.metadata[b"meissner"])
    assert stored["query"] == {**first.query, "fields": list(first.query["fields"])}
    assert stored["query_hash"] == first.query_hash
    assert datetime.now(UTC) - datetime.fromisoformat(stored["fetched"]) < timedelta(minutes=1)
    assert read_fetch_report(workspace, source).fetched == again.fetched
    assert source_hash(workspace, source) == hashlib.sha256(workspace.read_bytes(fetched_name(source))).hexdigest()
    assert workspace.list("crystals/sources/*") == [fetched_name(source)]


@pytest.mark.parametrize("choice", [{"refetch": True}, {"filter": "nelements=1"}, {"limit": 7}], ids=str)
def test_what_is_asked_for_again(workspace, choice):
    with scripted(INFO, page(a=ALUMINIUM), INFO, page(a=ALUMINIUM, b=SALT)) as (url, seen):
        fetch(workspace, url)
        assert not fetch(workspace, url, **choice).reused
        assert len(seen) == 4
        assert ids(workspace, url) == ["oqmd-a", "oqmd-b"]


def test_a_fetch_that_broke_off_goes_on_where_it_was(workspace):
    pages = (page(a=ALUMINIUM, next="URL/2"), page(b=SALT, next="URL/3"))
    with scripted(INFO, *pages, GONE, INFO, page(c=CARBIDE)) as (url, seen):
        with pytest.raises(RemoteError, match="answers 503"):
            fetch(workspace, url)
        assert not workspace.exists(fetched_name(f"optimade:{url}"))
        assert fetch(workspace, url).rows == 3
    assert [request.path.partition("?")[0] for request in seen[4:]] == ["/v1/info", "/3"]
    assert ids(workspace, url) == ["oqmd-a", "oqmd-b", "oqmd-c"]
    assert workspace.list("crystals/sources/*") == [fetched_name(f"optimade:{url}")]


def test_pages_that_are_old_are_not_mixed_with_new_ones(workspace, monkeypatch):
    monkeypatch.setattr(crystal_sources, "PAGES_KEPT", timedelta(0))
    with scripted(INFO, page(a=ALUMINIUM, next="URL/2"), GONE, INFO, page(z=SALT)) as (url, _):
        with pytest.raises(RemoteError):
            fetch(workspace, url)
        fetch(workspace, url)
        assert ids(workspace, url) == ["oqmd-z"]


def test_pages_of_another_query_are_not_taken(workspace):
    with scripted(INFO, page(a=ALUMINIUM, next="URL/2"), GONE, INFO, page(z=SALT)) as (url, _):
        with pytest.raises(RemoteError):
            fetch(workspace, url)
        fetch(workspace, url, filter="nelements=2")
        assert ids(workspace, url) == ["oqmd-z"]


def test_a_limit_ends_the_fetch(workspace):
    with scripted(INFO, page(a=ALUMINIUM, b=SALT, next="URL/2"), page(c=CARBIDE, d=DIBORIDE, next="URL/3")) as (
        url,
        seen,
    ):
        assert fetch(workspace, url, limit=3).rows == 3
        assert ids(workspace, url) == ["oqmd-a", "oqmd-b", "oqmd-c"]
        assert len(seen) == 3


def test_a_query_that_nothing_fits_is_one_sentence(workspace):
    with scripted(INFO, page()) as (url, _), pytest.raises(InputError, match=r"has no crystal .*nelements=9"):
        fetch(workspace, url, filter="nelements=9")
    assert workspace.list("crystals/sources/*") == []


def test_a_database_that_was_not_asked(workspace):
    for ask in (source_hash, lambda place, source: read_sources(place, [source])):
        with pytest.raises(MissingStageError, match="optimade:oqmd has not been fetched into the workspace"):
            ask(workspace, "optimade:oqmd")


def test_what_cannot_be_asked_is_refused_at_the_door(workspace):
    with scripted(INFO, page(a=ALUMINIUM)) as (url, seen):
        sources = ("crystals.csv", f"optimade:{url}")
        check_databases(workspace, sources, settings(), None)
        with pytest.raises(InputError, match="key is not given"):
            check_databases(workspace, (*sources, "mp"), settings(), None)
        with pytest.raises(InputError, match="no OPTIMADE filter"):
            check_databases(workspace, sources, settings(filter="elements HAS"), None)
        assert seen == []


def test_names_of_databases():
    assert fetched_name("mp") == "crystals/sources/mp.parquet"
    assert fetched_name("optimade:oqmd") == "crystals/sources/optimade-oqmd.parquet"
    addresses = (
        "optimade:https://a.org/x/y",
        "optimade:https://a.org/x-y",
        "optimade:https-a.org-x-y",
        "optimade:../../x",
    )
    names = {fetched_name(address) for address in addresses}
    assert len(names) == len(addresses)
    assert all(name.startswith("crystals/sources/optimade-") and name.count("/") == 2 for name in names)
    assert [is_database(s) for s in ("mp", "optimade:oqmd", "./mp", "mp.zip", "optimade")] == [True, True] + [False] * 3


def test_crystals_of_several_sources_are_compared(workspace, tmp_path):
    """A file, a folder and a database: the same crystal once, an id twice, licences as far as they are known."""
    (tmp_path / "folder").mkdir()
    for path, structure in {"a.cif": ALUMINIUM, "folder/a.cif": SALT, "folder/b.cif": ALUMINIUM}.items():
        (tmp_path / path).write_text(str(CifWriter(structure)))
    files = [str(tmp_path / "a.cif"), str(tmp_path / "folder")]
    with scripted(INFO, page(x=DIBORIDE, y=ALUMINIUM * (2, 1, 1))) as (url, _):
        fetch(workspace, url)
    sources = (*files, f"optimade:{url}")
    report = collect_crystals.fn(workspace.url, sources, CrystalSettings(licence="CC0 1.0"))
    rows = workspace.read_table(OUTPUT).to_pylist()
    assert [(row["crystal_id"], row["formula"], row["licence"]) for row in rows] == [
        ("a", "Al", "CC0 1.0"),
        ("a@2", "NaCl", "CC0 1.0"),
        ("oqmd-x", "MgB2", "CC BY 4.0"),
    ]
    refused = {
        row["item"]: row["reason"] for row in workspace.read_table("stages/crystals/rejected.parquet").to_pylist()
    }
    assert refused == {"b": "same crystal as a", "oqmd-y": "same crystal as a"}
    assert report.counts["licences"] == "CC0 1.0: 2, CC BY 4.0: 1"
    assert rows[2]["crystal_source"] == "optimade:oqmd"
    assert collect_crystals.fn(workspace.url, sources, CrystalSettings(licence="CC0 1.0")).reused
    assert not collect_crystals.fn(workspace.url, sources[:2], CrystalSettings()).reused
    assert workspace.read_table(OUTPUT)["licence"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("state", "passes"),
    [
        (Failed(data=RemoteError("gone")), True),
        (Failed(data=InputError("wrong key")), False),
        (Failed(data=KeyError("bug")), False),
        (Completed(data=1), False),
    ],
    ids=["outage", "refusal", "bug", "success"],
)
def test_only_what_passes_is_tried_again(state, passes):
    assert crystals._passes(None, None, state) is passes


def test_a_report_is_read_back():
    report = FetchReport(source="mp", query={"a": 1}, query_hash="0", fetched=datetime.now(UTC), rows=3)
    assert FetchReport.model_validate_json(report.model_dump_json(exclude={"reused"})) == report
