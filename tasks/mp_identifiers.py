"""Names of the Materials Project's materials and runs: numbers as in mp-149, and the letters of its tables."""

import re

from tasks.exceptions import InputError

ID_LENGTH = 8  # letters of the table's identifiers
LAST_NUMBER = 3_347_529  # of a task with a number, mp-3347529 (the cut point of emmet-core's AlphaID)


def table_identifier(task_id: str) -> str:
    """The table's identifier of a task: emmet-core's AlphaID of its number, eight letters, without a prefix.

    An identifier of the table stays as it is.

    Raises
    ------
    InputError
        For what is neither.

    Examples
    --------
    >>> table_identifier("mp-149")
    'aaaaaaft'
    """
    from emmet.core.mpid import AlphaID

    number = task_id.strip().rsplit("-", maxsplit=1)[-1]
    try:
        if number:
            return str(AlphaID(number, padlen=ID_LENGTH))
    except ValueError:
        pass
    raise InputError(f"{task_id!r} is no task id of the Materials Project; these are like mp-149 or aaaaaaft")


def material_number(name: str) -> str | None:
    """The number that a material of the Materials Project is known by, of a name in either form.

    Returns
    -------
    None for other names, and for identifiers above emmet-core's last number, which are written in letters alone.

    Examples
    --------
    >>> material_number("aaaaaaft"), material_number("mp-149"), material_number("aaahilze")
    ('mp-149', 'mp-149', None)
    """
    from emmet.core.mpid import AlphaID

    if re.fullmatch(r"mp-[0-9]+", name):
        return name
    if not re.fullmatch(rf"[a-z]{{{ID_LENGTH}}}", name):
        return None
    number = int(AlphaID(name))
    return f"mp-{number}" if 0 < number <= LAST_NUMBER else None
