"""Problem details: body, headers, and unknown types."""

from collections.abc import Mapping
from typing import ClassVar

import pytest

from sessiond.problems import KINDS, Problem
from sessiond_common.problems import BaseProblem, ProblemKind
from sessiond_webhook.ingress import problems as ingress


class Example(BaseProblem):
    kinds: ClassVar[Mapping[str, ProblemKind]] = {
        "missing": ProblemKind(404, "Not found"), "busy": ProblemKind(503, "Busy", 2.5),
    }  # fmt: skip


def test_a_body_has_the_fixed_members_and_then_the_extra_ones_that_are_set() -> None:
    body = Example("missing", "No such ticket", reason="ended", owner_url=None).body()
    assert list(body.items()) == [
        ("type", "missing"), ("title", "Not found"), ("status", 404), ("detail", "No such ticket"), ("reason", "ended"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "headers"),
    [
        (Example("missing", "x"), {}),
        (Example("busy", "x"), {"Retry-After": "3"}),
        (Example("busy", "x", retry_after=0.0), {"Retry-After": "1"}),
        (Example("missing", "x", retry_after=7.0), {"Retry-After": "7"}),
    ],
)
def test_retry_after_is_in_whole_seconds_and_at_least_one(problem: Example, headers: dict[str, str]) -> None:
    assert problem.headers() == headers


def test_an_unknown_type_raises_an_error() -> None:
    with pytest.raises(ValueError, match="no problem type 'other'"):
        Example("other", "x")
    with pytest.raises(ValueError, match="no problem type"):
        ingress.Problem("superseded", "x")
    with pytest.raises(ValueError, match="has status 404, not 410"):
        Problem("not-found", 410, "x")


@pytest.mark.parametrize("kinds", [KINDS, ingress.KINDS])
def test_every_503_and_no_other_problem_has_a_retry_time(kinds: Mapping[str, ProblemKind]) -> None:
    assert {n for n, k in kinds.items() if k.status == 503} == {n for n, k in kinds.items() if k.retry_after}
