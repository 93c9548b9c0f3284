"""The served OpenAPI document: the HTTP table in one place, so that clients and fuzzers can read it."""

from typing import Any

from sessiond.http import bodies
from sessiond.http.board.signin import COOKIE
from sessiond.problems import KINDS

_SESSION = "/v1/sessions/{owner}/{repo}"
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,100}$"}
_ANYTHING: dict[str, Any] = {"type": "object"}


def _param(name: str, where: str, schema: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema}


_LOOK = "Looks at a session; one that nobody has used yet has an empty view, and is not made by it"
_PATH = [_param("owner", "path", _NAME), _param("repo", "path", _NAME)]
_TICKET = _param("ticket", "path", {"type": "string"})
_TURN = _param("turn", "path", {"type": "string"})
_SECRET = _param("Lease-Secret", "header", {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[!-~]+$"})
_OPTIONAL_SECRET = {**_SECRET, "required": False}

_FILES = ("text/css", "text/javascript", "image/svg+xml", "text/html")


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _text(limit: int, pattern: str = r"^[^\x00-\x1f\x7f]+$") -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": limit, "pattern": pattern}


_KEY = _text(bodies.KEY_LIMIT)
_HOLDER = _text(bodies.HOLDER_LIMIT)


def _object(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _answer(status: int, what: str, kind: str = "application/json") -> dict[str, Any]:
    content = (
        {} if status == 204 else {"content": {kind: {"schema": _ANYTHING if "json" in kind else {"type": "string"}}}}
    )
    return {str(status): {"description": what, **content}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/p{status}"} for status in statuses}


def _call(
    answers: dict[str, Any], *problems: int, summary: str, parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None, needs_body: bool = True,
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {
        "summary": summary,
        "parameters": [*_PATH, *(parameters or [])],
        "responses": {**answers, **_problems(400, 401, 403, 421, 503, *problems)},
    }
    if body is not None:
        found["requestBody"] = {"required": needs_body, "content": {"application/json": {"schema": body}}}
        found["responses"] |= _problems(413, 415)
    return found


def _paths() -> dict[str, Any]:
    take = _object(
        ["kind"], kind={"enum": ["handler", "worker"]}, key=_nullable(_KEY),
        priority=_nullable({"type": "integer", "minimum": 0, "maximum": 9}),
    )  # fmt: skip
    wait = _object(["holder"], holder=_HOLDER, wait={"type": "number", "minimum": 0, "maximum": bodies.WAIT_LIMIT})
    turn = _object(
        ["prompt"],
        prompt={"type": "string", "minLength": 1, "maxLength": bodies.PROMPT_LIMIT, "pattern": r"^[^\x00]*\S[^\x00]*$"},
        model=_nullable(_text(200)), key=_nullable(_KEY),
        timeout=_nullable({"type": "number", "minimum": 1, "maximum": 86_400}), raw={"type": "boolean"},
    )  # fmt: skip
    force = _object(
        ["fence", "reason"],
        fence={"type": "integer", "minimum": 1, "maximum": 2**53},
        reason=_text(bodies.REASON_LIMIT),
    )
    after = _param("after", "query", {"type": "string", "pattern": r"^\d{1,20}-\d{1,20}$"}, False)
    seconds = _param("wait", "query", {"type": "number", "minimum": 0, "maximum": 60}, False)
    count = _param("count", "query", {"type": "integer", "minimum": 1, "maximum": 5000}, False)
    key = _param("key", "query", _KEY)
    one = [_TICKET]
    return {
        _SESSION: {
            "get": _call(_answer(200, "Holder, queue and agent; of an unused session an empty view"), summary=_LOOK)
        },
        f"{_SESSION}/tickets": {
            "post": _call(
                {**_answer(201, "A new ticket"), **_answer(200, "The key's ticket")},
                409,
                body=take,
                summary="Takes a place",
            )
        },
        f"{_SESSION}/tickets/{{ticket}}": {
            "get": _call(_answer(200, "The ticket"), 404, 410, summary="Looks at a ticket", parameters=one),
            "delete": _call(
                _answer(204, "Withdrawn"),
                404,
                409,
                410,
                summary="Withdraws",
                needs_body=False,
                body=_object([], holder=_nullable(_HOLDER)),
                parameters=one,
            ),
        },
        f"{_SESSION}/tickets/{{ticket}}/wait": {
            "post": _call(
                _answer(200, "waiting or granted"),
                404,
                409,
                410,
                body=wait,
                summary="Is present, and waits",
                parameters=one,
            )
        },
        f"{_SESSION}/lease/renew": {
            "post": _call(
                _answer(200, "expires_at"),
                409,
                parameters=[_SECRET],
                body=_object([]),
                needs_body=False,
                summary="Renews",
            )
        },
        f"{_SESSION}/lease": {"delete": _call(_answer(204, "Released"), 409, parameters=[_SECRET], summary="Releases")},
        f"{_SESSION}/turns": {
            "post": _call(
                _answer(200, "agent, gap and result events", "text/event-stream"),
                409,
                parameters=[_SECRET],
                body=turn,
                summary="One turn",
            ),
            "get": _call(_answer(200, "The turn"), 404, parameters=[key], summary="Finds a turn by its key"),
        },
        f"{_SESSION}/turns/{{turn}}": {
            "get": _call(_answer(200, "The turn"), 404, parameters=[_TURN], summary="What became of a turn"),
            "delete": _call(
                _answer(204, "Cancelled"), 404, 409, parameters=[_TURN, _OPTIONAL_SECRET], summary="Cancels a turn"
            ),
        },
        f"{_SESSION}/ledger": {
            "get": _call(_answer(200, "Entries"), parameters=[after, seconds, count], summary="Reads the ledger")
        },
        f"{_SESSION}/force-release": {
            "post": _call(_answer(204, "Ended"), 409, body=force, summary="Ends a lease by its fence")
        },
        f"{_SESSION}/agent/restart": {
            "post": _call(_answer(204, "Stopped"), body=_object([]), needs_body=False, summary="Restarts the agent")
        },
        f"{_SESSION}/conversation": {
            "post": _call(
                _answer(201, "The conversation"), 409, body=_object([]), needs_body=False, summary="Begins a fresh one"
            )
        },
        "/v1/sessions": {
            "get": {"summary": "All sessions owned here", "responses": {**_answer(200, "Sessions"), **_problems(401)}}
        },
        **_board(),
        **{path: {"get": _open(path)} for path in ("/healthz", "/readyz", "/openapi.json", "/metrics")},
    }


def _board() -> dict[str, Any]:
    """The board's own calls; the cookie that signing in gives opens GET /v1/board and nothing else."""
    part = "[A-Za-z0-9._-]{1,100}"
    session = _param("session", "query", {"type": "string", "pattern": f"^{part}/{part}$"}, False)
    picture = _answer(200, "Sessions, one in detail, its last handoffs; on Accept: text/event-stream as they change")
    picture["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    key = _object(["key"], key=_text(500))
    name = _param("name", "path", {"type": "string", "pattern": r"^[a-z.-]+$"})
    return {
        "/": {"get": {"summary": "The board", "security": [], "responses": _answer(200, "A page", "text/html")}},
        "/board/{name}": {
            "get": {
                "summary": "A file of the page", "security": [], "parameters": [name],
                "responses": {
                    "200": {"description": "The file", "content": {kind: {} for kind in _FILES}},
                    **_problems(404),
                },
            }
        },
        "/v1/board": {
            "get": {
                "summary": "What the board shows", "security": [{"key": []}, {"cookie": []}], "parameters": [session],
                "responses": {**picture, **_problems(400, 401, 403, 503)},
            }
        },
        "/v1/board/sign-in": {"post": _board_post("Makes a key the board's cookie", key, 401)},
        "/v1/board/sign-out": {"post": _board_post("Takes the cookie back", _object([]))},
    }  # fmt: skip


def _board_post(summary: str, body: dict[str, Any], *problems: int) -> dict[str, Any]:
    return {
        "summary": summary, "security": [],
        "requestBody": {"required": bool(body["required"]), "content": {"application/json": {"schema": body}}},
        "responses": {**_answer(204, "Done"), **_problems(400, 413, 415, *problems)},
    }  # fmt: skip


def _open(path: str) -> dict[str, Any]:
    kind = "text/plain" if path == "/metrics" else "application/json"
    answers = {**_answer(200, "OK", kind), **(_problems(503) if path == "/readyz" else {})}
    return {"summary": path, "security": [], "responses": answers}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schema = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"enum": sorted(KINDS)}, "title": {"type": "string"}, "status": {"type": "integer"},
            "detail": {"type": "string"}, "reason": {"type": "string"}, "owner_url": {"type": "string"},
        },
    }  # fmt: skip
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    statuses = sorted({kind.status for kind in KINDS.values()})
    responses = {
        f"p{status}": {"description": " · ".join(n for n, k in KINDS.items() if k.status == status), "content": content}
        for status in statuses
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "sessiond", "version": "1"},
        "security": [{"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
            "schemas": {"Problem": schema},
            "responses": responses,
        },
    }
