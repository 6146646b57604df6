"""What runs by itself: the file is Prefect's, parameters fit, twice is once, failures are told."""

import io
import time
from pathlib import Path

import pytest
import yaml
from prefect import flow, tags
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import DeploymentSort
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed
from pydantic import SecretStr
from rich.console import Console

from flows.automations import PREFIX, _block_of, notified_blocks, register_automations, wanted_automations
from flows.deploy import FILE, NO_PULL, POOL, QUEUES, flow_parameters, load_flow, read_deployments, register
from flows.runs import TOLD, Keeper
from flows.server import Server
from flows.status import Status, age, print_status, read_status
from flows.up import PATIENCE
from models.bnas import CONFIGS as BNAS_CONFIGS
from models.s2snet import CONFIGS as S2SNET_CONFIGS
from tasks.exceptions import InputError
from tasks.progress import stage_progress
from tasks.settings import OperationsSettings, Settings
from tasks.stages import Rejection, StageOutcome, run_stage
from tasks.workspace import Workspace
from tests.tasks import local_servers

pytestmark = pytest.mark.usefixtures("prefect_harness")

ENTRIES = {entry["name"]: entry for entry in read_deployments()}
NAMES = {"refresh-weekly", "train-bnas", "train-s2snet", "tune-bnas", "screen-monthly", "bands-on-demand"}


class Told(dict):
    """Outcomes by name."""

    def __call__(self, kind, name, outcome):
        self[name] = outcome


def everything(settings, file=FILE):
    told = Told()
    register_automations(settings, register(settings, file, told), told)
    return told


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("operations")
    return Settings(workspace=str(workspace), bands={"limit": 3}, bnas={"epochs": 2}, workers=1)


@pytest.fixture(scope="module")
def registered(prefect_harness, settings):
    return everything(settings)


@pytest.fixture
def hook():
    """A local server that takes webhooks: its address and what was posted."""
    with local_servers.hook() as found:
        yield found


def test_prefects_own_loader_takes_the_file():
    from prefect.cli.deploy._config import _load_deploy_configs_and_actions

    shown = io.StringIO()
    found, actions = _load_deploy_configs_and_actions(FILE, console=Console(file=shown))
    assert shown.getvalue() == ""
    assert {entry["name"] for entry in found} == NAMES
    assert actions["pull"] == NO_PULL


@pytest.mark.parametrize("name", sorted(NAMES))
def test_parameters_fit_the_flow(name, settings):
    entry = ENTRIES[name]
    found = load_flow(entry["entrypoint"])
    assert entry["parameters"].keys() <= found.parameters.properties.keys()
    found.validate_parameters(entry["parameters"])
    given = flow_parameters(found, settings)
    assert set(entry["parameters"]) <= set(given)
    found.validate_parameters(given)
    assert given["workspace"] == settings.workspace
    assert entry["work_pool"]["name"] == POOL
    assert entry["work_pool"]["work_queue_name"] in QUEUES


def test_the_settings_become_the_parameters(settings):
    refresh = flow_parameters(load_flow("flows.refresh.refresh"), settings)
    assert refresh["bands"] == {"limit": 3}
    assert Path(refresh["supercon"]).is_absolute()
    assert flow_parameters(load_flow("flows.train_bnas.train_bnas"), settings)["settings"] == {"epochs": 2}
    assert "settings" not in flow_parameters(load_flow("flows.train_s2snet.train_s2snet"), settings)


@pytest.mark.parametrize("text", ["deployments: [", "name: x", "deployments: [{name: x}]"])
def test_a_file_that_is_none_is_told(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=r"p\.yaml"):
        read_deployments(tmp_path / "p.yaml")
    with pytest.raises(InputError, match="names no flow that can be imported"):
        load_flow("flows.nothing.nothing")


def test_twice_is_once(registered, settings):
    assert set(registered.values()) == {"created"}
    assert set(registered) == {POOL, *QUEUES, *NAMES, *(f"{PREFIX}{name}" for name in CHAIN)}
    assert set(everything(settings).values()) == {"unchanged"}
    with get_client(sync_client=True) as client:
        assert len(
            [one for one in client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200) if one.name in NAMES]
        ) == len(NAMES)


CHAIN = ("train after new data", "screen after training")


def test_all_automations_are_kept_as_code(settings):
    nowhere = dict.fromkeys(NAMES, "00000000-0000-0000-0000-000000000001")
    found = [one.name.removeprefix(PREFIX) for one in wanted_automations(settings, nowhere)]
    assert found == list(CHAIN)


def test_every_deployment_gives_signs_of_life():
    for entry in read_deployments():
        environment = entry["work_pool"]["job_variables"]["env"]
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert PATIENCE.items() <= environment.items()


def test_another_schedule_takes_the_place_of_the_first(registered, settings, tmp_path):
    document = yaml.safe_load(FILE.read_text())
    document["deployments"][0]["schedules"] = [{"cron": "30 4 * * 2", "timezone": "Europe/Paris", "slug": "other"}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    changed = everything(settings, tmp_path / "mine.yaml")
    assert {name for name, outcome in changed.items() if outcome != "unchanged"} == {"refresh-weekly"}
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("refresh/refresh-weekly")
        (schedule,) = found.schedules
        assert (schedule.schedule.cron, schedule.schedule.timezone) == ("30 4 * * 2", "Europe/Paris")


@pytest.fixture
def on_the_server(monkeypatch, meissner):
    """Commands on the server of these tests."""
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    return meissner


@pytest.fixture(scope="module")
def forms(registered):
    """Of each deployment, as the server gives it to the UI."""
    with get_client(sync_client=True) as client:
        found = client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200)
    return {one.name: one.parameter_openapi_schema for one in found if one.name in NAMES}


def fields(form, parameter):
    """The fields of a settings object in a form."""
    return form["definitions"][form["properties"][parameter]["$ref"].rpartition("/")[2]]["properties"]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_form_of_a_deployment_says_what_each_parameter_is(forms, name):
    form = forms[name]
    assert "workspace" in form["required"]
    for parameter, found in form["properties"].items():
        assert found["title"] == parameter
        assert "default" in found or parameter in form["required"]
        if "$ref" in found:
            every = fields(form, parameter)
            assert all(one["title"] for one in every.values() if "$ref" not in one)
            assert [one for one, told in every.items() if not told.get("description") and "$ref" not in told] == []
        else:
            assert found["description"]


def test_the_forms_offer_choices_and_defaults(forms):
    for name, known in (("train-bnas", BNAS_CONFIGS), ("train-s2snet", S2SNET_CONFIGS)):
        found = fields(forms[name], "settings")
        assert sorted(found["config"]["enum"]) == sorted(known)
        assert (found["config"]["default"], found["folds"]["default"], found["folds"]["minimum"]) == ("starter", 5, 2)
        assert found["device"]["enum"] == ["auto", "cpu", "cuda"]
        assert forms[name]["properties"]["allowed_drop"]["default"] == 0.05
    screening = fields(forms["screen-monthly"], "settings")
    assert screening["max_gap_ev"] == {
        "default": 0.2,
        "description": "Largest band gap, eV",
        "minimum": 0,
        "title": "Max Gap Ev",
        "type": "number",
    }
    refresh = forms["refresh-weekly"]
    assert refresh["required"] == ["workspace", "supercon", "crystals"]
    assert refresh["properties"]["until"]["enum"] == ["clean", "crystals", "match", "order", "bands", "grid"]
    assert fields(refresh, "bands")["engine"]["enum"] == ["gpaw", "vasp", "none"]


def test_the_server_refuses_what_the_form_does_not_offer(forms):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train-bnas/train-bnas").id
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            client.create_flow_run_from_deployment(deployment, parameters={"settings": {"config": "largest"}})


def test_the_command_deploy_registers_what_the_settings_say(registered, settings, on_the_server, tmp_path):
    everything(settings)
    profile = tmp_path / "mine.toml"
    profile.write_text("workers = 1\n[bands]\nlimit = 3\n[bnas]\nepochs = 2\n")
    code, told, _ = on_the_server("deploy", "--profile", profile, "--workspace", settings.workspace)
    assert code == 0
    rows = [line.split() for line in told.splitlines()[1:]]
    assert {row[1] for row in rows if row[0] == "deployment"} == NAMES
    assert {row[-1] for row in rows} == {"unchanged"}


@flow(name="fails")
def failing():
    raise ValueError('mp-1 has no bands in "mp\\bands"\nand no structure')


def fail():
    with tags("meissner"), pytest.raises(ValueError, match="no bands"):
        failing()
    EventsWorker.drain_all(timeout=60)


def post_until(posted, cause, subject):
    """Cause what is told again and again, until the server's triggers have learnt of the new automations.

    What an earlier test has caused may be told still, under another subject.
    """
    for _ in range(20):
        cause()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if found := [message for message in list(posted) if message["subject"] == subject]:
                return found[0]
            time.sleep(0.1)
    raise AssertionError(f"nothing was posted under {subject!r}: {posted}")


def test_a_failed_run_is_told_by_webhook_and_shown_by_status(registered, settings, hook):
    url, posted = hook
    noisy = settings.model_copy(update={"notify_url": SecretStr(url)})
    told = everything(noisy)
    assert notified_blocks(noisy) == ["custom-webhook/meissner"]
    assert [name for name, outcome in told.items() if outcome == "created"] == [
        "custom-webhook/meissner",
        *(f"{PREFIX}tell of {what}" for what in ("failures", "silence", "a worse network")),
    ]
    assert set(everything(noisy).values()) == {"unchanged"}
    found = post_until(posted, fail, "meissner: fails failed")
    assert "mp-1 has no bands" in found["text"]
    quiet = everything(settings)
    assert quiet[f"{PREFIX}tell of failures"] == "removed"
    status = read_status(Workspace(settings.workspace), "http://server")
    told = [run for run in status.failed if run.flow == "fails"]  # other tests fail runs on this server, too
    assert told[0].state == "Failed"
    assert "mp-1 has no bands" in told[0].reason
    shown = io.StringIO()
    print_status(Console(file=shown, width=200), status)
    assert "mp-1 has no bands" in shown.getvalue()


def test_a_webhook_block_of_ones_own_gets_json_whatever_the_message_holds(registered, settings, hook):
    url, posted = hook
    Webhook(url=url).save("mine", overwrite=True)
    everything(settings.model_copy(update={"operations": OperationsSettings(notify=("webhook/mine",))}))
    found = post_until(posted, fail, "meissner: fails failed")
    assert 'mp-1 has no bands in "mp\\bands"\nand no structure\n' in found["text"]
    everything(settings)


def test_silence_is_told_by_webhook(registered, settings, hook):
    url, posted = hook
    everything(settings.model_copy(update={"notify_url": SecretStr(url)}))
    limits = OperationsSettings().model_copy(update={"quiet_days": 1e-9})
    with get_client(sync_client=True) as client:
        server = Server(str(client.api_url).rstrip("/").removesuffix("/api"), owned=False)
        deployment = client.read_deployment_by_name("refresh/refresh-weekly")
        told = TOLD.format(id=deployment.id)

        def be_silent():
            if client.read_variable_by_name(told):
                client.delete_variable_by_name(told)
            keeper = Keeper(server, limits)
            assert "refresh-weekly has had no success for 1e-09 days" in keeper.look() + keeper.look()

        found = post_until(posted, be_silent, "meissner: refresh-weekly is silent")
    assert f"since {deployment.created:%Y-%m-%d %H:%M} UTC" in found["text"]
    everything(settings)


def test_status_tells_what_is_under_way_and_why_items_were_refused(on_the_server, tmp_path):
    reasons = ["band gap 1.2 eV is above 0.2 eV", "band gap 3 eV is above 0.2 eV", "no [crystal]"]
    outcome = StageOutcome(4, 1, rejected=[Rejection(f"mp-{number}", why) for number, why in enumerate(reasons)])
    run_stage(Workspace(tmp_path), "order", lambda: outcome, code_version=1, inputs=[])
    shown = {}

    @flow(name="stage")
    def stage():
        with stage_progress("bands", 4) as advance:
            advance(1)
            for form in ((), ("--json",)):
                shown[form] = on_the_server("status", "--workspace", tmp_path, *form)

    @flow(name="whole", flow_run_name="whole-run")
    def whole():
        stage()

    whole()
    code, told, _ = shown[()]
    assert code == 0
    line = told[told.index("Under way") :].splitlines()[3]
    assert [cell.strip() for cell in line.split("│")][:3] == ["whole", "whole-run", "Running"]
    assert line.rstrip().endswith("bands, 25 %")
    assert "2 × band gap … eV is above … eV" in told
    assert "1 × no [crystal]" in told
    code, told, _ = shown["--json",]
    assert code == 0
    found = Status.model_validate_json(told)
    assert [run.progress for run in found.running if run.flow == "whole"] == ["bands, 25 %"]
    assert "stage" not in {run.flow for run in found.running}, "another flow has started it"
    assert found.workspace == Workspace(tmp_path).url
    [order] = found.stages
    assert (order.rows_in, order.rows_refused) == (4, 3)
    assert order.reasons == {"band gap … eV is above … eV": 2, "no [crystal]": 1}


def test_status_of_a_failure_without_a_reason(on_the_server, tmp_path):
    with get_client(sync_client=True) as client:
        client.create_flow_run(failing, name="unexplained", state=Failed())
    code, told, _ = on_the_server("status", "--workspace", tmp_path)
    assert code == 0, "it is told, and no failure of this command"
    assert any("unexplained" in line and "Failed" in line for line in told.splitlines())


def test_a_block_that_is_not_there_is_one_sentence(registered, settings):
    noisy = Settings(workspace=settings.workspace, operations={"notify": ["slack-webhook/nowhere"]})
    with pytest.raises(InputError, match="no block 'slack-webhook/nowhere' to notify"):
        register_automations(noisy, dict.fromkeys(NAMES, "00000000-0000-0000-0000-000000000001"))


def test_slack_has_a_block_of_its_own(settings):
    address = SecretStr("https://hooks.slack.com/services/T/B/x")
    assert notified_blocks(settings.model_copy(update={"notify_url": address})) == ["slack-webhook/meissner"]


def test_slacks_block_posts_subject_and_text(hook, monkeypatch):
    from apprise.plugins.slack import NotifySlack

    url, posted = hook
    monkeypatch.setattr(NotifySlack, "webhook_url", url)  # the address alone; block and request are the real ones
    block = _block_of(SecretStr("https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"))
    with block.raise_on_failure():
        block.notify(subject="meissner: refresh failed", body="mp-1 has no bands")
    (message,) = posted
    (attached,) = message["attachments"]
    assert (attached["title"], attached["text"]) == ("meissner: refresh failed", "mp-1 has no bands")


@pytest.mark.parametrize(
    ("seconds", "text"), [(30, "30 s ago"), (7200, "2 h ago"), (-259200, "in 3 d"), (0, "0 s ago")]
)
def test_ages_are_told_in_their_largest_unit(seconds, text):
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    assert age(now, now - timedelta(seconds=seconds)) == text
