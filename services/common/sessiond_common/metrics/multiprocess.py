"""The files of prometheus-client's multiprocess mode: read them as one, and merge those of dead processes.

A reader holds a shared lock on the directory, and a merge holds an exclusive one. So no scrape counts a number twice
or misses one. The files hold only counters and histograms, which are sums.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

PAST: Final = "past"
"""Stands for the process id in the name of the file that has the numbers of dead processes."""


class _Files(Collector):
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def collect(self) -> Iterable[Metric]:
        found: Iterable[Metric] = MultiProcessCollector.merge(list(map(str, self._paths)))  # type: ignore[no-untyped-call]
        return found


def exposition(directory: Path, *more: Collector) -> bytes:
    """Return the text of a scrape: the sums over all processes, and the metrics of `more`."""
    registry = CollectorRegistry()
    with _locked(directory, fcntl.LOCK_SH):
        registry.register(_Files([path for path in directory.glob("*_*.db") if path.stat().st_size]))
        for one in more:
            registry.register(one)
        return generate_latest(registry)


def merge_dead(directory: Path) -> None:
    """Merge the files of dead processes into one and remove them."""
    with _locked(directory, fcntl.LOCK_EX):
        for path in sorted(directory.glob("*_*.db")):
            kind, _, pid = path.stem.partition("_")
            if pid.isdigit() and not _alive(int(pid)):
                if path.stat().st_size:
                    _add(path, directory / f"{kind}_{PAST}.db")
                path.unlink()


def _add(path: Path, to: Path) -> None:
    past = MmapedDict(str(to))  # type: ignore[no-untyped-call]
    try:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            known, _ = past.read_value(key)  # type: ignore[no-untyped-call]
            past.write_value(key, known + value, 0.0)  # type: ignore[no-untyped-call]
    finally:
        past.close()  # type: ignore[no-untyped-call]


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return True
    return False


@contextmanager
def _locked(directory: Path, how: int) -> Iterator[None]:
    file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, how)
        yield
    finally:
        os.close(file)
