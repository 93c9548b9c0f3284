"""The calls of the board: its page, its files, its state and stream, and signing in and out."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from flask import Flask, Request, Response, request

from sessiond.http import auth
from sessiond.http.board.feed import Board, Viewer
from sessiond.http.board.signin import SignIn
from sessiond.http.bodies import bad, session_name
from sessiond.http.hangup import watched
from sessiond.http.render import json_response
from sessiond.http.sse import HEADERS, event
from sessiond.problems import Problem

FILES: Final = Path(__file__).parent / "static"
TYPES: Final = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}  # fmt: skip
LOAD_SECONDS: Final = 3.0
"""How long a JSON answer waits for the ledger to be read."""
SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer of the service. They limit what a browser does with it."""


def add_board(app: Flask, board: Board, sign_in: SignIn) -> None:
    """Add the board's routes to the application."""
    files = {file.name: _File(file) for file in FILES.iterdir() if file.suffix in TYPES}

    def page() -> Response:
        return files["index.html"].answer(request)

    def file(name: str) -> Response:
        if name not in files:
            raise Problem("not-found", 404, "Nothing at this path")
        return files[name].answer(request)

    for method, path, view in (
        ("GET", "/", page),
        ("GET", "/board/<name>", file),
        ("GET", "/v1/board", lambda: _board(board, sign_in, request)),
        ("POST", "/v1/board/sign-in", lambda: sign_in.sign_in(request)),
        ("POST", "/v1/board/sign-out", lambda: sign_in.sign_out(request)),
    ):
        app.add_url_rule(
            path, endpoint=f"board {path}", view_func=view, methods=[method], provide_automatic_options=False
        )


class _File:
    """One file of the page, in memory."""

    def __init__(self, file: Path) -> None:
        self._bytes, self._type = file.read_bytes(), TYPES[file.suffix]
        self._tag = hashlib.sha256(self._bytes).hexdigest()[:16]

    def answer(self, request: Request) -> Response:
        response = Response(self._bytes, content_type=self._type, headers={"Cache-Control": "no-cache"})
        response.set_etag(self._tag)
        response.make_conditional(request)
        return response


def _board(board: Board, sign_in: SignIn, request: Request) -> Response:
    """GET /v1/board?session=, as a stream, or as JSON."""
    caller, expires = sign_in.viewer(request)
    selected = _selected(request)
    auth.require(selected is None or caller.may_see(selected), f"see the session {selected}")
    viewer = board.open(caller.may_see, selected)
    if "text/event-stream" not in request.headers.get("Accept", ""):
        try:
            return json_response(viewer.snapshot(LOAD_SECONDS))
        finally:
            viewer.close()
    response = Response(_events(viewer, request.environ, expires), mimetype="text/event-stream", headers=HEADERS)
    response.call_on_close(viewer.close)
    return response


def _selected(request: Request) -> str | None:
    given = request.args.get("session")
    if given is None:
        return None
    owner, slash, repo = given.partition("/")
    if not slash:
        raise bad("session", "must be owner/repo")
    return session_name(owner, repo)


def _events(viewer: Viewer, environ: Mapping[str, Any], expires: float | None) -> Iterator[bytes]:
    with watched(environ, viewer.hang_up):
        for name, data in viewer:
            if expires is not None and time.time() >= expires:
                yield event("problem", Problem("unauthorized", 401, "The sign-in has expired; sign in again").body())
                return
            yield event(name, data)
