"""Tables on object storage: options for the libraries that read them, and a Delta or Parquet table as a dataset."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from tasks.exceptions import InputError, RemoteError

PUBLIC_BUCKET = "materialsproject-parsed"
PUBLIC_OPTIONS = {
    "AWS_SKIP_SIGNATURE": "true",
    "AWS_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": "https://s3.us-east-1.amazonaws.com",  # also where the environment names another server
}
PATIENCE = {"timeout": "120s", "connect_timeout": "20s", "max_retries": "3", "retry_timeout": "120s"}

# Of s3fs: a request that fails for a passing reason is made again after 0 to 1, 2, 4, ... 128 s, by botocore; a body
# that is cut short is asked for again. Listings are never remembered, since other processes write, too.
STORE_OPTIONS = {"config_kwargs": {"retries": {"mode": "legacy", "max_attempts": 9}}, "use_listings_cache": False}


def store_options(url: str) -> dict[str, Any]:
    """Options of fsspec for a place that is written to: patient where it is on S3."""
    return dict(STORE_OPTIONS) if url.startswith(("s3://", "s3a://")) else {}


def store_errors() -> tuple[type[Exception], ...]:
    """What a disk or an object store raises, also where nobody answers; nothing is imported for it."""
    known = sys.modules.get("botocore.exceptions")
    return (OSError, known.BotoCoreError) if known else (OSError,)


def open_dataset(url: str, options: Mapping[str, str] | None = None) -> Any:
    """A table as a dataset of Arrow: by its Delta log, or of the Parquet files where there is no log.

    Parameters
    ----------
    url
        Folder of the table, local or on S3.
    options
        Of ``deltalake.DeltaTable`` (``AWS_ENDPOINT_URL``, …). By default those of the Materials Project's public bucket
        (unsigned, us-east-1) for this bucket, and what the environment says for others.

    Raises
    ------
    InputError
        If there is no table.
    RemoteError
        If the server does not answer.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(url, storage_options=delta_options(url, options)).to_pyarrow_dataset()
    except TableNotFoundError:
        return _open_parquet(url, options)
    except OSError as error:
        raise unreadable(url, error) from error
    except (DeltaError, ValueError) as error:
        raise InputError(f"{url} is not a Delta table that can be read: {brief(error)}") from error


def open_folder(url: str, options: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a folder and the folder's path there, with the options of ``open_dataset``."""
    import fsspec

    try:
        files, root = fsspec.url_to_fs(url, **_s3fs_options(url, delta_options(url, options)))
    except (ValueError, ImportError) as error:
        raise InputError(f"The storage of {url} is not known: {brief(error)}") from error
    return files, root.rstrip("/")


def unreadable(url: str, error: Exception) -> InputError | RemoteError:
    """What to raise for an OSError: a server that is silent now may answer later, a disk will not."""
    if _is_remote(url):
        return RemoteError(f"{url} does not answer: {brief(error)}")
    return InputError(f"Cannot read {url}: {brief(error)}")


def brief(error: Exception) -> str:
    """The message of a library's error on one line."""
    text = re.sub(r"\x1b\[\d+m↳?", "", str(error))  # colours and arrows of deltalake
    return " ".join(text.split())[:300] or type(error).__name__


def _open_parquet(url: str, options: Mapping[str, str] | None) -> Any:
    from pyarrow import dataset

    files, root = open_folder(url, options)
    try:
        found = dataset.dataset(root, filesystem=files, format="parquet", partitioning="hive")
    except FileNotFoundError as error:
        raise InputError(f"{url} does not exist") from error
    except OSError as error:
        raise unreadable(url, error) from error
    except ValueError as error:
        raise InputError(f"{url} is not a table that can be read: {brief(error)}") from error
    if not found.files:
        raise InputError(f"{url} holds neither a Delta table nor Parquet files")
    return found


def _is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def delta_options(url: str, given: Mapping[str, str] | None) -> dict[str, str]:
    """All options of an object store, with time limits; plain http only where an address asks for it."""
    if not _is_remote(url):
        return {}
    bucket = url.split("://", 1)[1].split("/", 1)[0]
    options = dict(PUBLIC_OPTIONS if given is None and bucket == PUBLIC_BUCKET else given or {})
    endpoint = options.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))
    return PATIENCE | ({"AWS_ALLOW_HTTP": "true"} if endpoint.startswith("http://") else {}) | options


def _s3fs_options(url: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The same options in the words of s3fs."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    words = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    found: dict[str, Any] = {word: options[name] for name, word in words.items() if name in options}
    if options.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        found["anon"] = True
    if "AWS_REGION" in options:
        found["client_kwargs"] = {"region_name": options["AWS_REGION"]}
    return found
