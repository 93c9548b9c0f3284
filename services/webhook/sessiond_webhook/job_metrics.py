"""Metrics of handlers and posters, counted in the work-horse that runs the job. See docs/reference/metrics.md."""

from typing import Final

from sessiond_common.metrics.job_metrics import Counter, Histogram

TURNS: Final = Counter("webhook_turns_total", "Turns that handlers ran to their end", "outcome")
ANSWERS: Final = Counter("webhook_answers_total", "Demands that handlers answered or gave up, by outcome", "outcome")
POSTS: Final = Counter(
    "webhook_posts_total", "Answers and notes that posters posted, withheld or could not post", "outcome"
)
POSTED_SECONDS: Final = Histogram(
    "webhook_posted_seconds", "Seconds from the acceptance of a demand to its posted answer",
    buckets=(1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400),
)  # fmt: skip
