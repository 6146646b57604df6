"""Requests to servers on the network: patient with what passes, clear about what does not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from tasks.exceptions import InputError, RemoteError
from tasks.settings import FetchSettings

PASSING = (429, 500, 502, 503, 504)  # too many requests, and troubles of the server
CONNECT_SECONDS = 10.0
LONGEST_WAIT = 60  # seconds; a server that asks for more by Retry-After is asked again after this
SHOWN_CHARACTERS = 200  # of a server's own words
KEY_HEADER = "x-api-key"


@dataclass(frozen=True)
class Page:
    """A part of an answer: rows of FETCHED_CRYSTALS, where the next part begins (None: nowhere), and rows in all."""

    rows: Sequence[Mapping[str, Any]]
    next: str | None
    total: int | None = None


class Database(Protocol):
    """A database that crystals are fetched from."""

    @property
    def query(self) -> dict[str, Any]:
        """What is asked, without any key."""

    @property
    def limit(self) -> int | None:
        """The most crystals wanted."""

    def check(self) -> None:
        """Raise InputError where it could not be asked, for want of a key, say; nothing is asked."""

    def pages(self, cursor: str | None) -> Iterator[Page]:
        """Pages of the answer, from the start or from where an earlier page says the next begins."""


class PatientSession(requests.Session):
    """A session that tries again where the reason passes, and raises one clear sentence where it does not.

    Tried again with growing waits: lost connections, time-outs, 429 and the passing 5xx, with Retry-After respected.
    What is left raises RemoteError; any other refusal raises InputError. A key in the header ``x-api-key`` is never
    sent on to another host, and never stands in a message.

    Parameters
    ----------
    name
        What the messages call the server.
    advice
        Words to add for a status, e.g. what to check for a 401.
    """

    def __init__(self, name: str, settings: FetchSettings, advice: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self.name, self.advice = name, dict(advice or {})
        self.timeout = (min(CONNECT_SECONDS, settings.timeout_seconds), settings.timeout_seconds)
        self.tries = settings.retries + 1
        retry = Retry(
            total=settings.retries,
            status_forcelist=PASSING,
            backoff_factor=settings.backoff_seconds,
            backoff_max=LONGEST_WAIT,
            retry_after_max=LONGEST_WAIT,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(max_retries=retry))

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send one request; the time-out is the session's, whatever a client library asks for."""
        host = urlsplit(request.url or "").netloc
        try:
            response = super().send(request, **options | {"timeout": self.timeout})
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.TooManyRedirects) as error:
            raise InputError(f"{self.name} cannot be asked at {host}: {_reason(error)}") from None
        except requests.RequestException as error:
            tries = f"{self.tries} tries" if self.tries > 1 else "one try"
            raise RemoteError(f"{self.name} does not answer at {host} after {tries}: {_reason(error)}") from None
        status = response.status_code
        if status in PASSING:
            response.close()
            raise RemoteError(f"{self.name} answers {status} at {host} after {self.tries} tries; try again later")
        if status >= 400:
            words = self._own_words(response)
            response.close()
            raise InputError(f"{self.name} refuses the request ({status}){words}{self._advice(status)}")
        return response

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Drop the key where a redirection leads to another host."""
        super().rebuild_auth(prepared_request, response)
        if self.should_strip_auth(response.request.url or "", prepared_request.url or ""):
            prepared_request.headers.pop(KEY_HEADER, None)

    def read_json(self, url: str, **parameters: Any) -> dict[str, Any]:
        """The JSON object at an address; RemoteError where something else comes, such as a page about maintenance."""
        response = self.get(url, params=parameters)
        try:
            document = response.json()
        except requests.exceptions.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            kind = response.headers.get("content-type", "something without a type")
            raise RemoteError(f"{self.name} answers {kind} in place of a JSON object at {response.url[:200]}")
        return document

    def _advice(self, status: int) -> str:
        return f"; {self.advice[status]}" if status in self.advice else ""

    def _own_words(self, response: requests.Response) -> str:
        """What the server says about a refusal, shortened, without the key."""
        try:
            document = response.json()
        except requests.exceptions.JSONDecodeError:
            return ""
        found = document if isinstance(document, dict) else {}
        errors = found.get("errors")
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        words = found.get("detail") or found.get("message") or first.get("detail") or first.get("title") or ""
        text = " ".join((words if isinstance(words, str) else json.dumps(words)).split())
        for header in (self.headers.get(KEY_HEADER), response.request.headers.get(KEY_HEADER)):
            text = text.replace(str(header), "…") if header else text
        return f": {text[:SHOWN_CHARACTERS]}" if text else ""


def _reason(error: Exception) -> str:
    """The innermost reason of a failed request, without the address and its parameters."""
    inner = error.args[0] if error.args else error
    reason = str(getattr(inner, "reason", None) or inner)
    return reason.rpartition("): ")[2].rstrip(". ") or type(error).__name__
