import pytest

from models.exceptions import MeissnerError
from tasks import memo
from tasks.memo import Memo
from tasks.processes import Failure
from tasks.workspace import Workspace

seen: list[int] = []


def double(job: int) -> list[float]:
    seen.append(job)
    if job < 0:
        raise MeissnerError(f"{job} is negative")
    return [2 * job, 0.1 * job]


@pytest.fixture
def workspace(tmp_path):
    seen.clear()
    return Workspace(tmp_path)


def run(workspace, jobs, function=double, version=1, **options):
    return Memo(workspace, "stage", version, content=str).run(function, jobs, processes=1, **options)


def test_only_new_jobs_are_computed_and_results_are_the_same(workspace):
    first = run(workspace, [1, 2, 3])
    assert run(workspace, [3, 4, 1]) == [first[2], [8, 0.4], first[0]]
    assert seen == [1, 2, 3, 4]


def test_another_version_remembers_nothing(workspace):
    run(workspace, [1])
    run(workspace, [1], version=2)
    assert seen == [1, 1]


def test_a_bad_job_is_remembered_too(workspace):
    expected = [Failure("-1 is negative")]
    assert run(workspace, [-1]) == expected
    assert run(workspace, [-1]) == expected
    assert seen == [-1]


def test_what_fails_for_a_passing_reason_is_tried_again(workspace, monkeypatch):
    def stopped(_function, jobs, *, keep, **_options):
        for position in range(len(jobs)):
            keep(position, Failure("took longer than 1 s", retryable=True))
        return [Failure("took longer than 1 s", retryable=True)] * len(jobs)

    with monkeypatch.context() as patch:
        patch.setattr(memo, "run_jobs", stopped)
        assert run(workspace, [5])[0].retryable
    assert run(workspace, [5]) == [[10, 0.5]]


def test_a_stopped_run_goes_on_from_its_parts(workspace, monkeypatch):
    monkeypatch.setattr(memo, "PART_SECONDS", 0)

    def stop_at_three(job):
        if job == 3:
            raise KeyboardInterrupt
        return double(job)

    with pytest.raises(KeyboardInterrupt):
        run(workspace, [1, 2, 3, 4], stop_at_three)
    assert len(workspace.list("stages/stage/memo/*.parquet")) == 2
    assert run(workspace, [1, 2, 3, 4]) == [[2, 0.1], [4, 0.2], [6, 3 * 0.1], [8, 0.4]]
    assert seen == [1, 2, 3, 4]
    assert len(workspace.list("stages/stage/memo/*.parquet")) == 1


def test_a_damaged_part_counts_as_forgotten(workspace):
    run(workspace, [1])
    (part,) = workspace.list("stages/stage/memo/*.parquet")
    workspace.write_bytes(part, b"PAR1 and no more")
    assert run(workspace, [1]) == [[2, 0.1]]
    assert seen == [1, 1]
    assert run(workspace, [1]) == [[2, 0.1]]


def test_progress_counts_every_job(workspace):
    counted = []
    run(workspace, [1, 2], advance=counted.append)
    run(workspace, [1, 2, 3], advance=counted.append)
    assert sum(counted) == 5
