"""Two years of schedules by Prefect's own scheduler, on a clock that is moved: each is due once, none is left out."""

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests.deployments.compose import DEPLOYMENTS

MONTHS = 24
# A clock that is put forward in spring, a day that not every month has, and the two that the project ships.
SCHEDULES = {
    "weekly": ("0 3 * * 1", "Etc/UTC"),
    "monthly": ("0 5 1 * *", "Etc/UTC"),
    "weekly-berlin": ("30 2 * * 0", "Europe/Berlin"),
    "last-days": ("0 6 31 * *", "America/New_York"),
}
TWO_YEARS = """
import asyncio, json, sys
from datetime import datetime, timedelta, timezone
from unittest.mock import patch

import prefect.server.services.scheduler as scheduler
from prefect.server import models, schemas
from prefect.server.database import provide_database_interface
from prefect.server.schemas.states import StateType
import sqlalchemy as sa

schedules, months, step_days = json.loads(sys.argv[1]), int(sys.argv[2]), 15
begin = datetime(2027, 1, 1, 12, tzinfo=timezone.utc)
end = datetime(2027 + months // 12, 1, 1, 12, tzinfo=timezone.utc)

async def main():
    db = provide_database_interface()
    await db.create_db()
    async with db.session_context(begin_transaction=True) as session:
        flow = await models.flows.create_flow(session, schemas.core.Flow(name="f"))
        ids = {}
        for name, (cron, zone) in schedules.items():
            clock = schemas.schedules.CronSchedule(cron=cron, timezone=zone)
            asked = schemas.core.Deployment(name=name, flow_id=flow.id,
                schedules=[schemas.core.DeploymentSchedule(schedule=clock, active=True)])
            made = await models.deployments.create_deployment(session, asked)
            ids[made.id] = name
    clock, fired = begin, {name: [] for name in schedules}
    with patch.object(scheduler, "now", lambda *_: clock):
        while clock < end:
            for _ in range(2):  # a second look must add nothing
                await scheduler.schedule_deployments()
            clock = min(clock + timedelta(days=step_days), end)
            async with db.session_context(begin_transaction=True) as session:
                due = await session.execute(sa.select(db.FlowRun).where(
                    db.FlowRun.state_type == "SCHEDULED", db.FlowRun.next_scheduled_start_time < clock))
                for run in due.scalars().all():
                    fired[ids[run.deployment_id]].append(run.next_scheduled_start_time.isoformat())
                    run.state_type = StateType.COMPLETED
    print(json.dumps(fired))

asyncio.run(main())
"""


def expected(cron, zone):
    """The times that a calendar gives, counted day by day."""
    minute, hour, day, _, weekday = cron.split()
    begin, end = datetime(2027, 1, 1, 12, tzinfo=UTC), datetime(2027 + MONTHS // 12, 1, 1, 12, tzinfo=UTC)
    one, found = date(2026, 12, 31), []
    while one < date(2029, 1, 3):
        if day in {"*", str(one.day)} and weekday in {"*", str(one.isoweekday() % 7)}:
            local = datetime(one.year, one.month, one.day, int(hour), int(minute), tzinfo=ZoneInfo(zone))
            if begin <= local.astimezone(UTC) < end:
                found.append(local.astimezone(UTC))
        one += timedelta(days=1)
    return found


@pytest.fixture(scope="module")
def fired(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-years")
    environment = os.environ | {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
    }
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-c", TWO_YEARS, json.dumps(SCHEDULES), str(MONTHS)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_time_of_two_years_is_due_exactly_once(fired, name):
    found = [datetime.fromisoformat(time) for time in fired[name]]
    wanted = expected(*SCHEDULES[name])
    assert len(found) == len(set(found)), "none twice"
    if name == "weekly-berlin":
        # on the last Sunday of March there is no half past two
        assert [time.date() for time in found] == [time.date() for time in wanted]
        assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= MONTHS // 12
    else:
        assert found == wanted
    assert len(wanted) == {"weekly": 105, "monthly": 24, "weekly-berlin": 105, "last-days": 14}[name]


def test_the_schedules_that_are_deployed_are_among_them():
    deployments = yaml.safe_load((DEPLOYMENTS / "prefect.yaml").read_text())["deployments"]
    deployed = [(each["cron"], each["timezone"]) for one in deployments for each in one.get("schedules", [])]
    assert deployed
    assert set(deployed) <= set(SCHEDULES.values())
