"""Counters and histograms of processes that fork: each process writes a file, and a scrape adds the files up.

An rq work-horse lives for one job, but its numbers must be kept longer. prometheus-client's multiprocess mode keeps
them in a directory that the parent creates (`exporter`). Without that directory, nothing is counted and
prometheus-client is not imported.

If a file cannot be written, a number is lost, but the job does not fail.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the directory. prometheus-client reads it when it is imported."""
Make = Callable[[str, str, tuple[str, ...]], Any]


class Metric:
    """A metric that each process creates at its first use."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], make: Make) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._make = make
        self._made: Any = None

    def one(self, labels: Mapping[str, str]) -> Any:
        """Return prometheus-client's metric with these labels."""
        if self._made is None:
            self._made = self._make(self.name, self.text, self.labels)
        return self._made.labels(**labels) if self.labels else self._made


class Counter(Metric):
    """A counter."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__(name, text, labels, _counter)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Add to the counter."""
        if os.environ.get(DIRECTORY):
            with contextlib.suppress(OSError):
                self.one(labels).inc(amount)


class Histogram(Metric):
    """A histogram of seconds."""

    def __init__(self, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> None:
        super().__init__(name, text, labels, partial(_histogram, buckets=buckets))

    def observe(self, seconds: float, **labels: str) -> None:
        """Count one observation."""
        if os.environ.get(DIRECTORY):
            with contextlib.suppress(OSError):
                self.one(labels).observe(seconds)


def _counter(name: str, text: str, labels: tuple[str, ...]) -> Any:
    import prometheus_client as client

    return client.Counter(name, text, labels, registry=client.CollectorRegistry())


def _histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Any:
    import prometheus_client as client

    return client.Histogram(name, text, labels, registry=client.CollectorRegistry(), buckets=buckets)
