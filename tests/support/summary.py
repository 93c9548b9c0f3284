"""Print the figures and tables of all tests at the end of the run, from every process of pytest-xdist."""

from collections.abc import Callable
from typing import Any

import pytest

from support.size import FULL

Figures = Callable[[str], None]
Row = Callable[..., None]
TABLE = "table "


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Print a measurement at the end of the run: figures("60 cycles, median 3 ms")."""
    return lambda text: request.node.user_properties.append(("figures", text))


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> Row:
    """Add a row to a table at the end of the run: matrix("answers", victim="handler", step="leased")."""

    def row(table: str, **cells: object) -> None:
        texts = {name: str(value) for name, value in cells.items()}
        request.node.user_properties.append((TABLE + table, texts))

    return row


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures, then the tables."""
    reports = [r for found in terminalreporter.stats.values() for r in found if getattr(r, "when", "") == "call"]
    lines = sorted(f"{r.nodeid}: {text}" for r in reports for name, text in r.user_properties if name == "figures")
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)
    tables: dict[str, list[dict[str, str]]] = {}
    for report in reports:
        for name, cells in report.user_properties:
            if name.startswith(TABLE):
                tables.setdefault(name.removeprefix(TABLE), []).append({**cells, "": report.outcome})
    for table, rows in sorted(tables.items()):
        _print(terminalreporter, table, rows)


def _print(terminalreporter: Any, table: str, rows: list[dict[str, str]]) -> None:
    terminalreporter.section(table)
    heads = list(dict.fromkeys(head for row in rows for head in row))
    widths = {head: max(len(head), *(len(row.get(head, "")) for row in rows)) for head in heads}
    for row in [dict(zip(heads, heads, strict=True)), *rows]:
        terminalreporter.line("  ".join(row.get(head, "").ljust(widths[head]) for head in heads).rstrip())


ENDED = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[ENDED] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a full-size check with one line that counts passed and failed tests."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not FULL or reporter is None or hasattr(config, "workerinput"):
        return
    passed, failed, skipped = (
        sum(len(reporter.stats.get(word, ())) for word in words)
        for words in (("passed",), ("failed", "error"), ("skipped",))
    )
    if skipped:
        reporter.write_line(f"{skipped} skipped")
    if config.stash.get(ENDED, 4) not in (0, 1):
        reporter.write_line("the run ended before all tests had run")
        failed += 1
    reporter.write_line(f"{passed} passed, {failed} failed")
