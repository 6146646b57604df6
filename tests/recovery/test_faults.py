"""A store that fails, a full disk, a read-only one: a clear message, nothing half written, and the next run goes on to
the same bytes.
"""

import subprocess

import pytest

from tasks import object_storage
from tasks.exceptions import WorkspaceError
from tasks.workspace import Workspace
from tasks.workspace_check import check_workspace
from tests.recovery import plain
from tests.recovery.rig import contents
from tests.tasks.faulty_s3 import KINDS, faulty

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path):
    """A function that gives a disk of its own some size in kB and a mode; the disk's path."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the rights of root")

    def remount(size, mode="rw"):
        subprocess.run(["mount", "-o", f"remount,{mode},size={size}k", path], check=True)

    yield path, remount
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_store_that_fails_now_and_then_changes_nothing(calm, inputs, s3_server, s3_endpoint, monkeypatch):
    url = f"{s3_server('failing')}/w"
    with faulty(s3_endpoint) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        faults.every = 9
        plain.refresh(url, inputs)
        plain.train_networks(url)
        faults.every = 0
        assert {what for what, _ in faults.seen} == set(KINDS)
        assert contents(url) == calm[1]


def test_a_store_that_is_gone_is_one_sentence_and_the_next_run_goes_on(
    calm, inputs, s3_server, s3_endpoint, monkeypatch
):
    import s3fs

    monkeypatch.setitem(object_storage.STORE_OPTIONS, "config_kwargs", {"retries": {"max_attempts": 0}})
    url = f"{s3_server('gone')}/w"
    with faulty(s3_endpoint) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        faults.add("matches", "reset", 10**6)
        with pytest.raises(
            WorkspaceError, match=rf"^Cannot write crystals/matches.parquet in the workspace {url}: \S+"
        ):
            plain.refresh(url, inputs)
        faults.plans.clear()
        plain.refresh(url, inputs)
        assert contents(url) == calm[0]
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(WorkspaceError, match=rf"^Cannot read \S+ in the workspace {url}: Could not connect"):
        plain.refresh(url, inputs)


def test_a_full_disk_is_told_and_with_more_room_the_run_goes_on(calm, inputs, disk):
    path, remount = disk
    workspace, size, told = str(path / "w"), 64, []
    while refusal := what_stops(workspace, inputs):
        assert refusal.endswith(": No space left on device")
        assert not list(path.rglob("*.part")), "scratch files would fill the disk"
        assert not check_workspace(Workspace(workspace))
        told.append(refusal)
        size = int(size * 1.7)
        remount(size)
    assert len(set(told)) > 2, told
    assert contents(workspace) == calm[1]


def test_a_disk_that_becomes_read_only_is_told(calm, inputs, disk):
    path, remount = disk
    remount(64_000)
    workspace = str(path / "w")
    plain.refresh(workspace, inputs)
    remount(64_000, "ro")
    for work in (Workspace(workspace).check_writable, lambda: plain.train_networks(workspace)):
        with pytest.raises(WorkspaceError, match=r"^Cannot write \S+ in the workspace \S+: Read-only file system$"):
            work()
    assert contents(workspace) == calm[0]
    remount(64_000, "rw")
    plain.train_networks(workspace)
    assert contents(workspace) == calm[1]


def what_stops(workspace, inputs):
    """The sentence that a refresh and a training end with; nothing where they go through."""
    try:
        plain.refresh(workspace, inputs)
        plain.train_networks(workspace)
    except WorkspaceError as error:
        return str(error)
    return None
