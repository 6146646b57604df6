"""Secrets: from the environment, else from a Secret block on the Prefect server. They are read where they are used."""

from pydantic import SecretStr

from tasks.settings import Settings

BLOCK = "meissner-mp-api-key"


def read_key() -> SecretStr | None:
    """The Materials Project's key: MEISSNER_MP_API_KEY, else Prefect's Secret block; None where neither is there."""
    if (key := Settings.load().mp_api_key) and key.get_secret_value():
        return key
    return _read_block(BLOCK)


def _read_block(name: str) -> SecretStr | None:
    from prefect.blocks.system import Secret
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:  # Prefect would start a server of its own
        return None
    try:
        block = Secret.load(name)
    except (ValueError, PrefectHTTPStatusError):  # there is none, or the server does not give it
        return None
    return SecretStr(str(block.get()))  # type: ignore[union-attr]
