"""The calls that read a session, and those that only admins may make."""

from typing import Final

from flask import Request, Response

from sessiond.http import auth
from sessiond.http.bodies import ForceRelease, LedgerCount, LedgerWait, NoMembers, json_body, query_entry, query_number
from sessiond.http.keys import Caller
from sessiond.http.ports import Registry
from sessiond.http.render import json_response, no_content
from sessiond.http.sse import ledger_response


def view(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """GET the session."""
    return json_response(sessions.queries(name).view())


def ledger(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """GET /ledger?after=&wait=&count=, as JSON or, on `Accept: text/event-stream`, as a stream."""
    after = query_entry(request, "after")
    seconds = query_number(request, "wait", LedgerWait, 0)
    count = int(query_number(request, "count", LedgerCount, 500))
    session = sessions.queries(name)
    if "text/event-stream" in request.headers.get("Accept", ""):
        return ledger_response(session, after)
    entries = session.ledger_after(after, count)
    if not entries and seconds:
        entries = session.wait_ledger(after, seconds)
    return json_response({"entries": entries, "next": entries[-1]["id"] if entries else after})


def force_release(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /force-release."""
    auth.require_admin(caller)
    body = json_body(request, ForceRelease)
    sessions.get(name).force_release(body.fence, body.reason, caller.name)
    return no_content()


def restart(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /agent/restart."""
    auth.require_admin(caller)
    json_body(request, NoMembers)
    sessions.get(name).restart_agent(caller.name)
    return no_content()


def conversation(sessions: Registry, name: str, caller: Caller, request: Request) -> Response:
    """POST /conversation."""
    auth.require_admin(caller)
    json_body(request, NoMembers)
    return json_response(sessions.get(name).new_conversation(caller.name), 201)


ROUTES: Final = (
    ("GET", "", view),
    ("GET", "/ledger", ledger),
    ("POST", "/force-release", force_release),
    ("POST", "/agent/restart", restart),
    ("POST", "/conversation", conversation),
)
