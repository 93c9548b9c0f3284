"""The metrics of forked processes are counted once, also after the forks have ended, and no directory remains."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from sessiond_common import VERSION
from support.servers import eventually, free_port

COUNTS = """
import os, sys, time
from sessiond_common.env import load
from sessiond_common.metrics.exporter import served
from sessiond_common.metrics.job_metrics import Counter, Histogram
from sessiond_common.metrics.settings import read_metrics
jobs = Counter("test_jobs_total", "Jobs", "outcome")
times = Histogram("test_seconds", "Times", buckets=(1, 5))
with served("test", load(read_metrics, os.environ)):
    for number in range(int(sys.argv[1])):
        pid = os.fork()
        if not pid:
            jobs.add(outcome="odd" if number % 2 else "even")
            times.observe(number)
            os._exit(0)
        os.waitpid(pid, 0)
    print(os.environ.get("PROMETHEUS_MULTIPROC_DIR"), flush=True)
    time.sleep(60)
"""


def begin(port: int | None) -> tuple["subprocess.Popen[str]", str]:
    env = dict(os.environ)
    env |= {"METRICS_PORT": str(port)} if port else {}
    command = [sys.executable, "-c", COUNTS, "20"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def scraped(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return sorted(line for line in answer.read().decode().splitlines() if line[0] != "#")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_forks_are_counted_once_and_their_files_are_merged(end: signal.Signals) -> None:
    port = free_port()
    process, directory = begin(port)
    try:
        first = eventually(lambda: quietly(port), 10, "served")
        assert f'test_build_info{{python="{sys.version.split()[0]}",version="{VERSION}"}} 1.0' in first
        assert [line for line in first if "test_jobs_total" in line] == [
            'test_jobs_total{outcome="even"} 10.0', 'test_jobs_total{outcome="odd"} 10.0',
        ]  # fmt: skip
        assert [line for line in first if "bucket" in line or "count" in line] == [
            'test_seconds_bucket{le="+Inf"} 20.0', 'test_seconds_bucket{le="1.0"} 2.0',
            'test_seconds_bucket{le="5.0"} 6.0', "test_seconds_count 20.0",
        ]  # fmt: skip
        assert scraped(port) == first
        assert sorted(path.name for path in Path(directory).glob("*.db")) == ["counter_past.db", "histogram_past.db"]
    finally:
        process.send_signal(end)
        process.wait(10)
    eventually(lambda: not Path(directory).exists(), 10, "the directory is gone")
    eventually(lambda: quietly(port) is None, 10, "nobody listens")


def quietly(port: int) -> list[str] | None:
    try:
        return scraped(port)
    except OSError:
        return None


def test_without_a_port_no_metrics_are_counted_or_served() -> None:
    process, directory = begin(None)
    process.kill()
    process.wait()
    assert directory == "None"


def test_the_version_metric_has_the_projects_version() -> None:
    assert importlib.metadata.version("sessiond") == VERSION
