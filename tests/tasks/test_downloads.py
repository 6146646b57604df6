"""Downloads from a server on loopback: whole and checked, resumed, patient, and one sentence where it cannot be."""

import hashlib
import threading

import pytest

from tasks.cleaning import OUTPUT, clean_supercon
from tasks.downloads import MDR_FILE, fetch_mdr
from tasks.exceptions import InputError, RemoteError, WorkspaceError
from tasks.settings import CleaningSettings, FetchSettings, MdrSettings
from tasks.workspace import Workspace
from tests.tasks.file_server import serve_file
from tests.tasks.mdr_files import mdr_text

DATA = mdr_text([{"element": f"Nb{place}Sn", "tc": "9"} for place in range(1, 100)]).encode()
SUM = hashlib.sha256(DATA).hexdigest()
QUICK = FetchSettings(retries=2, backoff_seconds=0.01, timeout_seconds=60)
HASTY = QUICK.model_copy(update={"timeout_seconds": 2})  # for a server that falls silent
OWN_FILE = "a copy of your own needs no network: --supercon FILE"


def fetch(served, cache, sha256=SUM, settings=QUICK):
    return fetch_mdr(MdrSettings(url=served.url, sha256=sha256, cache=str(cache)), settings)


def check_whole(path, cache):
    assert path == cache / MDR_FILE
    assert path.read_bytes() == DATA
    assert not list(cache.glob("*.part")) + list(cache.glob(".*.part"))


def test_a_file_is_fetched_once_and_then_needs_no_network(tmp_path):
    with serve_file(DATA) as served:
        check_whole(fetch(served, tmp_path / "new" / "cache"), tmp_path / "new" / "cache")
        assert served.requests == [None]
    check_whole(fetch(served, tmp_path / "new" / "cache"), tmp_path / "new" / "cache")


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path):
    (tmp_path / MDR_FILE).write_bytes(DATA[:-1])
    with serve_file(DATA) as served:
        check_whole(fetch(served, tmp_path), tmp_path)


def test_a_connection_that_breaks_is_resumed_where_it_broke(tmp_path):
    with serve_file(DATA, "cut 1000", "cut 500", "cut 0", "cut 7") as served:
        check_whole(fetch(served, tmp_path), tmp_path)
        assert served.requests == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-", "bytes=1507-"]


def test_a_download_that_was_killed_is_resumed_by_the_next_one(tmp_path):
    with serve_file(DATA, "cut 1000", "cut 0", "cut 0") as served:
        with pytest.raises(RemoteError, match="breaks off after 1000 bytes, 3 times in a row") as raised:
            fetch(served, tmp_path)
        assert OWN_FILE in str(raised.value)
        assert not (tmp_path / MDR_FILE).exists(), "half a file never stands under the name"
        served.requests.clear()
        check_whole(fetch(served, tmp_path), tmp_path)
        assert served.requests == ["bytes=1000-"]


def test_a_server_without_ranges_gives_it_from_the_start(tmp_path):
    with serve_file(DATA, "cut 1000", ranges=False) as served:
        check_whole(fetch(served, tmp_path), tmp_path)
        assert served.requests == [None, "bytes=1000-"]


@pytest.mark.parametrize("leftover", [b"not the start of it", DATA + b"and more", b"x" * len(DATA)])
def test_a_leftover_that_does_not_fit_is_thrown_away(tmp_path, leftover):
    (tmp_path / f".{MDR_FILE}.{SUM[:12]}.part").write_bytes(leftover)
    with serve_file(DATA) as served:
        check_whole(fetch(served, tmp_path), tmp_path)


@pytest.mark.parametrize(
    "plans",
    [
        [(429, {"Retry-After": "0"}), (503, {"Retry-After": "0"})],
        [(500, {}), (502, {})],
        ["silent", (504, {})],
        ["stall 1000"],
        ["cut 1000", (429, {"Retry-After": "1"}), (500, {})],
    ],
    ids=["retry-after", "server-errors", "time-out", "stall", "after-a-break"],
)
def test_what_passes_is_waited_for(tmp_path, plans):
    silent = any(plan in ("silent", "stall 1000") for plan in plans)
    with serve_file(DATA, *plans) as served:
        check_whole(fetch(served, tmp_path, settings=HASTY if silent else QUICK), tmp_path)
        assert len(served.requests) == len(plans) + 1


def test_what_does_not_pass_in_time_is_one_sentence(tmp_path):
    with serve_file(DATA, *[(500, {})] * 20) as served:
        with pytest.raises(RemoteError, match=r"SuperCon's MDR datasheet answers 500 at .* after 3 tries") as raised:
            fetch(served, tmp_path)
        assert OWN_FILE in str(raised.value)
        assert len(served.requests) == 3


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_tried_again(tmp_path, status):
    with serve_file(DATA, *[(status, {})] * 20) as served:
        with pytest.raises(
            InputError, match=rf"\({status}\); the source has changed or is closed; its address is http"
        ) as raised:
            fetch(served, tmp_path)
        assert OWN_FILE in str(raised.value)
        assert "\n" not in str(raised.value)
        assert len(served.requests) == 1


def test_another_file_at_the_address_is_told_and_not_kept(tmp_path):
    with serve_file(DATA + b"changed") as served:
        with pytest.raises(InputError, match=r"has changed: its SHA-256 is [0-9a-f]{64}, expected is") as raised:
            fetch(served, tmp_path)
        assert OWN_FILE in str(raised.value)
        assert len(served.requests) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_server_that_is_gone_is_told(tmp_path):
    with serve_file(DATA) as served:
        pass
    with pytest.raises(RemoteError, match=f"does not answer at .* after 3 tries.*{OWN_FILE}"):
        fetch(served, tmp_path)


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with serve_file(DATA) as served, pytest.raises(WorkspaceError, match=r"Cannot write .*: (Not a dir|File exists)"):
        fetch(served, tmp_path / "file" / "cache")


def test_two_at_once_fetch_it_once(tmp_path):
    with serve_file(DATA) as served:
        threads = [threading.Thread(target=fetch, args=(served, tmp_path)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert served.requests == [None]
    check_whole(tmp_path / MDR_FILE, tmp_path)


def test_the_clean_stage_takes_it_by_its_short_name(tmp_path):
    with serve_file(DATA) as served:
        mdr = MdrSettings(url=served.url, sha256=SUM, cache=str(tmp_path / "cache"))
        space = str(tmp_path / "w")
        report = clean_supercon.fn(space, "mdr", CleaningSettings(), mdr, QUICK)
    assert report.rows_in == 99
    table = Workspace(space).read_table(OUTPUT)
    assert set(table["source"].to_pylist()) == {MDR_FILE}
    assert table["tc_definitions"].to_pylist()[0] == ["recommended"]
    assert clean_supercon.fn(space, "mdr", CleaningSettings(), mdr, QUICK).reused
