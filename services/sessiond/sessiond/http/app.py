"""The HTTP table as a Flask application. It validates, asks the session's door, renders."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import orjson
import structlog
from flask import Flask, Request, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from sessiond import metrics
from sessiond.http import admin, auth, bodies, openapi, tickets, turns
from sessiond.http.board import routes
from sessiond.http.board.feed import Board
from sessiond.http.board.signin import SignIn
from sessiond.http.keys import Caller, Keys
from sessiond.http.ports import Directory, Door
from sessiond.http.render import json_response, problem_response
from sessiond.problems import Problem

log = structlog.get_logger("sessiond.http")
ROOT = "/v1/sessions/<owner>/<repo>"
View = Callable[[Door, Caller, Request], Response]


def create_app(sessions: Directory, keys: Keys, secret: bytes) -> Flask:
    """The application over this directory of sessions; `secret` signs the board's cookies."""
    app = Flask("sessiond", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = bodies.BODY_LIMIT + 1
    app.url_map.strict_slashes = False
    _service(app, sessions, keys)
    for method, path, view in (*tickets.ROUTES, *turns.ROUTES, *admin.ROUTES):
        _route(app, sessions, keys, method, ROOT + path, view)
    routes.add_board(app, Board(sessions), SignIn(keys, secret))
    _errors(app)
    app.after_request(_count)
    return app


def _route(app: Flask, sessions: Directory, keys: Keys, method: str, path: str, view: Callable[..., Response]) -> None:
    @wraps(view)
    def handler(owner: str, repo: str, **ids: str) -> Response:
        caller = auth.caller_of(request, keys)
        name = bodies.session_name(owner, repo)
        auth.require(caller.may_see(name), f"use the session {name}")
        if method != "GET":
            auth.require_change(caller)
        return view(sessions, name, caller, request, **ids)

    app.add_url_rule(
        path, endpoint=f"{method} {path}", view_func=handler, methods=[method], provide_automatic_options=False
    )


def _service(app: Flask, sessions: Directory, keys: Keys) -> None:
    document = orjson.dumps(openapi.document())

    def healthz() -> Response:
        return json_response({"status": "alive"})

    def readyz() -> Response:
        ready, detail = sessions.ready()
        if not ready:
            kind = "stopping" if detail == "stopping" else "redis-away"
            raise Problem(kind, 503, detail)
        return json_response({"status": "ready"})

    def served() -> Response:
        return Response(document, mimetype="application/json")

    def scraped() -> Response:
        return Response(metrics.exposition(), mimetype="text/plain; version=0.0.4")

    def listed() -> Response:
        caller = auth.caller_of(request, keys)
        return json_response({"sessions": [v for v in sessions.all() if caller.may_see(v["session"])]})

    views: dict[str, Callable[[], Response]] = {
        "/healthz": healthz, "/readyz": readyz, "/openapi.json": served, "/metrics": scraped, "/v1/sessions": listed,
    }  # fmt: skip
    for path, view in views.items():
        app.add_url_rule(path, endpoint=path, view_func=view, methods=["GET"], provide_automatic_options=False)


def _errors(app: Flask) -> None:
    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return problem_response(error)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return problem_response(_of_http(error), _allowed(error))

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.exception("request failed", path=request.path)
        return problem_response(Problem("internal", 500, "The service failed; it is in the log"))


def _of_http(error: HTTPException) -> Problem:
    if isinstance(error, NotFound):
        return Problem("not-found", 404, "There is nothing at this path")
    if isinstance(error, MethodNotAllowed):
        return Problem("method-not-allowed", 405, "The method is not allowed here")
    if isinstance(error, RequestEntityTooLarge):
        return Problem("too-large", 413, f"The body must not exceed {bodies.BODY_LIMIT} bytes")
    return Problem("bad-request", 400, error.description or "The request is not valid")


def _allowed(error: HTTPException) -> dict[str, str]:
    methods = getattr(error, "valid_methods", None) or ()
    return {"Allow": ", ".join(sorted(methods))} if methods else {}


def _count(response: Response) -> Response:
    rule: Any = request.url_rule
    metrics.REQUESTS.labels(route=rule.rule if rule else "none", status=str(response.status_code)).inc()
    g.pop("caller", None)
    response.headers.update(routes.GUARDS)
    return response
