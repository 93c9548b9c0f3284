"""Request bodies and parameters: their definitions, and the functions that read them.

Each body is one msgspec Struct, and each parameter one annotated type. Both validate requests, and `schema` turns them
into the OpenAPI document. orjson parses the JSON, as everywhere in this project. Every refusal names the wrong member.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import gevent
import msgspec
import orjson
from flask import Request, Response, after_this_request
from gunicorn.http.errors import ParseException
from msgspec import Meta, Struct, structs

from sessiond.problems import Problem

BODY_LIMIT: Final = 4 * 2**20
"""The size limit of a body, in bytes."""
BODY_SECONDS: Final = 30.0
"""Time limit for a whole body, so that slow clients free their connection."""
NAME: Final = re.compile(r"[a-z0-9._-]{1,100}")
ID: Final = re.compile(r"t[ku]-[0-9a-f]{32}")
STREAM_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")

_LINE: Final = r"^(?=\s*\S)[^\x00-\x1f\x7f\ud800-\udfff]+\Z"
_TEXT: Final = r"^(?=\s*\S)[^\x00]+\Z"
_PUBLISHED: Final = {_LINE: r"^[^\x00-\x1f\x7f]+$", _TEXT: r"^[^\x00]*\S[^\x00]*$"}
"""The pattern that OpenAPI shows, by our pattern. JSON Schema uses ECMAScript, which has no `\\Z`."""
_RULES: Final = {
    _PUBLISHED[_LINE]: "not blank and without control characters",
    _PUBLISHED[_TEXT]: "not blank and without NUL characters",
}

# ---- definitions ---------------------------------------------------------------------------------

Key = Annotated[str, Meta(min_length=1, max_length=512, pattern=_LINE)]
Holder = Annotated[str, Meta(min_length=1, max_length=200, pattern=_LINE)]
LedgerWait = Annotated[float, Meta(ge=0, le=60)]
LedgerCount = Annotated[float, Meta(ge=1, le=5_000)]


class Body(Struct, frozen=True, forbid_unknown_fields=True):
    """A request body. Members that a subclass does not define are refused."""


class NoMembers(Body, frozen=True):
    """The body of a call without arguments: none, or `{}`."""


class TakeTicket(Body, frozen=True):
    """POST /tickets."""

    kind: Literal["handler", "worker"]
    priority: Annotated[int, Meta(ge=0, le=9)] | None = None
    key: Key | None = None


class WaitTicket(Body, frozen=True):
    """POST /tickets/{id}/wait. `wait` in seconds."""

    holder: Holder
    wait: Annotated[float, Meta(ge=0, le=300.0)] = 30.0


class WithdrawTicket(Body, frozen=True):
    """DELETE /tickets/{id}."""

    holder: Holder | None = None


class StartTurn(Body, frozen=True):
    """POST /turns. `timeout` in seconds."""

    prompt: Annotated[str, Meta(min_length=1, max_length=1_000_000, pattern=_TEXT)]
    model: Annotated[str, Meta(min_length=1, max_length=200, pattern=_LINE)] | None = None
    key: Key | None = None
    timeout: Annotated[float, Meta(ge=1, le=86_400)] | None = None
    raw: bool = False


class ForceRelease(Body, frozen=True):
    """POST /force-release."""

    fence: Annotated[int, Meta(ge=1, le=2**53)]
    reason: Annotated[str, Meta(min_length=1, max_length=2_000, pattern=_LINE)]


class SignInKey(Body, frozen=True):
    """POST /v1/board/sign-in."""

    key: Annotated[str, Meta(min_length=1, max_length=500, pattern=_LINE)]


B = TypeVar("B", bound=Body)


def schema(of: Any) -> dict[str, Any]:
    """Return the JSON Schema of a body or a parameter, as OpenAPI publishes it: without titles and defaults."""
    if not (isinstance(of, type) and issubclass(of, Body)):
        return _published(msgspec.json.schema(of))
    _, components = msgspec.json.schema_components([of])
    found = components[of.__name__]
    properties = {name: _published(member) for name, member in found["properties"].items()}
    return {**{n: found[n] for n in ("type", "additionalProperties", "required")}, "properties": properties}


def _published(member: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in member.items() if name != "default"}
    if "anyOf" in found:
        found["anyOf"] = [_published(one) for one in found["anyOf"]]
    if "pattern" in found:
        found["pattern"] = _PUBLISHED[found["pattern"]]
    return found


# ---- refusals ------------------------------------------------------------------------------------


def bad(field: str, why: str) -> Problem:
    """Return a problem 400. Its `field` and sentence name the wrong member, parameter or header."""
    return Problem("bad-request", 400, f"`{field}` {why}", field=field)


def checked(field: str, value: Any, of: Any) -> Any:
    """Return the value as the annotated type `of`.

    Raises:
        Problem: `bad-request` if it does not fit; the sentence says what the type requires.
    """
    try:
        return msgspec.convert(value, of)
    except msgspec.ValidationError:
        raise bad(field, f"must be {_requirement(schema(of))}") from None


def _requirement(member: Mapping[str, Any]) -> str:
    match member:
        case {"anyOf": [inner, {"type": "null"}]}:
            return f"{_requirement(inner)}, or null"
        case {"enum": allowed}:
            return f"one of {', '.join(allowed)}"
        case {"type": "string", "minLength": low, "maxLength": high, "pattern": pattern}:
            return f"a string of {low} to {high} characters, {_RULES[pattern]}"
        case {"type": "integer", "minimum": low, "maximum": high}:
            return f"an integer from {low} to {high}"
        case {"type": "number", "minimum": low, "maximum": high}:
            return f"a number from {low:g} to {high:g}"
    return "true or false"


def _explained(members: Mapping[str, Any], shape: type[Body], error: Exception) -> Problem:
    """Return why these members do not fit: unknown ones first, then missing ones, then values in their order."""
    fields = {field.name: field for field in structs.fields(shape)}
    for name in members:
        if name not in fields:
            return bad(name[:100], "is not a member of this request")
    for name in sorted(fields):
        if fields[name].required and name not in members:
            return bad(name, "is missing")
    for name, value in members.items():
        try:
            checked(name, value, fields[name].type)
        except Problem as problem:
            return problem
    return Problem("bad-request", 400, f"The body is not valid: {error}")


# ---- reading -------------------------------------------------------------------------------------


def json_body(request: Request, shape: type[B]) -> B:
    """Return the request's body. An empty one is `{}` if `shape` requires no member.

    Raises:
        Problem: `bad-request` (with `field` where one member is wrong), `too-large`, `unsupported-media-type`.
    """
    raw = _raw(request)
    if not raw and not any(field.required for field in structs.fields(shape)):
        return shape()
    if request.mimetype != "application/json":
        raise Problem("unsupported-media-type", 415, "Send the body with Content-Type: application/json")
    try:
        members = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem("bad-request", 400, f"The body is not valid JSON: {error}") from error
    if not isinstance(members, dict):
        raise Problem("bad-request", 400, "The body must be a JSON object")
    try:
        return msgspec.convert(members, shape)
    except msgspec.ValidationError as error:
        raise _explained(members, shape, error) from error


def _raw(request: Request) -> bytes:
    """Return the body's bytes. A chunked body has no declared length; werkzeug then reads up to MAX_CONTENT_LENGTH."""
    length = request.content_length or 0
    try:
        # Not an OSError, which werkzeug would report as a disconnected client.
        with gevent.Timeout(BODY_SECONDS):
            raw = request.get_data(cache=False) if length <= BODY_LIMIT else b""
    except gevent.Timeout as error:
        after_this_request(_close_connection)  # late bytes of this body must not be read as the next request
        raise Problem("bad-request", 400, f"The body did not arrive within {BODY_SECONDS:g} s") from error
    except ParseException as error:
        raise Problem("bad-request", 400, f"The body cannot be read: {error}") from error
    if max(length, len(raw)) > BODY_LIMIT:
        raise Problem("too-large", 413, f"The body must not exceed {BODY_LIMIT} bytes")
    return raw


def _close_connection(response: Response) -> Response:
    response.headers["Connection"] = "close"
    return response


def query_number(request: Request, field: str, of: Any, default: float) -> float:
    """Return a number of the query, as the annotated type `of`.

    Raises:
        Problem: `bad-request` if it is not a number or out of range.
    """
    given = request.args.get(field)
    if given is None:
        return default
    try:
        value: float | str = float(given)
    except ValueError:
        value = given
    return float(checked(field, value, of))


def query_entry(request: Request, field: str) -> str | None:
    """Return a ledger entry's id: `Last-Event-ID` (an EventSource that reconnects sends it), else the query's value.

    Raises:
        Problem: `bad-request` if it is not an id that Redis could have given.
    """
    given = request.headers.get("Last-Event-ID") or request.args.get(field)
    if given is None:
        return None
    if not STREAM_ID.fullmatch(given) or any(int(part) >= 2**64 - 1 for part in given.split("-")):
        raise bad(field, "must be the id of a ledger entry")
    return given


# ---- paths ---------------------------------------------------------------------------------------


def session_name(owner: str, repo: str) -> str:
    """Return `owner/repo` in lower case.

    Raises:
        Problem: `bad-request` for a part that is not a name.
    """
    for field, part in (("owner", owner.lower()), ("repo", repo.lower())):
        if not NAME.fullmatch(part) or part in (".", ".."):
            raise bad(field, "must have 1 to 100 characters of a-z 0-9 . _ - (in either case), and not be . or ..")
    return f"{owner}/{repo}".lower()


def checked_id(value: str, what: str) -> str:
    """Return the id of a ticket or a turn.

    Raises:
        Problem: `not-found` for text that cannot be an id.
    """
    if not ID.fullmatch(value):
        raise Problem("not-found", 404, f"No such {what}")
    return value
