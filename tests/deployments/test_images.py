"""Compose file and Dockerfile, as far as they can be checked without a container engine."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from flows.server import CONSOLE
from tests.deployments.compose import DEPLOYMENTS, interpolate, services

VALUES = dict.fromkeys(("PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"), "x")
ONCE = {"migrate", "bucket", "studies", "deploy"}
FILES = [path for path in DEPLOYMENTS.rglob("*") if path.is_file() and path.suffix not in {".parquet", ".pyc"}]


def instructions():
    parser = DockerfileParser(path=str(DEPLOYMENTS / "Dockerfile"), parent_env={})
    return [(entry["instruction"], entry["value"]) for entry in parser.structure]


def test_the_compose_file_is_one_by_the_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOYMENTS / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_compose_file_that_is_none_is_seen(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {api: {imagine: nothing}}")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*command, str(tmp_path / "compose.yaml")], capture_output=True).returncode == 1


def test_the_log_of_the_services_is_too_quiet_for_the_address_of_a_webhook():
    """As quiet as that of `meissner up`, of which tests/security/test_secrets.py shows it."""
    level = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
    assert services(VALUES)["services"]["environment"][level] == CONSOLE[level] == "CRITICAL"


def test_without_its_secrets_nothing_starts():
    for missing in VALUES:
        with pytest.raises(KeyError, match=missing):
            services(VALUES | {missing: ""})


def test_every_variable_is_in_the_example():
    text = (DEPLOYMENTS / "compose.yaml").read_text().replace("$$", "")
    asked = set(re.findall(r"\$\{(\w+)", text))
    told = set(re.findall(r"^(\w+)=", (DEPLOYMENTS / "env.example").read_text(), re.MULTILINE))
    assert asked == told
    example = (DEPLOYMENTS / "env.example").read_text()
    for name in VALUES:
        assert f"\n{name}=\n" in example, "no password is written down"


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_is_pinned_checked_and_without_rights(name):
    service = services(VALUES)[name]
    assert re.search(r":v?\d+\.\d+\.?\d*", service["image"])
    for reference in re.findall(r"depends_on", str(service)):
        assert set(service[reference]) <= set(services())
    if name in ONCE:
        assert service["restart"] == "on-failure"
    elif name != "keeper":  # which ends by itself when its server stays silent
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    if name != "postgres":
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_only_the_proxy_can_be_told_to_answer_beyond_this_machine():
    published = {name: service["ports"] for name, service in services(VALUES).items() if "ports" in service}
    assert published == {
        "proxy": ["127.0.0.1:4200:4200"],
        "tensorboard": ["127.0.0.1:6006:6006"],
        "optuna-dashboard": ["127.0.0.1:8081:8080"],
    }
    told = services(VALUES | {"MEISSNER_BIND": "0.0.0.0"})
    assert told["proxy"]["ports"] == ["0.0.0.0:4200:4200"]
    assert told["optuna-dashboard"]["ports"] == published["optuna-dashboard"]


def test_servers_without_services_and_one_process_with_them():
    found = services(VALUES)
    commands = {name: service.get("command", []) for name, service in found.items()}
    apis = [name for name, command in commands.items() if "--no-services" in command]
    assert apis == ["api-1", "api-2"]
    assert [name for name, command in commands.items() if command[1:3] == ["server", "services"]] == ["services"]
    assert found["api-2"]["depends_on"] == {"api-1": {"condition": "service_healthy"}}, (
        "two at once on an empty database"
    )
    assert found["proxy"]["environment"]["API_SERVERS"].split() == [f"{name}:4200" for name in apis]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOYMENTS)))
def test_no_file_names_a_registry(path):
    text = path.read_text()
    assert not re.search(r"\b(docker|ghcr|quay|gcr|nvcr|pypi|pythonhosted|pytorch)\.(io|org)\b", text)
    for image in re.findall(r"^\s*(?:image:|FROM)\s+(\S+)", text, re.MULTILINE):
        first = image.split("/")[0]
        assert "/" not in image or ("." not in first and ":" not in first), image


def test_the_image_runs_as_nobody_special_and_is_pinned():
    found = instructions()
    names = [value.split(" AS ")[-1] for name, value in found if name == "FROM"]
    assert names == ["libraries", "build", "cpu", "cuda"]
    bases = [value.split(" AS ")[0] for name, value in found if name == "FROM"]
    assert bases == ["python:${PYTHON}", "libraries", "libraries", "cpu"]
    assert ("ARG", "PYTHON=3.11.13-slim-bookworm") in found
    starts = {name: [line for line, entry in enumerate(found) if entry[0] == name] for name, _ in found}
    cpu = next(line for line in starts["FROM"] if found[line][1].endswith("AS cpu"))
    assert [found[line][1] for line in starts["USER"] if line > cpu] == ["10001:10001"]
    assert any(line > cpu for line in starts["HEALTHCHECK"])
    torch = next(value for name, value in found if value.startswith("TORCH_VERSION="))
    assert torch == f"TORCH_VERSION={version('torch').split('+')[0]}", "the image has the version that is tested"


def test_the_image_knows_its_commit():
    found = instructions()
    cpu = next(line for line, (name, value) in enumerate(found) if name == "FROM" and value.endswith("AS cpu"))
    assert ("ARG", "MEISSNER_REVISION=") in found[cpu:]
    assert ("ENV", "MEISSNER_REVISION=$MEISSNER_REVISION") in found[cpu:]
    built = services(VALUES | {"MEISSNER_REVISION": "0123456789ab"})
    arguments = [service["build"]["args"] for service in built.values() if "build" in service]
    assert arguments == [{"MEISSNER_REVISION": "0123456789ab"}] * len(arguments)
    assert arguments


def test_what_the_image_copies_is_there_and_let_in():
    allowed = [
        line[1:] for line in (DEPLOYMENTS / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = {
        source
        for name, value in instructions()
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    for source in copied:
        assert (DEPLOYMENTS.parent / source).exists(), source
        assert source.split("/")[0] in allowed, source
    extras = re.findall(r"'\.\[([\w,]+)\]'", (DEPLOYMENTS / "Dockerfile").read_text())
    known = (DEPLOYMENTS.parent / "pyproject.toml").read_text()
    assert extras
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", known, re.MULTILINE), extra


def test_commands_are_programs_that_the_image_has():
    programs = {service["command"][0] for service in services(VALUES).values() if "meissner" in service["image"]}
    for program in programs - {"sh", "python"}:
        assert (Path(sys.executable).parent / program).exists(), program


def test_interpolation_is_that_of_compose():
    assert interpolate("${A} ${B:-b} $${A} ${C:-}", {"A": "a"}) == "a b ${A} "


@pytest.mark.parametrize(
    "path", [*DEPLOYMENTS.rglob("*.yaml"), *DEPLOYMENTS.rglob("*.json")], ids=lambda path: path.name
)
def test_files_can_be_read(path):
    assert list(yaml.safe_load_all(path.read_text())) if path.suffix == ".yaml" else json.loads(path.read_text())
