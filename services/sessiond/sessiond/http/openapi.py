"""The OpenAPI document that the service publishes: every call with its parameters, bodies and answers.

Bodies and parameters come from their definitions in `bodies`, problem types from `problems`.
"""

from typing import Any, Final

from sessiond.http import bodies
from sessiond.http.board.signin import COOKIE
from sessiond.problems import KINDS

Document = dict[str, Any]

_SESSION: Final = "/v1/sessions/{owner}/{repo}"
_FILES: Final = ("text/css", "text/javascript", "image/svg+xml", "text/html")
_PART: Final = "[A-Za-z0-9._-]{1,100}"


def _parameter(name: str, where: str, schema: Document, required: bool = True) -> Document:
    return {"name": name, "in": where, "required": required, "schema": schema}


_NAME: Final = {"type": "string", "pattern": f"^{_PART}$"}
_PATH: Final = (_parameter("owner", "path", _NAME), _parameter("repo", "path", _NAME))
_TICKET: Final = _parameter("ticket", "path", {"type": "string"})
_TURN: Final = _parameter("turn", "path", {"type": "string"})
_SECRET: Final = _parameter(
    "Lease-Secret", "header", {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"}
)
_OPTIONAL_SECRET: Final = {**_SECRET, "required": False}


def _answer(status: int, description: str, media_type: str = "application/json") -> Document:
    if status == 204:
        return {"204": {"description": description}}
    schema = {"type": "object"} if "json" in media_type else {"type": "string"}
    return {str(status): {"description": description, "content": {media_type: {"schema": schema}}}}


def _problems(*statuses: int) -> Document:
    return {str(status): {"$ref": f"#/components/responses/p{status}"} for status in statuses}


def _body(shape: type[bodies.Body]) -> Document:
    schema = bodies.schema(shape)
    return {"required": bool(schema["required"]), "content": {"application/json": {"schema": schema}}}


def _call(
    summary: str, answers: Document, *problems: int, parameters: tuple[Document, ...] = (),
    body: type[bodies.Body] | None = None,
) -> Document:  # fmt: skip
    """Return one call of a session."""
    found: Document = {
        "summary": summary,
        "parameters": [*_PATH, *parameters],
        "responses": {**answers, **_problems(400, 401, 403, 421, 503, *problems)},
    }
    if body is not None:
        found["requestBody"] = _body(body)
        found["responses"] |= _problems(413, 415)
    return found


def _tickets() -> Document:
    taken = {**_answer(201, "A new ticket"), **_answer(200, "The ticket that this key has already")}
    return {
        "/tickets": {"post": _call("Take a ticket", taken, 409, body=bodies.TakeTicket)},
        "/tickets/{ticket}": {
            "get": _call("Get a ticket", _answer(200, "The ticket"), 404, 410, parameters=(_TICKET,)),
            "delete": _call(
                "Withdraw a ticket", _answer(204, "The ticket is withdrawn"), 404, 409, 410,
                parameters=(_TICKET,), body=bodies.WithdrawTicket,
            ),
        },
        "/tickets/{ticket}/wait": {
            "post": _call(
                "Wait on a ticket for the lease", _answer(200, "The state: waiting, or granted with the lease"),
                404, 409, 410, parameters=(_TICKET,), body=bodies.WaitTicket,
            )
        },
        "/lease/renew": {
            "post": _call(
                "Renew the lease", _answer(200, "When the lease expires"), 409,
                parameters=(_SECRET,), body=bodies.NoMembers,
            )
        },
        "/lease": {
            "delete": _call("Release the lease", _answer(204, "The lease is released"), 409, parameters=(_SECRET,))
        },
    }  # fmt: skip


def _turns() -> Document:
    key = _parameter("key", "query", bodies.schema(bodies.Key))
    return {
        "/turns": {
            "post": _call(
                "Run a turn", _answer(200, "Events: agent, gap, and one result", "text/event-stream"), 409,
                parameters=(_SECRET,), body=bodies.StartTurn,
            ),
            "get": _call("Find a turn by its key", _answer(200, "The turn"), 404, parameters=(key,)),
        },
        "/turns/{turn}": {
            "get": _call("Get a turn", _answer(200, "The turn"), 404, parameters=(_TURN,)),
            "delete": _call(
                "Cancel a turn", _answer(204, "The turn is cancelled"), 404, 409, parameters=(_TURN, _OPTIONAL_SECRET)
            ),
        },
    }  # fmt: skip


def _session() -> Document:
    ledger = (
        _parameter("after", "query", {"type": "string", "pattern": r"^\d{1,20}-\d{1,20}$"}, False),
        _parameter("wait", "query", bodies.schema(bodies.LedgerWait), False),
        _parameter("count", "query", {**bodies.schema(bodies.LedgerCount), "type": "integer"}, False),
    )
    return {
        "": {
            "get": _call(
                "Get a session. This creates no session: an unused name has an empty view",
                _answer(200, "Holder, queue and agent"),
            )
        },
        **_tickets(),
        **_turns(),
        "/ledger": {"get": _call("Read the ledger", _answer(200, "Entries, oldest first"), parameters=ledger)},
        "/force-release": {
            "post": _call(
                "End the lease with this fence", _answer(204, "The lease has ended"), 409, body=bodies.ForceRelease
            )
        },
        "/agent/restart": {
            "post": _call("Restart the agent", _answer(204, "The agent has stopped"), body=bodies.NoMembers)
        },
        "/conversation": {
            "post": _call("Begin a new conversation", _answer(201, "The conversation"), 409, body=bodies.NoMembers)
        },
    }


def _board() -> Document:
    """Return the board's own calls. The board's cookie is valid for GET /v1/board only."""
    selected = _parameter("session", "query", {"type": "string", "pattern": f"^{_PART}/{_PART}$"}, False)
    shown = _answer(200, "The sessions, and one in detail with its last leases; as a stream: then every change")
    shown["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    name = _parameter("name", "path", {"type": "string", "pattern": r"^[a-z.-]+$"})
    file = {"200": {"description": "The file", "content": {kind: {} for kind in _FILES}}, **_problems(404)}
    return {
        "/": {"get": {"summary": "The board", "security": [], "responses": _answer(200, "A page", "text/html")}},
        "/board/{name}": {
            "get": {"summary": "A file of the board's page", "security": [], "parameters": [name], "responses": file}
        },
        "/v1/board": {
            "get": {
                "summary": "What the board shows", "security": [{"key": []}, {"cookie": []}], "parameters": [selected],
                "responses": {**shown, **_problems(400, 401, 403, 503)},
            }
        },
        "/v1/board/sign-in": {"post": _board_post("Exchange a key for the board's cookie", bodies.SignInKey, 401)},
        "/v1/board/sign-out": {"post": _board_post("Delete the board's cookie", bodies.NoMembers)},
    }  # fmt: skip


def _board_post(summary: str, body: type[bodies.Body], *problems: int) -> Document:
    return {
        "summary": summary, "security": [], "requestBody": _body(body),
        "responses": {**_answer(204, "Done"), **_problems(400, 413, 415, *problems)},
    }  # fmt: skip


def _sessions() -> Document:
    listed = {**_answer(200, "The sessions"), **_problems(401)}
    return {"get": {"summary": "List the sessions that this instance owns", "responses": listed}}


def _service() -> Document:
    return {
        "/healthz": {"get": _open("Whether the process runs", _answer(200, "It runs"))},
        "/readyz": {
            "get": _open(
                "Whether Redis is reachable and the service takes calls",
                {**_answer(200, "It is ready"), **_problems(503)},
            )
        },
        "/openapi.json": {"get": _open("This document", _answer(200, "The document"))},
        "/metrics": {"get": _open("Metrics for Prometheus", _answer(200, "The metrics", "text/plain"))},
    }


def _open(summary: str, answers: Document) -> Document:
    return {"summary": summary, "security": [], "responses": answers}


def _problem_schema() -> Document:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"enum": sorted(KINDS)}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "reason": {"type": "string"}, "owner_url": {"type": "string"},
        },
    }  # fmt: skip


def document() -> Document:
    """Return the OpenAPI 3.1 document."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    types: dict[int, list[str]] = {}
    for name, kind in KINDS.items():
        types.setdefault(kind.status, []).append(name)
    return {
        "openapi": "3.1.0",
        "info": {"title": "sessiond", "version": "1"},
        "security": [{"key": []}],
        "paths": {
            **{_SESSION + path: calls for path, calls in _session().items()},
            "/v1/sessions": _sessions(),
            **_board(),
            **_service(),
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
            "schemas": {"Problem": _problem_schema()},
            "responses": {
                f"p{status}": {"description": " · ".join(types[status]), "content": content} for status in sorted(types)
            },
        },
    }
