"""Slurm on this one machine, all of it in one folder: to try what a cluster does, and for tests.

``python deployments/slurm/loopback.py COMMAND …`` runs a command while Slurm is up; ``sbatch``, ``squeue`` and
``scancel`` find it by the environment. The system's own Slurm is not touched: keys, sockets, ports, state and logs
are the folder's.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd", "slurmscriptd")
FOLDERS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
STARTING_SECONDS = 60.0
STOPPING_SECONDS = 15.0
LONGEST_FOLDER = 75  # a Unix socket's path has 107 characters at most, and sockets lie below the folder
NODE = "loopback"
COMMAND_OF_SCRIPT = "SLURM_LOOPBACK_COMMAND"  # marks what the script runs, so that it can be ended too
OF_SLURM = ("SLURM", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "SALLOC_", "SRUN_")  # variables that its commands read


class SlurmError(RuntimeError):
    """Slurm could not be started here, or a command of it failed."""


class SlurmOnLoopback:
    """Slurm with one node, this machine, as long as the ``with`` block lasts.

    Jobs run as the user that starts it, root or not. All programs and jobs end with the block, and if this process
    is killed.

    Parameters
    ----------
    folder
        Holds configuration, keys, state and logs: an empty one with a short path, on a local disk.
    cpus
        CPUs that the node claims to have, whatever the machine has: so many jobs of one CPU run at once.

    Raises
    ------
    SlurmError
        If a program is missing or does not start; with the end of its log.
    """

    def __init__(self, folder: str | Path, cpus: int = 2) -> None:
        self.folder = Path(folder).resolve()
        self.configuration = self.folder / "slurm.conf"
        self.cpus = cpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdog: subprocess.Popen[bytes] | None = None

    @staticmethod
    def unavailable_reason() -> str:
        """Why Slurm cannot be started on this machine, empty if nothing is missing."""
        missing = [program for program in PROGRAMS if shutil.which(program, path=FOLDERS) is None]
        verb = "are" if len(missing) > 1 else "is"
        return f"{', '.join(missing)} {verb} not installed (apt-get install slurm-wlm munge)" if missing else ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands find this Slurm, and nothing of another one."""
        others = {name: value for name, value in os.environ.items() if not name.startswith(OF_SLURM)}
        return {**others, "PATH": FOLDERS, "SLURM_CONF": str(self.configuration)}

    def __enter__(self) -> "SlurmOnLoopback":
        if reason := self.unavailable_reason():
            raise SlurmError(reason)
        if len(str(self.folder)) > LONGEST_FOLDER or " " in str(self.folder):
            raise SlurmError(
                f"{self.folder}: at most {LONGEST_FOLDER} characters and no blank, since sockets lie in it"
            )
        for attempt in (1, 2, 3):
            try:
                self._start_all()
            except BaseException as error:
                self.stop()
                taken = isinstance(error, SlurmError) and "Address already in use" in str(error)
                if not taken or attempt == 3:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *command: str, seconds: float = STARTING_SECONDS) -> str:
        """Output of one of Slurm's commands, such as ``run("squeue", "--noheader")``."""
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise SlurmError(f"{' '.join(command)}: no answer in {seconds:.0f} s; {self._last_lines()}") from error
        if done.returncode:
            raise SlurmError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def stop(self) -> None:
        """Cancel all jobs and end every program."""
        try:
            if all(name in self._daemons and self._runs(name) for name in ("munged", "slurmctld", "slurmd")):
                with contextlib.suppress(SlurmError):
                    self.run("scancel", "--full", f"--user={os.getuid()}")
                    self._wait("slurmctld", lambda: not self.run("squeue", "--noheader"), STOPPING_SECONDS)
                for process in reversed(self._daemons.values()):
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(STOPPING_SECONDS)
        finally:
            end_all(self.configuration)
            for process in self._daemons.values():
                process.kill()
                process.wait()
            self._daemons.clear()
            if self._watchdog:
                self._watchdog.kill()
                self._watchdog.wait()
                self._watchdog = None

    def _start_all(self) -> None:
        self._write_files()
        environment = {name: value for name, value in self.environment.items() if name != "SLURM_CONF"}
        watch = [sys.executable, __file__, "--watch", str(os.getpid()), str(self.configuration)]
        self._watchdog = subprocess.Popen(watch, env=environment, start_new_session=True)
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._start("munged", "--foreground", "--force", f"--log-file={self.folder}/munged.log", *options)
        self._wait("munged", (self.folder / "munge.socket").exists)
        # -c: nothing is taken up from an earlier time in the same folder
        self._start("slurmctld", "-D", "-c", "-f", str(self.configuration))
        self._start("slurmd", "-D", "-c", "-N", NODE, "-f", str(self.configuration))
        self._wait("slurmd", self._is_idle)

    def _write_files(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge.socket").unlink(missing_ok=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self.configuration.write_text(self._text_of_configuration())

    def _text_of_configuration(self) -> str:
        host, user = socket.gethostname(), os.getuid()
        control_port, node_port = free_ports(2)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        return f"""ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.folder}/munge.socket
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=30
MinJobAge=30
KillWait=5
NodeName={NODE} NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} CPUs={self.cpus} RealMemory={memory}
PartitionName=debug Nodes={NODE} Default=YES MaxTime=INFINITE State=UP
"""

    def _start(self, name: str, *options: str) -> None:
        # a session of its own, so that Ctrl-C reaches only us and jobs are cancelled before
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons[name] = subprocess.Popen(
                [name, *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )

    def _runs(self, name: str) -> bool:
        return self._daemons[name].poll() is None

    def _is_idle(self) -> bool:
        with contextlib.suppress(SlurmError):
            return self.run("sinfo", "--noheader", "--format=%T", seconds=3) == "idle"
        return False

    def _wait(self, name: str, ready: Callable[[], bool], seconds: float = STARTING_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while True:
            ended = [one for one in self._daemons if not self._runs(one)]
            if ended:
                status = self._daemons[ended[0]].returncode
                raise SlurmError(f"{ended[0]} ended with status {status}; {self._last_lines()}")
            if time.monotonic() > deadline:
                raise SlurmError(f"{name} is not ready after {seconds:.0f} s; {self._last_lines()}")
            if ready():
                return
            time.sleep(0.1)

    def _last_lines(self) -> str:
        """The last three lines that each program has written."""
        last = []
        for name in self._daemons:
            files = [self.folder / f"{name}{suffix}" for suffix in (".out", ".log")]
            written = [path.read_text(errors="replace").split("\n") for path in files if path.exists()]
            lines = [line.strip() for lines in written for line in lines if line.strip()]
            last.append(f"{name}: {' | '.join(lines[-3:])}")
        return "; ".join(last)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def end_all(configuration: Path) -> None:
    """Kill what is left of this Slurm: its programs, what runs in its jobs, and what the script runs."""
    deadline = time.monotonic() + STOPPING_SECONDS
    while (left := _processes(configuration)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _processes(configuration: Path) -> list[int]:
    mark = f"SLURM_CONF={configuration}".encode()
    below = (b"SLURM_JOB_ID=", f"{COMMAND_OF_SCRIPT}=".encode())
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")  # empty once a process has ended
            is_below = any(variable.startswith(below) for variable in variables)
            if mark in variables and (is_below or (folder / "comm").read_text().strip() in DAEMONS):
                found.append(int(folder.name))
    return found


def watch(parent: int, configuration: Path) -> None:
    """Wait until the parent has died, then end its Slurm."""
    while os.getppid() == parent:
        time.sleep(0.5)
    end_all(configuration)


def main(arguments: list[str]) -> int:
    """Run a command while Slurm is up; gives its exit status."""
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    if arguments[0] == "--watch":
        watch(int(arguments[1]), Path(arguments[2]))
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with SlurmOnLoopback(folder) as slurm:
                environment = {**slurm.environment, COMMAND_OF_SCRIPT: "1"}
                return subprocess.run(arguments, env=environment, check=False).returncode
        except SlurmError as error:
            sys.stderr.write(f"Slurm cannot run here: {error}\n")
            return 1


def _leave(number: int, _: FrameType | None) -> None:
    """Leave every ``with`` block, as at Ctrl-C."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
