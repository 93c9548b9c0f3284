"""Reading requests strictly: JSON bodies, query parameters, names and ids. Every error names its field."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import gevent
import orjson
from flask import Request, Response, after_this_request
from gunicorn.http.errors import ParseException

from sessiond.problems import Problem

BODY_LIMIT: Final = 4 * 2**20
BODY_SECONDS: Final = 30.0
"""For all of a body; else who sends nothing holds one of the places that there are for connections."""
PROMPT_LIMIT: Final = 1_000_000
KEY_LIMIT: Final = 512
HOLDER_LIMIT: Final = 200
REASON_LIMIT: Final = 2_000
WAIT_LIMIT: Final = 300.0
NAME: Final = re.compile(r"[a-z0-9._-]{1,100}")
ID: Final = re.compile(r"t[ku]-[0-9a-f]{32}")
STREAM_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Reader = Callable[[str, Any], Any]


def bad(field: str, why: str) -> Problem:
    """400, naming the field."""
    return Problem("bad-request", 400, f"{field}: {why}", field=field)


def session_name(owner: str, repo: str) -> str:
    """`owner/repo` in lower case. Raises Problem."""
    for field, part in (("owner", owner.lower()), ("repo", repo.lower())):
        if not NAME.fullmatch(part) or part in (".", ".."):
            raise bad(field, "must be 1 to 100 of a-z 0-9 . _ - (case is folded), and not . or ..")
    return f"{owner}/{repo}".lower()


def thing_id(value: str, what: str) -> str:
    """A ticket's or turn's id. Raises Problem: what cannot be an id is not there."""
    if not ID.fullmatch(value):
        raise Problem("not-found", 404, f"There is no such {what}")
    return value


def json_body(
    request: Request, readers: Mapping[str, Reader], required: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The body's fields, read by `readers`; an unknown or missing field is an error. Raises Problem."""
    raw = _raw(request)
    if not raw and not required:
        return {}
    if request.mimetype != "application/json":
        raise Problem("unsupported-media-type", 415, "The body must be application/json")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem("bad-request", 400, f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Problem("bad-request", 400, "The body must be a JSON object")
    for field in body:
        if field not in readers:
            raise bad(field[:100], "is not a field of this request")
    for field in sorted(required):
        if field not in body:
            raise bad(field, "is missing")
    return {field: readers[field](field, value) for field, value in body.items()}


def _raw(request: Request) -> bytes:
    """The body's bytes; one in pieces has no length before, and of it werkzeug reads as much as it may."""
    length = request.content_length or 0
    try:
        with gevent.Timeout(BODY_SECONDS):  # no OSError, which werkzeug would take for its own
            raw = request.get_data(cache=False) if length <= BODY_LIMIT else b""
    except gevent.Timeout as error:
        after_this_request(_closes)  # what may still come of it is no next request
        raise Problem("bad-request", 400, f"The body did not come within {BODY_SECONDS:g} s") from error
    except ParseException as error:
        raise Problem("bad-request", 400, f"The body cannot be read: {error}") from error
    if max(length, len(raw)) > BODY_LIMIT:
        raise Problem("too-large", 413, f"The body must not exceed {BODY_LIMIT} bytes")
    return raw


def _closes(response: Response) -> Response:
    response.headers["Connection"] = "close"
    return response


def text(limit: int, *, lines: bool = False) -> Reader:
    """A string of 1 to `limit` characters; control characters only with `lines`."""

    def read(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise bad(field, "must be a string")
        if not 0 < len(value) <= limit or not value.strip():
            raise bad(field, f"must have 1 to {limit} characters")
        if "\x00" in value or (not lines and _CONTROL.search(value)):
            raise bad(field, "must not have control characters")
        return value

    return read


def number(low: float, high: float, *, whole: bool = False) -> Reader:
    """A number from `low` to `high`."""

    def read(field: str, value: Any) -> float | int:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise bad(field, "must be a whole number" if whole else "must be a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise bad(field, f"must be from {low:g} to {high:g}")
        return value

    return read


def choice(*allowed: str) -> Reader:
    """One of these strings."""

    def read(field: str, value: Any) -> str:
        if value not in allowed:
            raise bad(field, f"must be one of {', '.join(allowed)}")
        return str(value)

    return read


def boolean(field: str, value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise bad(field, "must be true or false")
    return value


def maybe(reader: Reader) -> Reader:
    """The same, or null."""
    return lambda field, value: None if value is None else reader(field, value)


def query_number(request: Request, field: str, low: float, high: float, default: float) -> float:
    """A number in the query. Raises Problem."""
    given = request.args.get(field)
    if given is None:
        return default
    try:
        value = float(given)
    except ValueError:
        raise bad(field, "must be a number") from None
    return float(number(low, high)(field, value))


def query_entry(request: Request, field: str) -> str | None:
    """A ledger entry's id: where an EventSource that connects again has come to, else the query's. Raises Problem."""
    given = request.headers.get("Last-Event-ID") or request.args.get(field)
    if given is None:
        return None
    if not STREAM_ID.fullmatch(given) or any(int(part) >= 2**64 - 1 for part in given.split("-")):
        raise bad(field, "must be a ledger entry's id")
    return given
