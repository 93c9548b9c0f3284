"""Fixtures of the webhook's tests."""

import pytest
from posting import Bench

from servers import Redis


@pytest.fixture
def bench(redis_server: Redis) -> Bench:
    return Bench(redis_server.url)
