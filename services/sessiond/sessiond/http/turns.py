"""Turns over HTTP."""

from typing import Final

from flask import Request, Response

from sessiond.http import auth
from sessiond.http.bodies import KEY_LIMIT, PROMPT_LIMIT, bad, boolean, json_body, maybe, number, text, thing_id
from sessiond.http.keys import Caller, Role
from sessiond.http.ports import Directory
from sessiond.http.render import json_response, nothing
from sessiond.http.sse import turn_response
from sessiond.service.commands import TurnRequest

_START: Final = {
    "prompt": text(PROMPT_LIMIT, lines=True),
    "model": maybe(text(200)),
    "key": maybe(text(KEY_LIMIT)),
    "timeout": maybe(number(1, 86_400)),
    "raw": boolean,
}


def start(sessions: Directory, name: str, caller: Caller, request: Request) -> Response:
    """POST /turns"""
    secret = auth.lease_secret(request)
    body = json_body(request, _START, frozenset({"prompt"}))
    auth.require(not body.get("raw") or caller.role is Role.ADMIN, "send a raw prompt")
    return turn_response(sessions.held(name).start_turn(secret, TurnRequest(**body)))


def look(sessions: Directory, name: str, caller: Caller, request: Request, turn: str) -> Response:
    """GET /turns/{id}"""
    return json_response(sessions.look(name).turn(thing_id(turn, "turn")))


def find(sessions: Directory, name: str, caller: Caller, request: Request) -> Response:
    """GET /turns?key="""
    key = request.args.get("key")
    if key is None:
        raise bad("key", "is missing")
    return json_response(sessions.look(name).turn_by_key(text(KEY_LIMIT)("key", key)))


def cancel(sessions: Directory, name: str, caller: Caller, request: Request, turn: str) -> Response:
    """DELETE /turns/{id}"""
    operator = caller.role is Role.ADMIN and "Lease-Secret" not in request.headers
    secret = None if operator else auth.lease_secret(request)
    turn = thing_id(turn, "turn")
    if operator:
        sessions.look(name).turn(turn)  # 404 before a session is made for it
    sessions.held(name).cancel_turn(turn, secret)
    return nothing()


ROUTES: Final = (
    ("POST", "/turns", start),
    ("GET", "/turns", find),
    ("GET", "/turns/<turn>", look),
    ("DELETE", "/turns/<turn>", cancel),
)
