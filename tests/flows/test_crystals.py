"""Crystals of a file and of two databases through the command line, and fetches that Prefect tries again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow, get_client
from prefect.blocks.system import Secret
from prefect.settings import get_current_settings

from flows.commands.common import check_sources
from tasks.crystal_sources import fetched_name, read_fetch_report
from tasks.crystals import fetch_crystals
from tasks.exceptions import InputError
from tasks.secrets import BLOCK
from tasks.settings import FetchSettings, Settings
from tasks.workspace import Workspace
from tests.conftest import STARTER
from tests.tasks.local_servers import scripted
from tests.tasks.materials_project import ALUMINIUM, DIBORIDE, KEY, materials_project
from tests.tasks.test_crystal_sources import INFO, page

MEISSNER = Path(sys.executable).with_name("meissner")
PROFILE = """
crystals = ["mp", "{database}", "{file}"]

[fetch]
backoff_seconds = 0.01

[fetch.materials_project]
endpoint = "{endpoint}"
max_above_hull_ev = 0.1
max_band_gap_ev = 0.2
"""


def meissner(*arguments, **environment):
    return subprocess.run(
        [str(MEISSNER), "refresh", "--until", "crystals", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"COLUMNS": "250", **environment},
    )


@pytest.mark.slow
def test_databases_and_a_file_by_the_command_line(tmp_path):
    """Twice: the second run asks nobody. The key is found in no file and in no output."""
    place = Workspace(tmp_path / "workspace")
    with materials_project(tmp_path) as endpoint, scripted(INFO, page(x=DIBORIDE, y=ALUMINIUM)) as (url, seen):
        database = f"optimade:{url}"
        profile = tmp_path / "profile.toml"
        profile.write_text(PROFILE.format(database=database, endpoint=endpoint, file=STARTER / "crystals.csv"))
        first = meissner("--profile", profile, "--workspace", place.url, MEISSNER_MP_API_KEY=KEY)
        assert first.returncode == 0, first.stderr
        second = meissner("--profile", profile, "--workspace", place.url, MEISSNER_MP_API_KEY=KEY)
        assert len(seen) == 2
    assert "nothing to do" in second.stdout
    rows = place.read_table("crystals/crystals.parquet").to_pylist()
    assert [row["crystal_id"] for row in rows[:3]] == ["mp-134", "mp-763", "mp-910"]
    assert {row["crystal_source"] for row in rows} == {"Materials Project", "crystals.csv"}
    refused = {row["item"]: row["reason"] for row in place.read_table("stages/crystals/rejected.parquet").to_pylist()}
    assert refused["oqmd-x"] == "same crystal as mp-763"
    assert refused["oqmd-y"] == "same crystal as mp-134"
    assert read_fetch_report(place, "mp").rows == 3
    written = b"".join(path.read_bytes() for path in Path(place.url).rglob("*") if path.is_file())
    for output in (first.stdout, first.stderr, second.stdout, second.stderr):
        assert KEY not in output
    assert KEY.encode() not in written
    assert fetched_name(database).encode() not in written


def test_a_missing_key_ends_with_one_sentence(tmp_path):
    result = meissner("--crystals", "mp", "--workspace", tmp_path / "workspace", MEISSNER_MP_API_KEY="")
    assert result.returncode == 2
    assert result.stderr.startswith("meissner: The Materials Project's key is not given; check the key in MEISSNER_MP")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "workspace" / "prefect").exists()


@flow
def fetch(workspace, source, settings):
    return fetch_crystals.with_options(retry_delay_seconds=0)(workspace, source, settings)


def test_prefect_tries_an_outage_again_and_a_refusal_not(prefect_harness, tmp_path):
    settings = FetchSettings(retries=0)
    gone = (503, {}, {})
    with scripted(gone, INFO, page(a=ALUMINIUM, next="URL/2"), gone, INFO, page(b=DIBORIDE)) as (url, seen):
        assert fetch(str(tmp_path), f"optimade:{url}", settings).rows == 2
        assert len(seen) == 6
    with scripted(INFO, (400, {}, {}), INFO, page(a=ALUMINIUM)) as (url, seen):
        with pytest.raises(InputError, match=r"refuses the request \(400\)"):
            fetch(str(tmp_path), f"optimade:{url}", settings)
        assert len(seen) == 2


@pytest.fixture
def key_block(prefect_harness, monkeypatch):
    """The key in a Secret block on the tests' server, and none in the environment."""
    monkeypatch.delenv("MEISSNER_MP_API_KEY", raising=False)
    Secret(value=KEY).save(BLOCK)
    yield
    Secret.delete(BLOCK)


def test_the_key_comes_from_a_secret_block_and_is_seen_nowhere(key_block, tmp_path, caplog):
    """The stand-in answers only to the key. Parameters, states, logs and files are searched for it."""
    caplog.set_level("DEBUG")
    with materials_project(tmp_path) as endpoint:
        settings = FetchSettings(retries=0, materials_project={"endpoint": endpoint})
        assert fetch(str(tmp_path / "workspace"), "mp", settings).rows == 5
    with get_client(sync_client=True) as client:
        seen = [
            client.request("POST", path, json={}).text
            for path in ("/flow_runs/filter", "/task_runs/filter", "/logs/filter", "/block_documents/filter")
        ]
    assert "materials_project" in seen[0]
    written = [path.read_bytes() for path in (tmp_path / "workspace").rglob("*") if path.is_file()]
    assert written
    assert KEY not in "".join([*seen, caplog.text])
    assert KEY.encode() not in b"".join(written)


def test_a_key_that_is_nowhere_ends_the_run_and_the_environment_comes_first(key_block, tmp_path, monkeypatch):
    monkeypatch.setenv("MEISSNER_MP_API_KEY", "short")
    with pytest.raises(InputError, match="key has 5 characters"):
        fetch(str(tmp_path), "mp", FetchSettings())
    monkeypatch.delenv("MEISSNER_MP_API_KEY")
    Secret.delete(BLOCK)
    with pytest.raises(InputError, match=r"key is not given.*Secret block meissner-mp-api-key"):
        fetch(str(tmp_path), "mp", FetchSettings())
    Secret(value=KEY).save(BLOCK)


def test_a_server_that_may_hold_the_key_is_asked_before_it_is_refused(prefect_harness, tmp_path, monkeypatch):
    monkeypatch.delenv("MEISSNER_MP_API_KEY", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    settings = Settings.load(None, workspace=str(tmp_path), crystals=["mp"])
    monkeypatch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))
    check_sources(settings)
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "no-profile"))
    with pytest.raises(InputError, match="key is not given"):
        check_sources(settings)
