"""Request bodies: accepted values, the text of each refusal, and the schemas in the OpenAPI document."""

from typing import Any

import gevent
import orjson
import pytest
from flask import Flask, Response, request

from sessiond.http import bodies
from sessiond.http.render import json_response, problem_response
from sessiond.problems import Problem


def read(shape: type[bodies.Body], body: Any, content_type: str = "application/json") -> Any:
    """Read a request with this body as `shape`. Bytes are sent unchanged."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    with Flask("test").test_request_context("/", method="POST", data=data, content_type=content_type):
        return bodies.json_body(request, shape)


def refused(shape: type[bodies.Body], body: Any, content_type: str = "application/json") -> Problem:
    with pytest.raises(Problem) as found:
        read(shape, body, content_type)
    return found.value


class Never:
    """A stream that never sends a byte."""

    def read(self, size: int = -1) -> bytes:
        gevent.sleep(60)
        return b""

    readline = read


def test_a_body_that_does_not_arrive_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    app = Flask("test")

    @app.post("/")
    def take() -> Response:
        try:
            return json_response(bodies.json_body(request, bodies.NoMembers))
        except Problem as problem:
            return problem_response(problem)

    given = {"wsgi.input": Never(), "CONTENT_LENGTH": "100", "CONTENT_TYPE": "application/json"}
    answer = app.test_client().post("/", environ_overrides=given)
    assert (answer.status_code, answer.json["type"], answer.headers["Connection"]) == (400, "bad-request", "close")


def test_a_valid_body_is_accepted() -> None:
    take = read(bodies.TakeTicket, {"kind": "worker", "priority": None, "key": None})
    assert take == read(bodies.TakeTicket, {"kind": "worker"}) == bodies.TakeTicket("worker")
    assert read(bodies.TakeTicket, {"kind": "handler", "priority": 9}).priority == 9
    assert read(bodies.TakeTicket, b'{"kind": "boss", "kind": "handler"}').kind == "handler"
    assert read(bodies.WaitTicket, {"holder": "h"}).wait == 30
    assert read(bodies.WaitTicket, {"holder": " \u3000h", "wait": 0.5}) == bodies.WaitTicket(" \u3000h", 0.5)
    assert read(bodies.StartTurn, {"prompt": "a\r\nb\x01", "timeout": 1}).timeout == 1
    assert read(bodies.ForceRelease, {"fence": 2**53, "reason": "x" * 2_000}).fence == 2**53


@pytest.mark.parametrize("shape", [bodies.NoMembers, bodies.WithdrawTicket])
def test_a_body_may_be_empty_if_no_member_is_required(shape: type[bodies.Body]) -> None:
    assert read(shape, b"", "text/plain") == read(shape, b"{}") == shape()
    assert refused(shape, b" ").extra == {}
    assert refused(shape, b"{}", "text/plain").type == "unsupported-media-type"


LINE = "not blank and without control characters"
WRONG = [
    (bodies.TakeTicket, {"kind": ["handler"]}, "kind", "must be one of handler, worker"),
    (bodies.TakeTicket, {"kind": "handler", "priority": 10}, "priority", "must be an integer from 0 to 9, or null"),
    (bodies.TakeTicket, {"kind": "handler", "priority": 5.0}, "priority", "must be an integer from 0 to 9, or null"),
    (bodies.TakeTicket, {"kind": "handler", "priority": True}, "priority", "must be an integer from 0 to 9, or null"),
    (bodies.WaitTicket, {"holder": "h", "wait": None}, "wait", "must be a number from 0 to 300"),
    (bodies.WaitTicket, {"holder": "h", "wait": True}, "wait", "must be a number from 0 to 300"),
    (bodies.WaitTicket, {"holder": "h", "wait": 300.1}, "wait", "must be a number from 0 to 300"),
    (bodies.WaitTicket, {"holder": "\u3000"}, "holder", f"must be a string of 1 to 200 characters, {LINE}"),
    (bodies.WaitTicket, {"holder": "h\n"}, "holder", f"must be a string of 1 to 200 characters, {LINE}"),
    (bodies.WaitTicket, {"holder": "h" * 201}, "holder", f"must be a string of 1 to 200 characters, {LINE}"),
    (bodies.WithdrawTicket, {"holder": 5}, "holder", f"must be a string of 1 to 200 characters, {LINE}, or null"),
    (
        bodies.StartTurn, {"prompt": "a\x00b"}, "prompt",
        "must be a string of 1 to 1000000 characters, not blank and without NUL characters",
    ),
    (bodies.StartTurn, {"prompt": "p", "raw": 1}, "raw", "must be true or false"),
    (bodies.StartTurn, {"prompt": "p", "raw": None}, "raw", "must be true or false"),
    (bodies.StartTurn, {"prompt": "p", "timeout": 0.5}, "timeout", "must be a number from 1 to 86400, or null"),
    (
        bodies.ForceRelease, {"fence": 1, "reason": "x" * 2_001}, "reason",
        f"must be a string of 1 to 2000 characters, {LINE}",
    ),
    (
        bodies.ForceRelease, {"fence": 2**53 + 1, "reason": "x"}, "fence",
        "must be an integer from 1 to 9007199254740992",
    ),
    (bodies.ForceRelease, {}, "fence", "is missing"),
    (bodies.SignInKey, {"key": "\x7f"}, "key", f"must be a string of 1 to 500 characters, {LINE}"),
    (bodies.NoMembers, {"x" * 200: 1}, "x" * 100, "is not a member of this request"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "body", "field", "why"), WRONG)
def test_a_refusal_names_the_member_and_the_expected_value(
    shape: type[bodies.Body], body: Any, field: str, why: str
) -> None:
    problem = refused(shape, body)
    assert (problem.type, problem.extra, problem.detail) == ("bad-request", {"field": field}, f"`{field}` {why}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"priority": "x", "colour": 1, "key": 5}, "colour"),
        ({"priority": "x", "key": 5}, "kind"),
        ({"priority": "x", "key": 5, "kind": "boss"}, "priority"),
        ({"key": 5, "kind": "boss", "priority": "x"}, "key"),
    ],
)
def test_unknown_members_are_reported_before_missing_ones(body: Any, field: str) -> None:
    assert refused(bodies.TakeTicket, body).extra == {"field": field}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"kind": NaN}', b'{"kind": "\\ud800"}', b"[" * 2_000, b"{} {}"]
)
def test_the_refusal_of_a_body_that_is_not_an_object_names_no_member(body: bytes) -> None:
    problem = refused(bodies.TakeTicket, body)
    assert (problem.type, problem.extra) == ("bad-request", {})


def test_a_schema_has_types_limits_and_required_members() -> None:
    assert bodies.schema(bodies.NoMembers) == {
        "type": "object", "additionalProperties": False, "required": [], "properties": {},
    }  # fmt: skip
    line = {"type": "string", "minLength": 1, "pattern": r"^[^\x00-\x1f\x7f]+$"}
    assert bodies.schema(bodies.TakeTicket) == {
        "type": "object", "additionalProperties": False, "required": ["kind"],
        "properties": {
            "kind": {"enum": ["handler", "worker"]},
            "priority": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]},
            "key": {"anyOf": [{**line, "maxLength": 512}, {"type": "null"}]},
        },
    }  # fmt: skip
    assert bodies.schema(bodies.StartTurn)["properties"]["prompt"] == {
        "type": "string", "minLength": 1, "maxLength": 1_000_000, "pattern": r"^[^\x00]*\S[^\x00]*$",
    }  # fmt: skip
    assert bodies.schema(bodies.LedgerWait) == {"type": "number", "minimum": 0, "maximum": 60}


@pytest.mark.parametrize(
    ("given", "found"), [("0", 0), (" 1e1 ", 10), ("60", 60), ("61", None), ("-1", None), ("nan", None), ("x", None)]
)
def test_a_number_in_the_query_is_checked(given: str, found: float | None) -> None:
    with Flask("test").test_request_context("/", query_string={"wait": given}):
        if found is None:
            with pytest.raises(Problem, match="`wait` must be a number from 0 to 60"):
                bodies.query_number(request, "wait", bodies.LedgerWait, 5)
        else:
            assert bodies.query_number(request, "wait", bodies.LedgerWait, 5) == found
