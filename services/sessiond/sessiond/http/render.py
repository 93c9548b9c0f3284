"""Answers: JSON, and problem details."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Response

from sessiond.problems import Problem


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON with `Cache-Control: no-store`."""
    return Response(
        orjson.dumps(body), status=status, mimetype="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )  # fmt: skip


def nothing() -> Response:
    """204."""
    return Response(status=204)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """RFC 9457, with `Retry-After` and `WWW-Authenticate` where they belong."""
    extra = dict(headers or {})
    if problem.retry_after is not None:
        extra["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    return Response(
        orjson.dumps(problem.body()), status=problem.status, mimetype="application/problem+json", headers=extra
    )
