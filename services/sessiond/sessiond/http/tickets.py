"""The calls on tickets and leases."""

from typing import Final

from flask import Request, Response

from sessiond.http import auth
from sessiond.http.bodies import NoMembers, TakeTicket, WaitTicket, WithdrawTicket, checked_id, json_body
from sessiond.http.hangup import disconnected, watched
from sessiond.http.keys import Caller
from sessiond.http.ports import Registry
from sessiond.http.render import json_response, no_content
from sessiond.lock.rules import DEFAULT_PRIORITY, Kind


def take(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /tickets. A caller that has disconnected gets no keyless ticket, which would only block the worker."""
    body = json_body(request, TakeTicket)
    kind = Kind(body.kind)
    auth.require_kind(caller, kind)
    if body.key is None and disconnected(request.environ):
        return no_content()
    priority = DEFAULT_PRIORITY if body.priority is None else body.priority
    view, new = sessions.get(name).take(kind, priority, body.key)
    return json_response(view, 201 if new else 200)


def wait(sessions: Registry, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """POST /tickets/{id}/wait. A caller that has disconnected does not wait, so it gets no lease that nobody uses."""
    body = json_body(request, WaitTicket)
    ticket = _own_kind(sessions, name, caller, ticket)
    session = sessions.get(name)
    if disconnected(request.environ):
        return no_content()
    waiting = session.wait(ticket, body.holder)
    with watched(request.environ, waiting.hang_up):
        return json_response(waiting.answer(body.wait))


def get(sessions: Registry, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """GET /tickets/{id}."""
    return json_response(sessions.queries(name).ticket(checked_id(ticket, "ticket")))


def withdraw(sessions: Registry, name: str, caller: Caller, request: Request, ticket: str) -> Response:
    """DELETE /tickets/{id}."""
    body = json_body(request, WithdrawTicket)
    ticket = _own_kind(sessions, name, caller, ticket)
    sessions.get(name).withdraw(ticket, body.holder)
    return no_content()


def _own_kind(sessions: Registry, name: str, caller: Caller, ticket: str) -> str:
    """Return the ticket's id if the ticket exists and the caller may take its kind. Changes nothing.

    Raises:
        Problem: `not-found`, `ticket-ended`, `forbidden`.
    """
    ticket = checked_id(ticket, "ticket")
    auth.require_kind(caller, Kind(sessions.queries(name).ticket(ticket)["kind"]))
    return ticket


def renew(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /lease/renew."""
    secret = auth.lease_secret(request)
    json_body(request, NoMembers)
    return json_response(sessions.get_used(name).renew(secret))


def release(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """DELETE /lease."""
    secret = auth.lease_secret(request)
    sessions.get_used(name).release(secret)
    return no_content()


ROUTES: Final = (
    ("POST", "/tickets", take),
    ("POST", "/tickets/<ticket>/wait", wait),
    ("GET", "/tickets/<ticket>", get),
    ("DELETE", "/tickets/<ticket>", withdraw),
    ("POST", "/lease/renew", renew),
    ("DELETE", "/lease", release),
)
