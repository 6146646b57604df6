"""Epochs of trainings that run in other processes: each part counts them in a small file, and the flow reads it."""

import contextlib
import time
from collections.abc import Iterable, Iterator

from tasks.progress import Advance, silent
from tasks.workspace import Workspace

WRITE_SECONDS = 1.0  # least time between two counts of a part


@contextlib.contextmanager
def counted_epochs(workspace: Workspace, file: str, epochs: int) -> Iterator[Advance]:
    """Give an Advance for the epochs of a part; the share done stands beside ``file`` until the part ends.

    In a workspace on a store nothing is counted, as nothing is kept between epochs there.
    """
    if not workspace.is_local:
        yield silent
        return
    place = workspace.local(_count_file(file))
    done, written = 0, -WRITE_SECONDS

    def advance(count: int) -> None:
        nonlocal done, written
        done += count
        if time.monotonic() - written >= WRITE_SECONDS:
            written = time.monotonic()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{done / max(epochs, 1):.6f}")

    try:
        yield advance
    finally:
        place.unlink(missing_ok=True)


def parts_under_way(workspace: Workspace, files: Iterable[str]) -> float:
    """How many parts' worth of epochs is done in parts that have not ended, such as 1.5."""
    if not workspace.is_local:
        return 0.0
    return sum(_share(workspace, file) for file in files)


def _share(workspace: Workspace, file: str) -> float:
    try:
        return min(float(workspace.local(_count_file(file)).read_text()), 1.0)
    except (OSError, ValueError):  # not begun, ended, or being written
        return 0.0


def _count_file(file: str) -> str:
    return f"{file}.epochs"
