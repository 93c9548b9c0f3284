"""The Flask application: routes, authentication and error answers. A call validates, asks the service, and renders."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import orjson
import structlog
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from sessiond import metrics
from sessiond.http import admin, auth, bodies, openapi, tickets, turns
from sessiond.http.board import routes
from sessiond.http.board.feed import Board
from sessiond.http.board.signin import SignIn
from sessiond.http.keys import Keys
from sessiond.http.ports import Registry
from sessiond.http.render import json_response, problem_response
from sessiond.problems import Problem

log = structlog.get_logger("sessiond.http")
SESSION_PATH: Final = "/v1/sessions/<owner>/<repo>"
View = Callable[..., Response]
"""A function of the registry, the session's name, the caller, the request, and the ids in the path by name."""


def create_app(sessions: Registry, keys: Keys, secret: bytes) -> Flask:
    """Return the application for these sessions. `secret` signs the board's cookies."""
    app = Flask("sessiond", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = bodies.BODY_LIMIT + 1
    app.url_map.strict_slashes = False
    _add_service(app, sessions, keys)
    for method, path, view in (*tickets.ROUTES, *turns.ROUTES, *admin.ROUTES):
        _add(app, method, SESSION_PATH + path, _authorized(sessions, keys, view))
    routes.add_board(app, Board(sessions), SignIn(keys, secret))
    _add_errors(app)
    app.after_request(_finish)
    return app


def _add(app: Flask, method: str, path: str, view: View) -> None:
    app.add_url_rule(
        path, endpoint=f"{method} {path}", view_func=view, methods=[method], provide_automatic_options=False
    )


def _authorized(sessions: Registry, keys: Keys, view: View) -> View:
    """Return the view with a check: the key must include the session, and the role must allow the method."""

    @wraps(view)
    def handler(owner: str, repo: str, **ids: str) -> Response:
        caller = auth.caller_of(request, keys)
        name = bodies.session_name(owner, repo)
        auth.require(caller.may_see(name), f"use the session {name}")
        if request.method not in ("GET", "HEAD"):
            auth.require_change(caller)
        return view(sessions, name, caller, request, **ids)

    return handler


def _add_service(app: Flask, sessions: Registry, keys: Keys) -> None:
    document = orjson.dumps(openapi.document())

    def healthz() -> Response:
        return json_response({"status": "alive"})

    def readyz() -> Response:
        ready, detail = sessions.ready()
        if not ready:
            kind = "stopping" if detail == "stopping" else "redis-away"
            raise Problem(kind, 503, detail)
        return json_response({"status": "ready"})

    def openapi_document() -> Response:
        return Response(document, mimetype="application/json")

    def exposition() -> Response:
        return Response(metrics.exposition(), mimetype="text/plain; version=0.0.4")

    def list_sessions() -> Response:
        caller = auth.caller_of(request, keys)
        return json_response({"sessions": [view for view in sessions.all() if caller.may_see(view["session"])]})

    views: dict[str, Callable[[], Response]] = {
        "/healthz": healthz, "/readyz": readyz, "/openapi.json": openapi_document, "/metrics": exposition,
        "/v1/sessions": list_sessions,
    }  # fmt: skip
    for path, view in views.items():
        _add(app, "GET", path, view)


def _add_errors(app: Flask) -> None:
    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return problem_response(error)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        methods = getattr(error, "valid_methods", None)
        return problem_response(_problem_of(error), {"Allow": ", ".join(sorted(methods))} if methods else {})

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        log.exception("request failed", path=request.path)
        return problem_response(Problem("internal", 500, "The service failed; its log has the error"))


def _problem_of(error: HTTPException) -> Problem:
    if isinstance(error, NotFound):
        return Problem("not-found", 404, "Nothing at this path")
    if isinstance(error, MethodNotAllowed):
        return Problem("method-not-allowed", 405, "The method is not allowed here")
    if isinstance(error, RequestEntityTooLarge):
        return Problem("too-large", 413, f"The body must not exceed {bodies.BODY_LIMIT} bytes")
    return Problem("bad-request", 400, error.description or "The request is not valid")


def _finish(response: Response) -> Response:
    """Count the request and add the headers that every answer has."""
    rule: Any = request.url_rule
    metrics.REQUESTS.labels(route=rule.rule if rule else "none", status=str(response.status_code)).inc()
    response.headers.update(routes.SECURITY_HEADERS)
    return response
