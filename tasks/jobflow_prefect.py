"""jobflow on Prefect: every job of a flow is a task run that can be seen, retried and resumed.

``run_on_prefect`` takes what ``jobflow.run_locally`` takes and returns what it returns. The differences are what a
scheduler is for: independent jobs run at once on the task runner of the surrounding Prefect flow, a failed job can be
tried again, and with ``resume`` a job whose output is already in the store is not run a second time. This module knows
jobflow and Prefect, and nothing else of this project.
"""

import contextlib
import heapq
import itertools
import logging
import os
import queue
import secrets
import sys
import threading
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect
from jobflow import CURRENT_JOB, SETTINGS, Flow, Job, JobStore, Response, initialize_logger
from jobflow.core.flow import get_flow
from jobflow.core.reference import OnMissing
from monty.json import MontyDecoder, jsanitize
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

Responses = dict[str, dict[int, Response]]
OnFinish = Callable[[Job, BaseException | None], None]
RetryCondition = Callable[[BaseException], bool]
Explain = Callable[[Job, BaseException, Path], BaseException]

RECORD = "prefect"  # field of a job's document in the store: what its response said beside the output
DIVERSIONS = ("replace", "detour", "addition")  # in the order in which they run

logger = logging.getLogger("jobflow.managers.prefect")  # under jobflow's, which ``initialize_logger`` sets up
_working_directory = threading.Lock()


@dataclass(frozen=True)
class JobOptions:
    """How each job is run; picklable, since it travels to the worker."""

    root_dir: Path | None = None
    create_folders: bool = False
    retries: int = 0
    retry_delay_seconds: float | list[float] = 10.0
    retry_condition: RetryCondition | None = None
    explain: Explain | None = None
    tags: tuple[str, ...] = ()


def run_on_prefect(
    flow: Flow | Job | list[Job],
    *,
    store: JobStore | None = None,
    root_dir: str | Path | None = None,
    create_folders: bool = False,
    ensure_success: bool = False,
    allow_external_references: bool = False,
    raise_immediately: bool = False,
    log: bool | str = True,
    resume: bool = False,
    at_once: int | None = None,
    retries: int = 0,
    retry_delay_seconds: float | list[float] = 10.0,
    retry_condition: RetryCondition | None = None,
    explain: Explain | None = None,
    tags: Sequence[str] = (),
    task_runner: TaskRunner | None = None,
    on_finish: OnFinish | None = None,
) -> Responses:
    """Run a jobflow flow with one Prefect task run a job.

    Call it inside a Prefect flow, whose task runner sets how many jobs run at once; outside of one, a flow with a
    thread a core is made for it. With a task runner on processes or Dask the store must be one that other processes
    reach; jobflow's default, a store in memory, serves threads only.

    Parameters
    ----------
    flow, log, allow_external_references, ensure_success
        As for ``jobflow.run_locally``.
    store
        Where outputs go and references are looked up; jobflow's own setting if not given.
    resume
        Do not run again a job (uuid and index) that finished in this store before; a caller that wants that must give
        its jobs the same uuids each time.
    root_dir, create_folders
        Folder that jobs run in, or in which each gets a folder of its own. Both need a change of the working
        directory, which belongs to the process and not to the thread: where either is given, the jobs of one process
        run one at a time. Jobs that shall run at once in threads must not care where they are.
    raise_immediately
        Raise the first failure as it happens. Jobs that are running then finish; nothing new starts.
    at_once
        Jobs handed to the task runner at a time; all that can start, if not given. With a limit the children of
        finished jobs go first, so that of many independent flows the first ones end early.
    retries, retry_delay_seconds, retry_condition
        Further tries of a failing job, the wait before each, and for which errors (all, if not given).
    explain
        Called where a job failed, with the job, its error and its folder; gives the error to raise in its place. Errors
        travel between processes, so those that cannot be pickled need it.
    tags
        Further tags of every task run; a concurrency limit on one of them holds for all flows of the server.
    task_runner
        A started task runner (inside its ``with`` block) in place of the surrounding flow's.
    on_finish
        Called in this thread with each job that is over, and its error if it failed for good.

    Returns
    -------
    dict
        ``{uuid: {index: Response}}`` of all jobs that finished, as ``jobflow.run_locally`` gives it.

    Raises
    ------
    RuntimeError
        With ``ensure_success``, if a job failed or was skipped.
    """
    if log:
        initialize_logger(fmt=log if isinstance(log, str) else "")
    checked = get_flow(flow, allow_external_references=allow_external_references)
    job_store = SETTINGS.JOB_STORE if store is None else store
    job_store.connect()
    folder = Path(root_dir or Path.cwd()).resolve() if (root_dir or create_folders) else None
    options = JobOptions(folder, create_folders, retries, retry_delay_seconds, retry_condition, explain, tuple(tags))
    _isolate_current_job()
    run = _Run(job_store, options, raise_immediately, resume, at_once, task_runner, on_finish)
    logger.info("Started executing jobs locally")  # in the words of jobflow's own manager
    success = run.execute(checked) if task_runner or FlowRunContext.get() else _execute_in_a_flow(run, checked)
    logger.info("Finished executing jobs locally")
    if ensure_success and not success:
        raise RuntimeError("Flow did not finish running successfully")
    return {uuid: dict(responses) for uuid, responses in run.responses.items()}


@dataclass
class _Level:
    """One flow being run: the whole one, or one that a job put in its place, before its children or beside them."""

    waiting: list[tuple[Job, set[str]]]  # jobs not yet started, with the uuids of their parents
    finish: Callable[[bool], None]  # called once with whether all went well
    jobs: int
    depth: int  # jobs that came before the flow
    settled: set[str] = field(default_factory=set)
    depths: dict[str, int] = field(default_factory=dict)  # of its jobs
    good: bool = True

    def settle(self, uuid: str, good: bool) -> None:
        """Note that a job and its diversions are over."""
        self.settled.add(uuid)
        self.good = self.good and good


class _Run:
    """The scheduler: it lives in one thread, submits jobs, and acts on what comes back.

    A job is *settled* when it and everything that it diverted to are over. Its children start then, not before, so
    each job sees the outputs that it would have seen had all jobs run one after another.
    """

    def __init__(
        self,
        store: JobStore,
        options: JobOptions,
        raise_immediately: bool,
        resume: bool,
        at_once: int | None,
        task_runner: TaskRunner | None,
        on_finish: OnFinish | None,
    ) -> None:
        self.store = store
        self.options = options
        self.raise_immediately = raise_immediately
        self.resume = resume
        self.at_once = at_once or sys.maxsize
        self.ready: list[tuple[int, int, _Level, Job]] = []  # a heap: deepest first, then in order
        self.counter = itertools.count()
        self.task_runner = task_runner
        self.on_finish = on_finish
        self.responses: dict[str, dict[int, Response]] = defaultdict(dict)
        self.stopped_parents: set[str] = set()
        self.errored: set[str] = set()
        self.stopped = False
        self.done: queue.SimpleQueue[tuple[_Level, Job, Any]] = queue.SimpleQueue()
        self.in_flight = 0

    def execute(self, flow: Flow) -> bool:
        """Run a flow with all that it grows into; True if every job finished well."""
        results: list[bool] = []
        self._open(flow, results.append)
        while self.in_flight or self.ready:
            while self.ready and self.in_flight < self.at_once:
                self._submit(*heapq.heappop(self.ready)[2:])
            if self.in_flight:
                level, job, future = self.done.get()
                self.in_flight -= 1
                self._receive(level, job, future)
        return all(results) and not self.stopped

    def _open(self, flow: Flow, finish: Callable[[bool], None], depth: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Some jobs are not connected")  # such jobs run at once here
            jobs = [(job, set(parents)) for job, parents in flow.iterflow()]
        self._advance(_Level(jobs, finish, len(jobs), depth))

    def _advance(self, level: _Level) -> None:
        """Start every job whose parents are settled; close the level when all jobs are over."""
        waiting, level.waiting = level.waiting, []
        for job, parents in waiting:  # in topological order, so that one pass also reaches the children of the skipped
            if not (self.stopped or parents <= level.settled):
                level.waiting.append((job, parents))
            elif self._is_skipped(job, parents):
                level.settle(job.uuid, False)
            else:
                self._queue(level, job, parents)
        if len(level.settled) == level.jobs:
            level.finish(level.good)

    def _is_skipped(self, job: Job, parents: set[str]) -> bool:
        """Whether a job must not run for what its parents did; its own children are told."""
        if self.stopped:
            return True
        if parents & self.stopped_parents:
            logger.info("%s is a child of a job with stop_children=True, skipping...", job.name)
            self.stopped_parents.add(job.uuid)
            return True
        if parents & self.errored and job.config.on_missing_references == OnMissing.ERROR:
            logger.info("%s is a child of a job that failed, skipping...", job.name)
            self.errored.add(job.uuid)
            return True
        return False

    def _queue(self, level: _Level, job: Job, parents: set[str]) -> None:
        """Let a job wait for its turn."""
        level.depths[job.uuid] = 1 + max((level.depths.get(parent, 0) for parent in parents), default=level.depth)
        heapq.heappush(self.ready, (-level.depths[job.uuid], next(self.counter), level, job))

    def _submit(self, level: _Level, job: Job) -> None:
        if self.stopped:
            self._settle(level, job, False)
            return
        finished = read_record(self.store, job) if self.resume else None
        self.in_flight += 1
        if finished is not None:
            logger.info("%s (%s, %s) is in the store already", job.name, job.uuid, job.index)
            self.done.put((level, job, finished))
            return
        options = self.options
        one = _run_job.with_options(
            name=job.name,
            task_run_name=_plain(job.name),
            tags=[*options.tags, *job_tags(job)],
            retries=options.retries,
            retry_delay_seconds=options.retry_delay_seconds,
            retry_condition_fn=_condition(options.retry_condition),
        )
        future = self._runner().submit(one, {"work": _Work(job, self.store, options)})
        future.add_done_callback(lambda _: self.done.put((level, job, future)))

    def _runner(self) -> TaskRunner:
        context = FlowRunContext.get()
        runner = self.task_runner or (context.task_runner if context else None)
        if runner is None:
            raise RuntimeError("Jobs need a task runner or a surrounding Prefect flow")
        return runner

    def _receive(self, level: _Level, job: Job, answer: Any) -> None:
        """Take what a job gave: note it, run its diversions one after another, settle the job."""
        try:
            response = answer if isinstance(answer, Response) else answer.result()
        except Exception as error:
            logger.info("%s failed with exception:\n%s", job.name, "".join(traceback.format_exception(error)))
            self.errored.add(job.uuid)
            if self.on_finish:
                self.on_finish(job, error)
            if self.raise_immediately:
                raise
            self._settle(level, job, False)
            return
        self.responses[job.uuid][job.index] = response
        if self.on_finish:
            self.on_finish(job, None)
        if response.stored_data is not None:
            logger.warning("Response.stored_data is not supported by this manager.")
        if response.stop_children:
            self.stopped_parents.add(job.uuid)
        if response.stop_jobflow:
            self.stopped = True
            self._settle(level, job, False)
            return
        flows = [getattr(response, kind) for kind in DIVERSIONS if getattr(response, kind) is not None]
        self._divert(level, job, flows, True)

    def _divert(self, level: _Level, job: Job, flows: list[Flow], good: bool) -> None:
        """Run the flows that a job asked for one after another, then settle it."""
        if self.stopped or not flows:
            self._settle(level, job, good and not self.stopped)
        else:
            depth = level.depths[job.uuid]
            self._open(flows[0], lambda success: self._divert(level, job, flows[1:], good and success), depth)

    def _settle(self, level: _Level, job: Job, good: bool) -> None:
        level.settle(job.uuid, good)
        self._advance(level)


def _execute_in_a_flow(run: _Run, checked: Flow) -> bool:
    """Run it in a Prefect flow made for it, with a thread a core."""

    def jobs() -> bool:
        return run.execute(checked)

    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=os.cpu_count() or 1)
    return bool(prefect.flow(name=checked.name, task_runner=runner)(jobs)())


class _Work:
    """What a task run needs. A plain object: neither Prefect nor Dask looks for futures in it or rebuilds it."""

    def __init__(self, job: Job, store: JobStore, options: JobOptions) -> None:
        self.job, self.store, self.options = job, store, options


@task(cache_policy=NO_CACHE, persist_result=False)
def _run_job(work: _Work) -> Response:
    """Run one job where the options say, and record in the store what its response asked for."""
    job, store, options = work.job, work.store, work.options
    _isolate_current_job()
    store.connect()  # in another process it comes closed
    with _job_folder(options) as folder:
        response, failure = _attempt(work, folder)
    if failure is not None:
        raise failure  # alone: what it came from may not survive the way to another process
    response.job_dir = folder
    write_record(store, job, response)
    return response


def _attempt(work: _Work, folder: Path) -> tuple[Response, BaseException | None]:
    """The job's response, or what its failure is to be told as."""
    try:
        return work.job.run(store=work.store), None
    except Exception as error:
        if work.options.explain is None:
            raise
        return Response(), work.options.explain(work.job, error, folder)


@contextlib.contextmanager
def _job_folder(options: JobOptions) -> Iterator[Path]:
    """The folder that a job runs in; a change of directory is made by one job of the process at a time."""
    if options.root_dir is None:
        yield Path.cwd()
        return
    folder = options.root_dir
    if options.create_folders:
        stamp = datetime.now(UTC).strftime(SETTINGS.DIRECTORY_FORMAT)
        folder = folder / f"job_{stamp}-{secrets.randbelow(90000) + 10000}"
    folder.mkdir(parents=True, exist_ok=True)
    with _working_directory, contextlib.chdir(folder):
        yield folder


def write_record(store: JobStore, job: Job, response: Response) -> None:
    """Add to a job's document in the store what its response said, so that a restart need not run the job again."""
    document = store.docs_store.query_one({"uuid": job.uuid, "index": job.index})
    if document is None:
        return
    said = {"stop_children": response.stop_children, "stop_jobflow": response.stop_jobflow}
    said |= {kind: getattr(response, kind) for kind in DIVERSIONS}
    document.pop("_id", None)
    store.docs_store.update({**document, RECORD: jsanitize(said, strict=True)}, key=["uuid", "index"])


def read_record(store: JobStore, job: Job) -> Response | None:
    """The response of a job that finished in this store before, with the same diversions; None if it did not."""
    place = {"uuid": job.uuid, "index": job.index}
    record = store.docs_store.query_one(place, [RECORD])
    if record is None or RECORD not in record:
        return None
    document = store.query_one(place, ["output"], load=True)
    decode = MontyDecoder().process_decoded
    return Response(output=decode(document["output"]), **decode(record[RECORD]))


def job_tags(job: Job) -> list[str]:
    """Prefect tags ``name:value`` from a job's metadata, those that are text or numbers."""
    return sorted(f"{name}:{value}" for name, value in job.metadata.items() if isinstance(value, str | int | float))


def _plain(name: str) -> str:
    """A name in which Prefect replaces nothing: it formats task-run names with the parameters."""
    return name.replace("{", "{{").replace("}", "}}")


def _condition(wanted: RetryCondition | None) -> Callable[..., bool] | None:
    """Prefect's form of a retry condition."""
    if wanted is None:
        return None

    def check(_task: Any, _run: Any, state: Any) -> bool:
        try:
            state.result()
        except Exception as error:  # noqa: BLE001 - whatever the job raised is what is asked about
            return wanted(error)
        return False

    return check


_current_job: ContextVar[Any] = ContextVar("job", default=None)
_current_store: ContextVar[Any] = ContextVar("store", default=None)


class _ContextState:
    """jobflow's ``CURRENT_JOB`` with a value for each thread and task in place of one for the process."""

    @property
    def job(self) -> Any:
        return _current_job.get()

    @job.setter
    def job(self, value: Any) -> None:
        _current_job.set(value)

    @property
    def store(self) -> Any:
        return _current_store.get()

    @store.setter
    def store(self, value: Any) -> None:
        _current_store.set(value)

    def reset(self) -> None:
        """Forget the current job and store."""
        self.job = None
        self.store = None


def _isolate_current_job() -> None:
    """Let jobs in different threads not see each other as the current job.

    The object stays the same one, since other modules hold it; only its class changes.
    """
    CURRENT_JOB.__class__ = _ContextState
