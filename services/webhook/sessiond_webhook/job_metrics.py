"""What handlers and posters count, each in the work-horse of the job that did it. docs: docs/metrics.md."""

from typing import Final

from sessiond_common.metrics.job_metrics import Counter, Histogram

TURNS: Final = Counter("webhook_turns_total", "Turns that handlers ran to their end", "outcome")
ANSWERS: Final = Counter(
    "webhook_answers_total", "Demands that a handler's run answered, or gave up for the reason told", "outcome"
)
POSTS: Final = Counter("webhook_posts_total", "What posters brought into threads, or could not", "outcome")
POSTED_SECONDS: Final = Histogram(
    "webhook_posted_seconds", "From a demand's acceptance to its posted answer",
    buckets=(1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400),
)  # fmt: skip
