"""The metrics of a run, counted in the work-horse of its job. docs/reference/metrics.md lists them."""

from typing import Final

from sessiond_common.metrics.job_metrics import Counter

TURNS: Final = Counter("worker_turns_total", "Turns whose end a run recorded", "outcome")
