"""Runs tasks. `run` is the function of the rq job."""

from sessiond_worker.runner.runner import run

__all__ = ["run"]
