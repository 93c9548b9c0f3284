"""Fixtures for tests of the webhook."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.servers import Redis
from support.webhook.posting import DemandRecords, Poster


@pytest.fixture
def records(redis_server: Redis) -> DemandRecords:
    return DemandRecords(redis_server.url)


@pytest.fixture
def poster(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Poster]]:
    """Start posters on the Redis of the test: poster(env, name="a")."""
    with ExitStack() as stack:

        def start(env: Mapping[str, str] | None = None, name: str = "poster") -> Poster:
            made = Poster(redis_server.url, tmp_path / name, env)
            stack.callback(made.close)
            return made

        yield start
