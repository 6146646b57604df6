"""Patience with what passes, one sentence for what does not, and a key that goes nowhere else."""

import pytest

from tasks.exceptions import InputError, RemoteError
from tasks.remote import KEY_HEADER, PatientSession
from tasks.settings import FetchSettings
from tests.postgres import free_port
from tests.tasks.local_servers import scripted

QUICK = FetchSettings(retries=2, backoff_seconds=0.01, timeout_seconds=60)
KEY = "planted-key-0123456789abcdefghij"
GOOD = (200, {"answer": 42}, {})


def session(settings=QUICK, **advice):
    return PatientSession("The database", settings, {int(status[1:]): text for status, text in advice.items()})


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(status):
    headers = {"Retry-After": "0"} if status in (429, 503) else {}
    with scripted((status, {}, headers), (status, {}, {}), GOOD) as (url, seen):
        assert session().read_json(url) == {"answer": 42}
    assert len(seen) == 3


def test_what_does_not_pass_in_time_is_one_sentence():
    with scripted(*[(503, {}, {})] * 3, GOOD) as (url, seen), pytest.raises(RemoteError) as raised:
        session().read_json(url)
    assert str(raised.value) == f"The database answers 503 at {url[7:]} after 3 tries; try again later"
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (400, {"errors": [{"title": "Bad Request", "detail": "no such field"}]}, r"\(400\): no such field$"),
        (401, {"message": f"Invalid key {KEY}"}, r"\(401\): Invalid key …; check the key$"),
        (403, {"detail": [{"msg": "no"}]}, r'\(403\): \[{"msg": "no"}\]$'),
        (404, "<html>", r"\(404\)$"),
        (422, {"detail": "x" * 5000}, r"\(422\): x{200}$"),
    ],
)
def test_a_refusal_is_not_asked_again_and_never_shows_the_key(status, body, sentence):
    with scripted((status, body, {}), GOOD) as (url, seen), pytest.raises(InputError, match=sentence):
        session(_401="check the key").get(url, headers={KEY_HEADER: KEY})
    assert len(seen) == 1


def test_a_server_that_is_silent_or_gone():
    with scripted(60, 60) as (url, seen), pytest.raises(RemoteError, match=r"does not answer .* after 2 tries: Read"):
        session(QUICK.model_copy(update={"timeout_seconds": 1, "retries": 1})).get(url)
    assert len(seen) == 2
    with pytest.raises(RemoteError, match="Connection refused"):
        session().get(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RemoteError, match="Failed to resolve"):
        session().get("http://nowhere.invalid")


@pytest.mark.parametrize("body", ["<html>Maintenance</html>", "[1, 2]", ""])
def test_what_is_no_object_is_told(body):
    page = (200, body, {"Content-Type": "text/html"})
    with scripted(page) as (url, _), pytest.raises(RemoteError, match="answers text/html in place of a JSON object"):
        session().read_json(url)


def test_a_redirection_to_another_host_does_not_get_the_key():
    with scripted(GOOD) as (other, seen):
        away = (302, {}, {"Location": other.replace("127.0.0.1", "localhost")})
        with scripted((302, {}, {"Location": "URL/here"}), away) as (url, first):
            own = session()
            own.headers[KEY_HEADER] = KEY
            assert own.read_json(url) == {"answer": 42}
    assert [request.headers.get(KEY_HEADER) for request in (*first, *seen)] == [KEY, KEY, None]


def test_endless_redirections_end():
    with scripted(*[(302, {}, {"Location": "URL"})] * 40) as (url, _), pytest.raises(InputError, match="30 redirects"):
        session().get(url)
