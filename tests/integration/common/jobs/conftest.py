"""Fixtures for tests of the job queue."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.jobs.job_scene import JobScene, Parent
from support.servers import Redis


@pytest.fixture
def scene(redis_server: Redis, tmp_path: Path) -> JobScene:
    return JobScene(redis_server, tmp_path)


@pytest.fixture
def parent(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    started: list[Parent] = []

    def start(*words: str) -> Parent:
        started.append(Parent(redis_server.url, tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        one.close()
