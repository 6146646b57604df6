"""deployments/compose.yaml as a container engine reads it, and its services as processes of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
PROGRAMS = Path(sys.executable).parent


def interpolate(text, values):
    """``${NAME}``, ``${NAME:-default}``, ``${NAME:?message}``; ``$$`` is a dollar."""

    def value(match):
        if match["dollar"]:
            return "$"
        found = values.get(match["name"], "")
        if not found and match["sign"] == ":?":
            raise KeyError(f"{match['name']}: {match['word']}")
        return found or (match["word"] or "")

    return re.sub(r"(?P<dollar>\$\$)|\$\{(?P<name>\w+)(?:(?P<sign>:[-?])(?P<word>[^}]*))?\}", value, text)


def services(values=None):
    """Services by name; with values, as they are after interpolation."""
    text = (DEPLOYMENTS / "compose.yaml").read_text()
    return yaml.safe_load(interpolate(text, values) if values is not None else text)["services"]


class Machine:
    """Services of compose.yaml as processes here: the same commands and environments at other addresses.

    ``addresses`` maps what stands in the file (``redis:6379``) to what it is here (``127.0.0.1:40123``).
    """

    def __init__(self, folder, values, addresses):
        self.folder, self.services, self.addresses = folder, services(values), addresses
        self.processes = {}

    def here(self, text):
        for name, address in self.addresses.items():
            text = text.replace(name, address)
        return text

    def environment(self, name, **changes):
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "AWS_", "MEISSNER_"))
        }
        found = {key: self.here(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        home = self.folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        return kept | {"PATH": path, "HOME": str(home), "PREFECT_HOME": str(home / "prefect")} | found | changes

    def command(self, name, *changes):
        """The service's command with pairs of (word, word here) put in."""
        known = dict(changes)
        return [known.get(word, self.here(word)) for word in self.services[name]["command"]]

    def run(self, name, *changes, **environment):
        done = subprocess.run(
            self.command(name, *changes),
            env=self.environment(name, **environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, name, *changes, **environment):
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name, *changes),
                env=self.environment(name, **environment),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def healthy(self, name, *changes, **environment):
        """Whether the service's health check passes, with pairs of (text, text here) put in."""
        command = [self.here(word) for word in self.services[name]["healthcheck"]["test"][1:]]
        for there, here in changes:
            command = [word.replace(there, here) for word in command]
        done = subprocess.run(command, env=self.environment(name, **environment), capture_output=True)
        return done.returncode == 0

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
