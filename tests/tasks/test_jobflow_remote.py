"""The project file of jobflow-remote, read by jobflow-remote itself."""

import pytest
import yaml

from flows.cli import app
from tasks.exceptions import InputError
from tasks.jobflow_remote import remote_project
from tasks.settings import Settings

MONGO = {"docs_store": {"type": "MongoStore", "database": "m", "host": "db.example.org", "collection_name": "outputs"}}
SLURM = {
    "kind": "slurm", "jobs": 7, "cores": 16, "memory": "32GiB", "wall_time": "1-02:30:00", "partition": "short",
    "prologue": ["module load vasp"], "options": ["--constraint=cpu"],
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "store.yaml"
    path.write_text(yaml.safe_dump(MONGO))
    bands = {"store": str(path), "folder": str(tmp_path / "run")}
    return Settings.load(None, bands=bands, cluster=SLURM, vasp={"potcars": "/potcars"})


def test_jobflow_remote_reads_it_and_writes_the_slurm_script(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JFREMOTE_PROJECTS_FOLDER", str(tmp_path / "projects"))
    from jobflow_remote.config.base import Project

    project = Project.model_validate(remote_project(settings))
    worker = project.workers["meissner"]
    assert (worker.max_jobs, worker.scheduler_type) == (7, "slurm")
    assert project.get_queue_store().collection_name == "jobs_queue"
    assert project.get_jobstore().docs_store.collection_name == "outputs"
    script = worker.get_scheduler_io().get_submission_script("jf run", worker.resources)
    for line in (
        "#SBATCH --partition=short", "#SBATCH --cpus-per-task=16", "#SBATCH --time=1-02:30:00", "#SBATCH --mem=32G",
        "#SBATCH --constraint=cpu",
    ):  # fmt: skip
        assert line in script
    assert "export PMG_VASP_PSP_DIR=/potcars\nmodule load vasp" in worker.pre_run


def test_command_writes_the_file(settings, tmp_path):
    from typer.testing import CliRunner

    profile = tmp_path / "profile.toml"
    profile.write_text(f'[bands]\nstore = "{settings.bands.store}"\n')
    target = tmp_path / "jf" / "meissner.yaml"
    result = CliRunner().invoke(app, ["jobflow-remote", "--profile", str(profile), "--output", str(target)])
    assert result.exit_code == 0
    assert yaml.safe_load(target.read_text())["workers"]["meissner"]["scheduler_type"] == "shell"


@pytest.mark.parametrize(
    ("store", "message"),
    [("files", "keeps its queue in MongoDB; bands.store is 'files'"), (None, "of type 'MemoryStore'")],
)
def test_a_store_without_mongodb_is_refused(tmp_path, store, message):
    path = tmp_path / "memory.yaml"
    path.write_text("docs_store: {type: MemoryStore}")
    with pytest.raises(InputError, match=message):
        remote_project(Settings.load(None, bands={"store": store or str(path)}))
