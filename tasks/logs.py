"""Log lines that can be searched by field: ``stage=order item=mp-1234 refused reason="no charge-neutral cell"``.

The material, or whatever else a line is about, always stands in ``item``. In a run they go to Prefect's log of it.
"""

import json
import logging
import re

from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

PLAIN = re.compile(r"[^\s\"=\\]+")


def log_line(what: str, **fields: object) -> str:
    """Fields as ``name=value`` around what happened; values with spaces, quotes or equals signs are quoted."""
    named = {name: value for name, value in fields.items() if value is not None}
    first = [f"{name}={_value(named.pop(name))}" for name in ("stage", "item") if name in named]
    return " ".join([*first, what, *(f"{name}={_value(value)}" for name, value in named.items())])


def log_event(what: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log one line to the run it happens in, or to this module's logger outside of one."""
    logger: logging.Logger | logging.LoggerAdapter
    try:
        logger = get_run_logger()
    except MissingContextError:
        logger = logging.getLogger(__name__)
    logger.log(level, "%s", log_line(what, **fields))


def _value(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
