"""The calls on turns."""

from typing import Final

from flask import Request, Response
from msgspec.structs import asdict

from sessiond.http import auth
from sessiond.http.bodies import Key, StartTurn, bad, checked, checked_id, json_body
from sessiond.http.keys import Caller
from sessiond.http.ports import Registry
from sessiond.http.render import json_response, no_content
from sessiond.http.sse import turn_response
from sessiond.service.commands import TurnRequest
from sessiond_common.roles import Role


def start(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /turns."""
    secret = auth.lease_secret(request)
    body = json_body(request, StartTurn)
    auth.require(not body.raw or caller.role is Role.ADMIN, "send a raw prompt")
    return turn_response(sessions.get_used(name).start_turn(secret, TurnRequest(**asdict(body))))


def get(sessions: Registry, name: str, caller: Caller, request: Request, turn: str) -> Response:
    """GET /turns/{id}."""
    return json_response(sessions.queries(name).turn(checked_id(turn, "turn")))


def find(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """GET /turns?key=."""
    key = request.args.get("key")
    if key is None:
        raise bad("key", "is missing")
    return json_response(sessions.queries(name).turn_by_key(checked("key", key, Key)))


def cancel(sessions: Registry, name: str, caller: Caller, request: Request, turn: str) -> Response:
    """DELETE /turns/{id}. The lease's holder shows its secret; an admin needs none."""
    as_admin = caller.role is Role.ADMIN and "Lease-Secret" not in request.headers
    secret = None if as_admin else auth.lease_secret(request)
    turn = checked_id(turn, "turn")
    if as_admin:
        sessions.queries(name).turn(turn)  # an unknown turn is a 404, and creates no session
    sessions.get_used(name).cancel_turn(turn, secret)
    return no_content()


ROUTES: Final = (
    ("POST", "/turns", start),
    ("GET", "/turns", find),
    ("GET", "/turns/<turn>", get),
    ("DELETE", "/turns/<turn>", cancel),
)
