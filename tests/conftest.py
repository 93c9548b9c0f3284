"""Fixtures: real servers, ended after each test, with a check that nothing of them is left."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import Caller, Github, Model, Redis, Sessiond


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


Row = Callable[..., None]


@pytest.fixture
def matrix(record_property: Callable[[str, object], None]) -> Row:
    """matrix("answers", victim="handler", step="leased", outcome="posted"): a row that is printed at the run's end."""

    def row(table: str, **cells: object) -> None:
        record_property(f"matrix:{table}", {name: str(value) for name, value in cells.items()})

    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the rows that tests left, as one table each."""
    tables: dict[str, list[dict[str, str]]] = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if getattr(report, "when", None) != "call":
            continue
        for name, cells in report.user_properties:
            if name.startswith("matrix:"):
                tables.setdefault(name.removeprefix("matrix:"), []).append({**cells, "": report.outcome})
    for table, rows in sorted(tables.items()):
        terminalreporter.section(table)
        heads = list(dict.fromkeys(head for row in rows for head in row))
        wide = {head: max(len(head), *(len(row.get(head, "")) for row in rows)) for head in heads}
        for row in [dict(zip(heads, heads, strict=True)), *rows]:
            terminalreporter.write_line("  ".join(row.get(head, "").ljust(wide[head]) for head in heads).rstrip())


@pytest.fixture
def github() -> Iterator[Github]:
    server = Github()
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
