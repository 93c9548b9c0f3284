"""The handler: it answers comments. `run` is its rq job."""

from sessiond_webhook.handler.handler import run

__all__ = ["run"]
