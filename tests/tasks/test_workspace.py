import os
import subprocess

import fsspec
import pyarrow as pa
import pytest

from tasks.exceptions import MissingStageError, WorkspaceError
from tasks.workspace import Workspace, atomic_path


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path):
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return Workspace("memory://workspace")
    return Workspace(tmp_path / "workspace")


def test_what_is_written_is_read_back(workspace):
    table = pa.table({"formula": ["MgB2", "Nb3Sn"], "tc_kelvin": [39.0, 18.3]})
    workspace.write_table("supercon/superconductors.parquet", table)
    workspace.write_json("models/latest.json", {"version": "a1"})
    assert workspace.read_table("supercon/superconductors.parquet").equals(table)
    assert workspace.read_table("supercon/superconductors.parquet", ["formula"]).column_names == ["formula"]
    assert workspace.read_json("models/latest.json") == {"version": "a1"}
    assert workspace.list("*/*.parquet") == ["supercon/superconductors.parquet"]
    workspace.remove("supercon")
    assert not workspace.exists("supercon/superconductors.parquet")


def test_equal_tables_have_equal_fingerprints(workspace):
    for name in ("a.parquet", "b.parquet"):
        workspace.write_table(name, pa.table({"x": [1.5, 2.5]}))
    assert workspace.fingerprint("a.parquet") == workspace.fingerprint("b.parquet")


def test_a_missing_file_names_itself_and_the_way_out(workspace):
    with pytest.raises(MissingStageError, match=r"grids/index.parquet is not in the workspace .*`meissner discover`"):
        workspace.read_table("grids/index.parquet")


def test_a_damaged_table_is_named(workspace):
    workspace.write_bytes("bands/x.parquet", b"PAR1 truncated")
    with pytest.raises(WorkspaceError, match=r"bands/x.parquet .* is damaged"):
        workspace.read_table("bands/x.parquet")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_names_stay_inside(workspace, name):
    with pytest.raises(WorkspaceError, match="not a name inside the workspace"):
        workspace.write_bytes(name, b"")


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    target = tmp_path / "weights"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), atomic_path(target) as scratch:
        scratch.write_bytes(b"ne")
        raise RuntimeError("half way")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        workspace = Workspace(mount)
        with pytest.raises(WorkspaceError, match=r"Cannot write big.bin .* No space left on device"):
            workspace.write_bytes("big.bin", b"x" * 1_000_000)
        with pytest.raises(WorkspaceError, match="0 MB are free there, and at least 200 MB are needed"):
            workspace.check_writable()
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_no_permission_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        WorkspaceError, match=r"Cannot write .write-test-\w+ in the workspace .*: (Not a directory|File exists)"
    ):
        Workspace(tmp_path / "file" / "workspace").check_writable()
