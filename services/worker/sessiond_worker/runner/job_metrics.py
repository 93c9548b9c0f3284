"""What a run counts, in the work-horse of its job. docs: the table in docs/metrics.md."""

from typing import Final

from sessiond_common.metrics.job_metrics import Count

TURNS: Final = Count("worker_turns_total", "Turns whose end a run recorded", "outcome")
