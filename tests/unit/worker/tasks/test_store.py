"""The store refuses invalid tasks."""

from dataclasses import replace
from typing import Any

import pytest

from sessiond_worker.tasks.model import NewTask, TaskBudget
from sessiond_worker.tasks.store import checked


@pytest.mark.parametrize(
    "change",
    [
        {"session": "noslash"}, {"session": "a/.."}, {"key": ""}, {"title": " "}, {"instructions": "x" * 200_000},
        {"budget": TaskBudget(turns=0)}, {"budget": TaskBudget(usd=-1.0)}, {"title": "a\x00b"},
    ],
)  # fmt: skip
def test_an_invalid_task_is_refused(change: dict[str, Any]) -> None:
    new = NewTask("k", "Octo/Hello", "T", "Do it.")
    assert checked(new).session == "octo/hello"
    with pytest.raises(ValueError, match=r".") as caught:
        checked(replace(new, **change))
    assert "\n" not in str(caught.value)
