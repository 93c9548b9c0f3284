"""Server-sent events: the stream of a turn, and of the ledger."""

from collections.abc import Iterator
from typing import Any, Final

import orjson
from flask import Response

from sessiond.http.ports import EventStream, Queries
from sessiond.problems import Problem

HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LEDGER_BEAT: Final = 10.0
"""Seconds between two comments on a ledger without new entries."""


def event(name: str, data: Any, entry_id: str | None = None) -> bytes:
    """Return one event, with `data` as one line of JSON."""
    head = f"id: {entry_id}\n" if entry_id else ""
    return f"{head}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def turn_response(stream: EventStream) -> Response:
    """Return the turn as a stream of events. A reader that disconnects does not change the turn."""
    response = Response(_turn(stream), mimetype="text/event-stream", headers={**HEADERS, "Turn-Id": stream.turn})
    response.call_on_close(stream.close)
    return response


def _turn(stream: EventStream) -> Iterator[bytes]:
    # The first bytes send the headers. A caller needs the turn's id to cancel it before the agent's first line.
    yield b": accepted\n\n"
    for name, data in stream:
        yield b": beat\n\n" if name == "beat" else _turn_event(name, data)


def _turn_event(name: str, data: Any) -> bytes:
    """Return one event, or a `gap` for a line that is nested too deeply to be encoded."""
    try:
        return event(name, data)
    except TypeError:
        return event("gap", {"lost": 1})


def ledger_response(session: Queries, after: str | None) -> Response:
    """Return a stream of the ledger's entries after `after`, with new ones until the reader disconnects."""
    return Response(_ledger(session, after), mimetype="text/event-stream", headers=HEADERS)


def _ledger(session: Queries, after: str | None) -> Iterator[bytes]:
    while True:
        try:
            entries = session.wait_ledger(after, LEDGER_BEAT)
        except Problem as problem:
            yield event("problem", problem.body())
            return
        yield b"".join(event("entry", e, e["id"]) for e in entries) or b": beat\n\n"
        after = entries[-1]["id"] if entries else after
