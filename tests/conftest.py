"""Fixtures that start servers, end them after each test, and check that no process is left."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")

from support.servers import Caller, Github, Model, Redis, Sessiond, Webhook, close_all  # noqa: E402

pytest_plugins = ["support.summary", "support.walls", "support.webhook.fixtures", "support.worker.fixtures"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT for background jobs, and every process started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that each process of pytest-xdist starts with its part of the long tests."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    short = [item for item in items if not item.get_closest_marker("long")]
    ends = [len(short) * n // count for n in range(count + 1)]
    items[:] = [item for n in range(count) for item in (*long[n::count], *short[ends[n] : ends[n + 1]])]


@pytest.fixture
def redis_server() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.close()


@pytest.fixture(scope="session")
def model() -> Iterator[Model]:
    server = Model()
    yield server
    server.close()


@pytest.fixture
def github() -> Iterator[Github]:
    server = Github()
    yield server
    server.close()


@pytest.fixture
def sessiond(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Sessiond]]:
    """Start sessionds on the test's Redis: sessiond(env, name="a")."""

    def start(env: Mapping[str, str] | None = None, name: str = "a", under: Sequence[str] = ()) -> Sessiond:
        return Sessiond(redis_server.url, tmp_path / name, env, under)

    with close_all(start) as factory:
        yield factory


@pytest.fixture
def webhook(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Webhook]]:
    """Start webhooks on the test's Redis: webhook(env, name="webhook")."""

    def start(env: Mapping[str, str] | None = None, name: str = "webhook") -> Webhook:
        return Webhook(redis_server.url, tmp_path / name, env)

    with close_all(start) as factory:
        yield factory


@pytest.fixture
def caller() -> Iterator[Callable[..., Caller]]:
    """Start callers: caller(service, role="admin")."""
    with close_all(Caller) as factory:
        yield factory
