"""Server-sent events: a turn's stream, and the ledger's."""

from collections.abc import Iterator
from typing import Any

import orjson
from flask import Response

from sessiond.http.ports import Look, Stream
from sessiond.problems import Problem

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
LEDGER_BEAT = 10.0


def event(name: str, data: Any, entry_id: str | None = None) -> bytes:
    """One event; `data` as one line of JSON."""
    head = f"id: {entry_id}\n" if entry_id else ""
    return f"{head}event: {name}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"


def turn_response(stream: Stream) -> Response:
    """The turn as events; a reader that goes away changes nothing."""
    response = Response(_turn(stream), mimetype="text/event-stream", headers={**HEADERS, "Turn-Id": stream.turn})
    response.call_on_close(stream.close)
    return response


def _turn(stream: Stream) -> Iterator[bytes]:
    # The headers go out with the first bytes: who is to cancel a turn must have its id before the agent says anything.
    yield b": accepted\n\n"
    for name, data in stream:
        yield b": beat\n\n" if name == "beat" else _told(name, data)


def _told(name: str, data: Any) -> bytes:
    """A line that is nested too deeply to be written is lost to the reader, the stream is not."""
    try:
        return event(name, data)
    except TypeError:
        return event("gap", {"lost": 1})


def ledger_response(look: Look, after: str | None) -> Response:
    """The ledger from behind `after`, for ever."""
    return Response(_ledger(look, after), mimetype="text/event-stream", headers=HEADERS)


def _ledger(look: Look, after: str | None) -> Iterator[bytes]:
    while True:
        try:
            entries = look.wait_ledger(after, LEDGER_BEAT)
        except Problem as problem:
            yield event("problem", problem.body())
            return
        yield b"".join(event("entry", e, e["id"]) for e in entries) or b": beat\n\n"
        after = entries[-1]["id"] if entries else after
