"""The manager gives what ``jobflow.run_locally`` gives, on the same flows."""

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import prefect
import pytest
from jobflow import CURRENT_JOB, Flow, JobStore, Maker, OnMissing, Response, job, run_locally
from maggma.stores import MemoryStore
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.jobflow_prefect import job_tags, run_on_prefect

pytestmark = pytest.mark.usefixtures("prefect_harness")

CALLS: list[str] = []
TRIES: list[int] = []


@job
def add(a, b=1):
    CALLS.append("add")
    return (a or 0) + (b or 0)


@job
def total(values):
    return sum(value for value in values if value is not None)


@job
def fail(*_):
    raise ValueError("asked to fail")


@job
def replace_by_flow(a):
    first = add(a, 10)
    second = add(first.output, 10)
    return Response(replace=Flow([first, second], output=second.output))


@job
def replace_by_job(a):
    return Response(replace=add(a, 100))


@job
def replace_by_failure(a):
    return Response(replace=fail(a))


@job
def replace_twice(a):
    return Response(replace=replace_by_flow(a))


@job
def detour(a):
    return Response(output=a, detour=add(a, 1000))


@job
def detour_to_failure(a):
    return Response(output=a, detour=fail(a))


@job
def addition(a):
    return Response(output=a, addition=Flow([add(a, 5), replace_by_job(a)]))


@job
def stop_children(a):
    return Response(output=a, stop_children=True)


@job
def stop_jobflow(a):
    return Response(output=a, stop_jobflow=True)


@job(data="blob")
def large(a):
    return {"blob": [a] * 3, "small": a}


class AddMaker(Maker):
    name = "adder"

    @job
    def make(self, a):
        return a + 1


def fan_out() -> Flow:
    first = add(1, 2)
    middle = [add(first.output, number) for number in range(4)]
    return Flow([first, *middle, total([one.output for one in middle])])


def chain(*steps: Callable) -> Flow:
    jobs = [steps[0](1)]
    for step in steps[1:]:
        jobs.append(step(jobs[-1].output))
    return Flow(jobs)


def nested() -> Flow:
    first = add(1)
    inner = add(first.output)
    return Flow([first, Flow([inner, Flow([add(inner.output)])])])


def child_that_takes_none() -> Flow:
    first = fail(1)
    child = add(first.output, 7)
    child.config.on_missing_references = OnMissing.NONE
    return Flow([first, child, add(child.output)])


def beside_a_failure() -> Flow:
    failing = fail(1)
    return Flow([failing, add(failing.output), add(1), add(2)])


FLOWS = {
    "one job": lambda: Flow([add(1)]),
    "fan out and in": fan_out,
    "chain": lambda: chain(add, add, add, add),
    "nested flows": nested,
    "replace by a job": lambda: chain(add, replace_by_job, add),
    "replace by a flow": lambda: chain(add, replace_by_flow, add),
    "replace twice": lambda: chain(add, replace_twice, add),
    "replace by a failure": lambda: chain(add, replace_by_failure, add),
    "detour": lambda: chain(add, detour, add),
    "detour to a failure": lambda: chain(add, detour_to_failure, add),
    "addition": lambda: chain(add, addition, add),
    "stop children": lambda: chain(add, stop_children, add, add),
    "stop jobflow": lambda: chain(add, stop_jobflow, add),
    "failure with children": lambda: chain(add, fail, add, add),
    "failure beside others": beside_a_failure,
    "child that takes none": child_that_takes_none,
    "maker": lambda: chain(add, AddMaker().make),
    "additional store": lambda: chain(add, large),
}


def make_store() -> JobStore:
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()
    return store


def without_uuids(value) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "uuid", repr(value))


def canonical(flow: Flow, responses: dict) -> list:
    """Responses without what is random: uuids of the flow's jobs by position, those that arose by their output."""
    position = {uuid: str(number) for number, uuid in enumerate(flow.job_uuids)}
    return sorted(
        (
            position.get(uuid, "new"),
            index,
            without_uuids(response.output),
            response.stop_children,
            response.stop_jobflow,
        )
        for uuid, by_index in responses.items()
        for index, response in by_index.items()
    )


def on_prefect(flow, **options):
    """Run inside a Prefect flow with four threads."""

    @prefect.flow(task_runner=ThreadPoolTaskRunner(max_workers=4))
    def run():
        return run_on_prefect(flow, log=False, **options)

    return run()


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS.keys())
def test_same_answers_as_run_locally(make, tmp_path):
    local, ours = make(), make()
    local_store, our_store = make_store(), make_store()
    expected = run_locally(local, store=local_store, log=False, root_dir=tmp_path)
    given = on_prefect(ours, store=our_store)
    assert canonical(ours, given) == canonical(local, expected)
    stored = [
        sorted(without_uuids(document["output"]) for document in store.query({}, load=True))
        for store in (local_store, our_store)
    ]
    assert stored[1] == stored[0]


@pytest.mark.parametrize(
    "name", ["failure with children", "detour to a failure", "stop children", "stop jobflow", "replace by a failure"]
)
def test_ensure_success_raises_where_run_locally_raises(name, tmp_path):
    with pytest.raises(RuntimeError, match="did not finish running successfully"):
        run_locally(FLOWS[name](), store=make_store(), log=False, root_dir=tmp_path, ensure_success=True)
    with pytest.raises(RuntimeError, match="did not finish running successfully"):
        on_prefect(FLOWS[name](), store=make_store(), ensure_success=True)


def test_raise_immediately_raises_the_jobs_own_error():
    with pytest.raises(ValueError, match="asked to fail"):
        on_prefect(chain(add, fail, add), store=make_store(), raise_immediately=True)


def test_external_references_are_refused_unless_allowed():
    outside = add(1)
    with pytest.raises(ValueError, match="not found in the jobs array"):
        on_prefect(Flow([add(outside.output)]), store=make_store())
    store = make_store()
    on_prefect(Flow([outside]), store=store)
    flow = Flow([add(outside.output)])
    given = on_prefect(flow, store=store, allow_external_references=True)
    assert canonical(flow, given)[0][2] == "3"


@pytest.mark.parametrize("name", ["chain", "replace by a flow", "replace twice", "detour", "stop children", "addition"])
def test_a_second_run_in_the_same_store_runs_nothing(name):
    flow, store = FLOWS[name](), make_store()
    first = on_prefect(flow, store=store)
    CALLS.clear()
    again = on_prefect(flow, store=store, resume=True)
    assert CALLS == []
    assert canonical(flow, again) == canonical(flow, first)


def test_with_a_limit_one_flow_ends_before_the_next_begins():
    chains = [chain(add, add, add) for _ in range(3)]
    order = {one.uuid: (number, step) for number, flow in enumerate(chains) for step, one in enumerate(flow.jobs)}
    ended = []
    on_prefect(Flow(chains), store=make_store(), at_once=1, on_finish=lambda one, _: ended.append(order[one.uuid]))
    assert ended == sorted(ended)
    assert len(ended) == 9


def test_with_a_limit_a_stop_leaves_what_waits():
    flow = Flow([chain(stop_jobflow), chain(add), chain(add)])
    responses = on_prefect(flow, store=make_store(), at_once=1)
    assert list(responses) == [flow.jobs[0].jobs[0].uuid]


def test_without_resume_every_job_runs_again():
    CALLS.clear()
    flow, store = FLOWS["chain"](), make_store()
    first = on_prefect(flow, store=store)
    calls = list(CALLS)
    assert canonical(flow, on_prefect(flow, store=store)) == canonical(flow, first)
    assert CALLS[len(calls) :] == CALLS[-len(calls) :]
    assert len(CALLS) > len(calls)


def test_a_failed_job_is_run_again_and_its_parents_are_not():
    store = make_store()
    flow = chain(add, fail)
    on_prefect(flow, store=store)
    CALLS.clear()
    failures = []
    on_prefect(flow, store=store, resume=True, on_finish=lambda one, error: failures.append((one.name, str(error))))
    assert CALLS == []
    assert failures == [("add", "None"), ("fail", "asked to fail")]


def test_retries_only_for_errors_that_pass():
    @job
    def passes_at_third(kind):
        TRIES.append(1)
        if len(TRIES) < 3:
            raise (TimeoutError if kind == "passing" else ValueError)("not yet")
        return "done"

    for kind, tries in (("passing", 3), ("lasting", 1)):
        TRIES.clear()
        flow = Flow([passes_at_third(kind)])
        on_prefect(
            flow,
            store=make_store(),
            retries=4,
            retry_delay_seconds=0,
            retry_condition=lambda error: isinstance(error, TimeoutError),
        )
        assert len(TRIES) == tries


def test_independent_jobs_run_at_once_and_know_their_own_job():
    barrier = threading.Barrier(3, timeout=60)

    @job
    def meet(number):
        barrier.wait()  # passes only when three jobs are here together
        time.sleep(0.05 * number)
        return CURRENT_JOB.job.name

    jobs = [meet(number) for number in range(3)]
    for number, one in enumerate(jobs):
        one.name = f"meet {number}"
    given = on_prefect(Flow(jobs), store=make_store())
    assert [given[one.uuid][1].output for one in jobs] == ["meet 0", "meet 1", "meet 2"]


def test_each_job_is_a_task_run_with_name_and_tags():
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterTags
    from prefect.client.schemas.sorting import TaskRunSort

    one = add(1)
    one.name = "self-consistent {MgB2}"
    one.metadata = {"formula": "MgB2", "material_id": "mp-763", "nested": {"not": "a tag"}}
    assert job_tags(one) == ["formula:MgB2", "material_id:mp-763"]
    on_prefect(Flow([one]), store=make_store())
    wanted = TaskRunFilter(tags=TaskRunFilterTags(all_=["material_id:mp-763"]))
    with get_client(sync_client=True) as client:
        deadline, runs = time.monotonic() + 120, []
        while not runs and time.monotonic() < deadline:  # task runs reach the server through a queue
            time.sleep(0.25)
            runs = client.read_task_runs(task_run_filter=wanted, limit=10, sort=TaskRunSort.NAME_ASC)
    assert [run.name for run in runs] == ["self-consistent {MgB2}"]


def test_the_working_directory_stays(tmp_path):
    @job
    def where():
        return os.getcwd()  # noqa: PTH109 - the process's directory is what is tested

    before = Path.cwd()
    flow = Flow([where()])
    given = on_prefect(flow, store=make_store())
    assert next(iter(given.values()))[1].output == str(before)
    assert Path.cwd() == before


def test_folders_of_their_own_for_jobs_in_threads(tmp_path):
    @job
    def leave_file(name):
        time.sleep(0.02)
        Path(name).write_text(name)
        time.sleep(0.02)
        return sorted(path.name for path in Path().iterdir())

    jobs = [leave_file(name) for name in "abc"]
    given = on_prefect(Flow(jobs), store=make_store(), create_folders=True, root_dir=tmp_path)
    assert [given[one.uuid][1].output for one in jobs] == [["a"], ["b"], ["c"]]
    folders = {given[one.uuid][1].job_dir for one in jobs}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path}


def test_outside_of_a_flow_it_makes_its_own():
    one = add(1, 2)
    assert run_on_prefect(one, store=make_store(), log=False)[one.uuid][1].output == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_processes_and_dask_with_a_store_that_they_reach(kind, tmp_path):
    from prefect.task_runners import ProcessPoolTaskRunner

    from tasks.job_store import open_job_store
    from tasks.runners import open_task_runner
    from tasks.settings import ClusterSettings

    flow = Flow([chain(add, replace_by_flow, add), fan_out()])
    local = run_locally(flow, store=make_store(), log=False)
    store = open_job_store(str(tmp_path / "w"), "files")
    pool = ProcessPoolTaskRunner(2) if kind == "processes" else open_task_runner(ClusterSettings(), 2, processes=True)
    with pool as runner:
        ours = run_on_prefect(
            flow, store=store, task_runner=runner, root_dir=tmp_path / "run", create_folders=True, log=False
        )
    assert canonical(flow, ours) == canonical(flow, local)
    assert store.count() == sum(map(len, ours.values()))
    assert len(list((tmp_path / "run").iterdir())) == store.count()
