"""Tickets and leases over HTTP."""

from typing import Final

from flask import Request, Response

from sessiond.http import auth
from sessiond.http.bodies import NoMembers, TakeTicket, WaitTicket, WithdrawTicket, checked_id, json_body
from sessiond.http.hangup import gone, watched
from sessiond.http.keys import Caller
from sessiond.http.ports import Directory
from sessiond.http.render import json_response, nothing
from sessiond.lock.rules import DEFAULT_PRIORITY, Kind


def take(sessions: Directory, name: str, caller: Caller, request: Request) -> Response:
    """POST /tickets"""
    body = json_body(request, TakeTicket)
    kind = Kind(body.kind)
    auth.require_kind(caller, kind)
    if body.key is None and gone(request.environ):
        return nothing()  # nobody would ever know this place, and it would bar the worker
    priority = DEFAULT_PRIORITY if body.priority is None else body.priority
    view, new = sessions.get(name).take(kind, priority, body.key)
    return json_response(view, 201 if new else 200)


def wait(sessions: Directory, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """POST /tickets/{id}/wait"""
    body = json_body(request, WaitTicket)
    ticket = _own_kind(sessions, name, caller, ticket)
    door = sessions.get(name)
    if gone(request.environ):
        return nothing()  # nobody reads it; a lease must not be granted to nobody
    parked = door.park(ticket, body.holder)
    with watched(request.environ, parked.hang_up):
        return json_response(parked.answer(body.wait))


def look(sessions: Directory, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """GET /tickets/{id}"""
    return json_response(sessions.look(name).ticket(checked_id(ticket, "ticket")))


def withdraw(sessions: Directory, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """DELETE /tickets/{id}"""
    body = json_body(request, WithdrawTicket)
    ticket = _own_kind(sessions, name, caller, ticket)
    sessions.get(name).withdraw(ticket, body.holder)
    return nothing()


def _own_kind(sessions: Directory, name: str, caller: Caller, ticket: str) -> str:
    """The ticket's id, if there is one and the caller may have that kind. Raises Problem; then nothing was changed."""
    ticket = checked_id(ticket, "ticket")
    auth.require_kind(caller, Kind(sessions.look(name).ticket(ticket)["kind"]))
    return ticket


def renew(sessions: Directory, name: str, caller: Caller, request: Request) -> Response:
    """POST /lease/renew"""
    secret = auth.lease_secret(request)
    json_body(request, NoMembers)
    return json_response(sessions.held(name).renew(secret))


def release(sessions: Directory, name: str, caller: Caller, request: Request) -> Response:
    """DELETE /lease"""
    secret = auth.lease_secret(request)
    sessions.held(name).release(secret)
    return nothing()


ROUTES: Final = (
    ("POST", "/tickets", take),
    ("POST", "/tickets/<ticket>/wait", wait),
    ("GET", "/tickets/<ticket>", look),
    ("DELETE", "/tickets/<ticket>", withdraw),
    ("POST", "/lease/renew", renew),
    ("DELETE", "/lease", release),
)
