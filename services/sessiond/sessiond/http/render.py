"""HTTP answers: JSON, no content, and problem details."""

from collections.abc import Mapping
from typing import Any

import orjson
from flask import Response

from sessiond.problems import Problem
from sessiond_common.problems import MEDIA_TYPE


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer with `Cache-Control: no-store`."""
    return Response(
        orjson.dumps(body), status=status, mimetype="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )  # fmt: skip


def no_content() -> Response:
    """Return 204, an answer without content."""
    return Response(status=204)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return problem details (RFC 9457), with `WWW-Authenticate` for a 401 and `Retry-After` if a retry may succeed."""
    found = {**(headers or {}), **problem.headers()}
    if problem.status == 401:
        found["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(problem.body()), status=problem.status, mimetype=MEDIA_TYPE, headers=found)
