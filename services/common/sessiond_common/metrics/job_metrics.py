"""Counters and histograms of processes that fork: each writes its own file, a scrape adds the files up.

A work-horse of rq lives for one job. What it counts must outlive it, and must be counted once whichever process is
asked: so prometheus-client's multiprocess mode is used, in a directory that the parent makes (see `scrape`). Where
nobody made one, nothing is counted and prometheus-client is not even imported.

Counting never fails the work: a file that cannot be written costs a number, not an answer.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client chooses its kind of storage from this when it is imported."""
Kind = Callable[[str, str, tuple[str, ...]], Any]


class Counted:
    """A metric that is made when it is used first, and then by every process for itself."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], make: Kind) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._make = make
        self._made: Any = None

    def one(self, labels: Mapping[str, str]) -> Any:
        """prometheus-client's metric with these labels."""
        if self._made is None:
            self._made = self._make(self.name, self.text, self.labels)
        return self._made.labels(**labels) if self.labels else self._made


class Count(Counted):
    """A counter."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        super().__init__(name, text, labels, _counter)

    def add(self, amount: float = 1, **labels: str) -> None:
        """Counts."""
        if os.environ.get(DIRECTORY):
            with contextlib.suppress(OSError):
                self.one(labels).inc(amount)


class Spread(Counted):
    """A histogram, of seconds."""

    def __init__(self, name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> None:
        super().__init__(name, text, labels, partial(_histogram, buckets=buckets))

    def observe(self, seconds: float, **labels: str) -> None:
        """Counts one."""
        if os.environ.get(DIRECTORY):
            with contextlib.suppress(OSError):
                self.one(labels).observe(seconds)


def _counter(name: str, text: str, labels: tuple[str, ...]) -> Any:
    from prometheus_client import CollectorRegistry, Counter

    return Counter(name, text, labels, registry=CollectorRegistry())


def _histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Any:
    from prometheus_client import CollectorRegistry, Histogram

    return Histogram(name, text, labels, registry=CollectorRegistry(), buckets=buckets)
