"""Fixtures: real servers, ended after each test, with a check that nothing of them is left."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from servers import Caller, Model, Redis, Sessiond

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Run in a shell's background: every process started here would be deaf to Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Figures = Callable[[str], None]


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Tells what a test measured, at the end of the run: figures("60 cycles, median 3 ms")."""
    return lambda text: request.node.user_properties.append(("figures", text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures of all tests, whichever process measured them."""
    reports = [r for found in terminalreporter.stats.values() for r in found if getattr(r, "when", "") == "call"]
    told = sorted(f"{r.nodeid}: {text}" for r in reports for name, text in r.user_properties if name == "figures")
    if told:
        terminalreporter.section("measured")
        for line in told:
            terminalreporter.line(line)


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


Factory = Callable[..., Sessiond]


@pytest.fixture
def sessiond(redis_server: Redis, tmp_path: Path) -> Iterator[Factory]:
    """Starts sessionds on the test's Redis: sessiond(env, name="a")."""
    with ExitStack() as stack:

        def start(env: Mapping[str, str] | None = None, name: str = "a") -> Sessiond:
            service = Sessiond(redis_server.url, tmp_path / name, env)
            stack.callback(service.close)
            return service

        yield start


@pytest.fixture
def caller() -> Iterator[Callable[..., Caller]]:
    """Starts callers: caller(service, role="admin")."""
    with ExitStack() as stack:

        def start(service: Sessiond, role: str = "admin") -> Caller:
            made = Caller(service, role)
            stack.callback(made.close)
            return made

        yield start
