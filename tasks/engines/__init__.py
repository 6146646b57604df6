"""Band engines: what turns a crystal into a coarse uniform band structure."""

from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks.exceptions import EngineError

if TYPE_CHECKING:
    from jobflow import Flow, Job
    from pymatgen.core.structure import Structure


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run on this machine, and if not, why."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available


class PassingEngineError(EngineError):
    """A calculation failed for a reason that may be gone another time: its process was killed, or a disk was full."""


class BandEngine(Protocol):
    """One way to compute bands. ``settings_json`` is what a result depends on, and is stored beside it."""

    name: str
    run_folder: str | None  # where each job gets a folder of its own to run in; None where jobs do not care

    @property
    def version(self) -> str:
        """Version of the program and of its data."""
        ...

    @property
    def settings_json(self) -> str:
        """Every setting that the result depends on, as JSON with sorted keys."""
        ...

    def available(self) -> Availability:
        """Whether the engine can run here; cheap."""
        ...

    def make(self, structure: "Structure", material_id: str) -> "Flow":
        """A jobflow Flow whose output is a dictionary with the columns of the table BANDS."""
        ...

    def explain(self, done: "Job", error: BaseException, folder: Path) -> BaseException:
        """The error of a failed job in one sentence: engine, step, what was wrong, last line of output, folder."""
        ...


def is_passing(error: BaseException) -> bool:
    """Whether another try of the same calculation may succeed; so it is where a worker was lost or never came."""
    lost = type(error).__name__ == "KilledWorker"  # Dask's, which is not imported for this
    return lost or isinstance(error, PassingEngineError | MemoryError | ConnectionError | CancelledError)
