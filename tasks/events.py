"""What happens to a stage, told to whoever listens in this process: the terminal's live display, a test."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.stages import StageReport


@dataclass(frozen=True)
class StageEvent:
    """A stage has started (``done`` 0), made a step, or finished (``report`` is there)."""

    stage: str
    done: int = 0
    total: int = 0
    report: "StageReport | None" = None


Listener = Callable[[StageEvent], None]
_listeners: list[Listener] = []


def publish(event: StageEvent) -> None:
    """Tell every listener."""
    for listener in tuple(_listeners):  # one may leave meanwhile
        listener(event)


@contextlib.contextmanager
def subscribe(listener: Listener) -> Iterator[None]:
    """Call ``listener`` on each event for the time of the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
