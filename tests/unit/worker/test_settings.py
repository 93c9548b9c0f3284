"""The worker's settings: defaults, and what the environment changes."""

from sessiond_worker.settings import from_env
from sessiond_worker.tasks.model import TaskBudget


def test_settings() -> None:
    found = from_env({"SESSIOND_KEY": "k", "TASK_USD": "2.5"})
    assert (found.budget, found.sweep_seconds, found.claim_ttl) == (TaskBudget(20, 120.0, 2.5), 30.0, 15.0)
