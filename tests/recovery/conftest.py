"""What each stage leaves when nothing disturbs it, made once, without Prefect."""

import shutil

import pytest

from tests.recovery import plain
from tests.recovery.rig import contents, small_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with the tables that a refresh reads."""
    folder = tmp_path_factory.mktemp("inputs")
    small_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def refreshed(inputs, tmp_path_factory):
    """A workspace after a refresh."""
    workspace = tmp_path_factory.mktemp("calm") / "refreshed"
    plain.refresh(str(workspace), inputs)
    return workspace


@pytest.fixture(scope="session")
def networks(refreshed):
    """The same after the networks of a training, and not yet its baselines."""
    workspace = refreshed.with_name("networks")
    shutil.copytree(refreshed, workspace)
    plain.train_networks(str(workspace))
    return workspace


@pytest.fixture(scope="session")
def calm(refreshed, networks):
    """What the two hold."""
    return contents(str(refreshed)), contents(str(networks))
