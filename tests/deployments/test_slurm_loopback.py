"""Slurm on one machine: jobs run and are cancelled, two do not meet, and nothing is left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deployments.slurm import loopback
from deployments.slurm.loopback import SlurmError, SlurmOnLoopback
from tests.waiting import has_ended, wait_until

SCRIPT = Path(loopback.__file__)


@pytest.fixture
def folder():
    """A folder with a short path, for the sockets; pytest's own can be long."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as path:
        yield Path(path)


def submit(slurm, folder, command, *options):
    words = ("sbatch", "--parsable", f"--output={folder}/job-%j.out", *options, f"--wrap={command}")
    return slurm.run(*words)


def state(slurm, job):
    return slurm.run("squeue", "--noheader", "--format=%T", f"--jobs={job}", "--states=all")


def test_a_job_runs_to_its_end(slurm, tmp_path):
    job = submit(slurm, tmp_path, "hostname; echo $SLURM_JOB_ID; echo $SLURM_CPUS_ON_NODE", "--cpus-per-task=2")
    wait_until(lambda: state(slurm, job) == "COMPLETED")
    assert (tmp_path / f"job-{job}.out").read_text().split() == [socket.gethostname(), job, "2"]


def test_a_failed_job_is_known_as_failed(slurm, tmp_path):
    job = submit(slurm, tmp_path, "exit 3")
    wait_until(lambda: state(slurm, job) == "FAILED")


def test_a_cancelled_job_is_gone_with_its_processes(slurm, tmp_path):
    job = submit(slurm, tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert state(slurm, job) == "RUNNING"
    slurm.run("scancel", job)
    wait_until(lambda: job not in slurm.run("squeue", "--noheader", "--format=%i").split())
    assert state(slurm, job) == "CANCELLED"
    wait_until(lambda: has_ended(int((tmp_path / "pid").read_text())))


def test_a_job_waits_while_the_cpus_are_taken(slurm, tmp_path):
    first = submit(slurm, tmp_path, "sleep 600", "--cpus-per-task=2")
    second = submit(slurm, tmp_path, "true")
    wait_until(lambda: state(slurm, first) == "RUNNING")
    assert state(slurm, second) == "PENDING"
    slurm.run("scancel", first)
    wait_until(lambda: state(slurm, second) == "COMPLETED")


def test_two_at_once_do_not_meet(slurm, tmp_path, folder):
    with SlurmOnLoopback(folder / "other", cpus=5) as other:
        submit(slurm, tmp_path, "sleep 600")
        wait_until(lambda: slurm.run("squeue", "--noheader", "--format=%T") == "RUNNING")
        assert other.run("squeue", "--noheader") == ""
        assert other.run("sinfo", "--noheader", "--format=%c %T") == "5 idle"
        job = submit(other, tmp_path, "echo $SLURM_CONF")
        wait_until(lambda: state(other, job) == "COMPLETED")
        assert (tmp_path / f"job-{job}.out").read_text().strip() == f"{folder}/other/slurm.conf"
    assert slurm.run("squeue", "--noheader", "--format=%T") == "RUNNING"


def test_the_block_ends_its_programs_and_jobs(tmp_path, folder, slurm_on_loopback):
    pid = tmp_path / "pid"
    with pytest.raises(ZeroDivisionError), SlurmOnLoopback(folder) as slurm:
        # deaf to scancel's first signal, and out of sight of Slurm, which follows parents
        submit(slurm, tmp_path, f"setsid -f bash -c 'trap \"\" TERM; echo $$ > {pid}; sleep 600'")
        wait_until(lambda: pid.exists() and pid.read_text())
        programs = loopback._processes(slurm.configuration)
        assert len(programs) >= 4
        raise ZeroDivisionError
    wait_until(lambda: all(has_ended(int(program)) for program in [pid.read_text(), *programs]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_killed_script_leaves_nothing(tmp_path, slurm_on_loopback, number):
    job = f"sbatch -o /dev/null --wrap 'echo $$ > {tmp_path}/pid; sleep 600'"
    command = f"echo $SLURM_CONF > {tmp_path}/conf; {job}; sleep 600"
    script = subprocess.Popen([sys.executable, SCRIPT, "bash", "-c", command], env=slurm_on_loopback.environment)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    configuration = Path((tmp_path / "conf").read_text().strip())
    programs = [*loopback._processes(configuration), (tmp_path / "pid").read_text().strip()]
    assert len(programs) >= 7  # munged, slurmctld, slurmd, slurmstepd, the job's shell, and the script's and its sleep
    script.send_signal(number)
    script.wait(120)
    wait_until(lambda: all(has_ended(int(program)) for program in programs))
    assert configuration.parent.exists() == (number == signal.SIGKILL)
    shutil.rmtree(configuration.parent, ignore_errors=True)


def test_the_script_gives_the_status_of_its_command(slurm_on_loopback):
    command = [sys.executable, SCRIPT, "bash", "-c", "srun --ntasks=1 hostname; exit 7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (7, socket.gethostname())


def test_variables_of_another_slurm_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    environment = SlurmOnLoopback(tmp_path).environment
    assert [name for name in environment if re.match("SLURM|SBATCH", name)] == ["SLURM_CONF"]


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(loopback, "FOLDERS", str(tmp_path))
    assert SlurmOnLoopback.unavailable_reason().startswith("munged, slurmctld, slurmd, sbatch")
    with pytest.raises(SlurmError, match=r"sinfo are not installed \(apt-get install slurm-wlm munge\)"):
        SlurmOnLoopback(tmp_path).__enter__()


def test_a_start_that_fails_quotes_the_log(monkeypatch, folder, slurm_on_loopback):
    good = SlurmOnLoopback._text_of_configuration
    monkeypatch.setattr(SlurmOnLoopback, "_text_of_configuration", lambda self: good(self) + "SelectType=select/none\n")
    slurm = SlurmOnLoopback(folder)
    with pytest.raises(SlurmError, match=r"slurm(ctl)?d ended with status 1; .*select/none"):
        slurm.__enter__()
    assert loopback._processes(slurm.configuration) == []


def test_a_taken_port_is_left_for_another(monkeypatch, folder, slurm_on_loopback):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free, asked = loopback.free_ports, []

        def ports(count):
            asked.append(count)
            return [taken.getsockname()[1], *free(1)] if len(asked) == 1 else free(count)

        monkeypatch.setattr(loopback, "free_ports", ports)
        with SlurmOnLoopback(folder) as slurm:
            assert slurm.run("sinfo", "--noheader", "--format=%T") == "idle"
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["a b", "long" * 30])
def test_a_folder_that_sockets_cannot_lie_in_is_refused(tmp_path, slurm_on_loopback, name):
    with pytest.raises(SlurmError, match="at most 75 characters and no blank"):
        SlurmOnLoopback(tmp_path / name).__enter__()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_who_is_not_root_can_start_it(slurm_on_loopback, tmp_path_factory):
    if not (python := shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        pytest.skip("no Python that another user may run")
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are closed to others
        Path(folder).chmod(0o755)
        script = shutil.copy(SCRIPT, folder)
        command = [python, script, "bash", "-c", "srun --ntasks=1 id -u"]
        other = {"user": 65534, "group": 65534, "extra_groups": []}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, **other)
    assert (done.stdout.strip(), done.returncode) == ("65534", 0), done.stderr
