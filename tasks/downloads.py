"""Files from their publishers, whole or not at all: resumed after a break, checked by SHA-256, kept in a cache."""

import contextlib
import hashlib
import os
import time
from http import HTTPStatus
from pathlib import Path

import requests
import urllib3
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from tasks.exceptions import InputError, RemoteError, WorkspaceError
from tasks.remote import LONGEST_WAIT, PatientSession
from tasks.settings import FetchSettings, MdrSettings
from tasks.sources import MAX_SOURCE_BYTES

MDR_FILE = "20240322_MDR_OAndM.txt"
PIECE = 2**20  # bytes read at once
LOCK_SECONDS = 3600.0  # another process may be at the same download


def fetch_mdr(mdr: MdrSettings, fetch: FetchSettings) -> Path:
    """SuperCon's MDR datasheet from the cache, downloaded if it is not there; see ``download`` for what is raised."""
    folder = Path(mdr.cache).expanduser() if mdr.cache else user_cache_path("meissner")
    return download(mdr.url, folder / MDR_FILE, mdr.sha256, "SuperCon's MDR datasheet", fetch)


def download(url: str, target: Path, sha256: str, name: str, fetch: FetchSettings) -> Path:
    """A published file at its place in the cache.

    A file that is there and has the right checksum is taken without any network. A download that breaks off is resumed
    where it stopped, in this call and in the next one; it stands under its name only when it is whole and checked.

    Parameters
    ----------
    name
        What the messages call the file.

    Raises
    ------
    RemoteError
        If the server does not answer, answers with a passing error, or breaks off, too often in a row.
    InputError
        If the server refuses the request, or the file there is another one: the source has changed.
    WorkspaceError
        If the cache cannot be written.
    """
    if target.is_file() and _sha256(target) == sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_SECONDS):
            if not (target.is_file() and _sha256(target) == sha256):
                part = target.with_name(f".{target.name}.{sha256[:12]}.part")
                _complete(url, part, sha256, name, fetch)
                part.replace(target)
    except Timeout:
        raise WorkspaceError(f"Another process has been downloading {target} for {LOCK_SECONDS:.0f} s") from None
    except (InputError, RemoteError) as error:
        advice = f"its address is {url}; a copy of your own needs no network: --supercon FILE"
        raise type(error)(f"{error}; {advice}") from error
    except OSError as error:
        raise WorkspaceError(f"Cannot write {target}: {error.strerror or error}") from error
    return target


def _complete(url: str, part: Path, sha256: str, name: str, fetch: FetchSettings) -> None:
    """Bring the partial file to its end; a resumed one with a wrong checksum is done again from the start."""
    advice = dict.fromkeys((401, 403, 404, 410), "the source has changed or is closed")
    with PatientSession(name, fetch, advice) as session:
        session.headers["Accept-Encoding"] = "identity"  # bytes as they are, so that a break can be resumed
        for resumed in (True, False) if part.exists() else (False,):
            _receive(session, url, part, fetch)
            found = _sha256(part)
            if found == sha256:
                return
            part.unlink()
            if not resumed:
                raise InputError(
                    f"{name} has changed: its SHA-256 is {found}, expected is {sha256} (settings mdr.url, mdr.sha256)"
                )


def _receive(session: PatientSession, url: str, part: Path, fetch: FetchSettings) -> None:
    """Receive until the server says that it is the end; a break is resumed as long as something new comes."""
    most, breaks = 0, 0
    while True:
        try:
            _receive_once(session, url, part)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            received = _size(part)
            breaks = 1 if received > most else breaks + 1
            most = max(most, received)
            if breaks > fetch.retries:
                reason = f"{session.name} breaks off after {received} bytes, {breaks} times in a row"
                raise RemoteError(f"{reason}; the next run goes on there") from error
            time.sleep(min(fetch.backoff_seconds * 2 ** (breaks - 1), LONGEST_WAIT))
        else:
            return


def _receive_once(session: PatientSession, url: str, part: Path) -> None:
    """Append what follows the partial file, or write the whole where the server gives only that."""
    with _ask(session, url, _size(part)) as response:
        resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            while piece := response.raw.read1(PIECE, decode_content=True):  # what came before a break is kept
                file.write(piece)
                if file.tell() > MAX_SOURCE_BYTES:
                    raise InputError(f"{session.name} is larger than {MAX_SOURCE_BYTES} bytes")
            file.flush()
            os.fsync(file.fileno())


def _ask(session: PatientSession, url: str, offset: int) -> requests.Response:
    """The server's answer from a byte on, or from the start where it has nothing there."""
    if offset:
        with contextlib.suppress(InputError):  # 416: nothing follows; any other refusal comes again below
            response = session.get(url, headers={"Range": f"bytes={offset}-"}, stream=True)
            starts_there = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            if response.status_code != HTTPStatus.PARTIAL_CONTENT or starts_there:
                return response
            response.close()
    return session.get(url, stream=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
