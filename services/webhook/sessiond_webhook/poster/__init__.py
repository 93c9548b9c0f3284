"""The poster: it posts answers to GitHub. `run` is its rq job."""

from sessiond_webhook.poster.poster import run

__all__ = ["run"]
