"""A body that does not come."""

import gevent
import pytest
from flask import Flask, Response, request

from sessiond.http import bodies
from sessiond.http.render import json_response, problem_response
from sessiond.problems import Problem


class Never:
    """A stream of which nothing comes."""

    def read(self, size: int = -1) -> bytes:
        gevent.sleep(60)
        return b""

    readline = read


def test_a_body_has_its_time_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    app = Flask("test")

    @app.post("/")
    def take() -> Response:
        try:
            return json_response(bodies.json_body(request, {}))
        except Problem as problem:
            return problem_response(problem)

    given = {"wsgi.input": Never(), "CONTENT_LENGTH": "100", "CONTENT_TYPE": "application/json"}
    answer = app.test_client().post("/", environ_overrides=given)
    assert (answer.status_code, answer.json["type"], answer.headers["Connection"]) == (400, "bad-request", "close")
