"""Runs tasks. `run` is the rq job."""

from sessiond_worker.runner.runner import run

__all__ = ["run"]
