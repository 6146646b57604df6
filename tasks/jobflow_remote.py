"""The project file of jobflow-remote, made from our settings: the other way to a cluster, for those who run MongoDB."""

import os
import shlex
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tasks.exceptions import InputError
from tasks.runners import wall_time_seconds
from tasks.settings import Settings

PROJECT = "meissner"
QUEUE = "jobs_queue"  # collection beside that of the documents


def remote_project(settings: Settings) -> dict[str, Any]:
    """A project of jobflow-remote: one worker, the job store of the settings, and its queue in the same database.

    Raises
    ------
    InputError
        If the job store is not a file that describes one in MongoDB.
    """
    store = _read_store(settings.bands.store)
    worker: dict[str, Any] = {
        "type": "local",
        "scheduler_type": "slurm" if settings.cluster.kind == "slurm" else "shell",
        "work_dir": str(_folder(settings)),
        "pre_run": "\n".join([*_exports(settings), *settings.cluster.prologue]),
        "max_jobs": settings.cluster.jobs,
        "timeout_execute": 60,
    }
    if settings.cluster.kind == "slurm":
        worker["resources"] = _resources(settings)
    return {
        "name": PROJECT,
        "log_level": "info",
        "workers": {PROJECT: worker},
        "queue": {"store": {**store["docs_store"], "collection_name": QUEUE}},
        "jobstore": store,
        "exec_config": {},
    }


def _read_store(setting: str) -> dict[str, Any]:
    path = Path(setting).expanduser()
    if setting in ("files", "memory") or not path.is_file():
        raise InputError(
            f"jobflow-remote keeps its queue in MongoDB; bands.store is {setting!r}, it must name a file like "
            "jobflow's JOB_STORE with a docs_store of type MongoStore or MongoURIStore"
        )
    store = yaml.safe_load(path.read_text())
    kind = (store.get("docs_store") or {}).get("type") if isinstance(store, dict) else None
    if kind not in ("MongoStore", "MongoURIStore"):
        raise InputError(f"{path}: docs_store is of type {kind!r}; jobflow-remote needs MongoStore or MongoURIStore")
    return dict(store)


def _folder(settings: Settings) -> Path:
    folder = settings.bands.folder or Path(settings.workspace) / "scratch" / "remote"
    return Path(folder).expanduser().resolve()


def _exports(settings: Settings) -> list[str]:
    """Where the POTCARs are."""
    folder = settings.vasp.potcars or os.environ.get("PMG_VASP_PSP_DIR")
    return [f"export PMG_VASP_PSP_DIR={shlex.quote(str(folder))}"] if folder else []


def _resources(settings: Settings) -> dict[str, Any]:
    """What the settings ask of Slurm, by the names of the templates of QToolKit."""
    cluster = settings.cluster
    seconds = wall_time_seconds(cluster.wall_time)
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    asked = {
        "nodes": 1,
        "ntasks": 1,
        "cpus_per_task": cluster.cores,
        "mem": cluster.memory.replace("iB", "").replace("B", ""),
        "time": f"{days}-{clock}",
        "partition": cluster.partition,
        "account": cluster.account,
        "qverbatim": "\n".join(f"#SBATCH {option}" for option in cluster.options) or None,
    }
    return {name: value for name, value in asked.items() if value is not None}
