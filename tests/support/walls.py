"""Walls: what an attacker or a fault must not get through. Prints one line for each attack that was tried.

A test of a wall has the marker `wall(name, tried="one sentence")` and says what it measured with `wall_came("...")`.
The walls' names are the rows of docs/concepts/threat-model.md.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.size import FULL

WallCame = Callable[[str], None]
"""Says what came of the attack: wall_came("400 for 13 of 13 forms")."""
TRIED, CAME = "wall tried", "wall came"


@pytest.fixture
def wall_came(request: pytest.FixtureRequest) -> WallCame:
    return lambda text: request.node.user_properties.append((CAME, text))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (wall := item.get_closest_marker("wall")) is None:
            continue
        if len(wall.args) != 1 or set(wall.kwargs) != {"tried"} or "wall_came" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: write wall(name, tried=...) and take the fixture wall_came")
        item.user_properties.append((TRIED, (*wall.args, wall.kwargs["tried"])))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Fail a test of a wall that passed and did not say what came."""
    report = yield
    names = {name for name, _ in report.user_properties}
    if call.when == "call" and report.passed and TRIED in names and CAME not in names:
        report.outcome, report.longrepr = "failed", "the test of a wall did not call wall_came"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the attacks, sorted by wall: how it ended, what was tried, what came."""
    rows: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for report in _last_reports(terminalreporter):
        properties = dict(report.user_properties)
        if TRIED in properties:
            came = "; ".join(text for name, text in report.user_properties if name == CAME) or _reason(report)
            rows.setdefault(tuple(properties[TRIED]), []).append((report.outcome, came))
    if not FULL or not rows:
        return
    terminalreporter.section("walls")
    width = max(len(wall) for wall, _ in rows)
    for (wall, tried), found in sorted(rows.items()):
        outcome = next((word for word in ("failed", "passed") if word in {one for one, _ in found}), "skipped")
        came = "; ".join(dict.fromkeys(text for one, text in found if one == outcome))
        terminalreporter.line(f"{outcome:7}  {wall:{width}}  {tried} -> {came}")


def _last_reports(terminalreporter: Any) -> Iterator[Any]:
    """Yield each test's report: of its call, or of the set-up or tear-down that ended it otherwise."""
    for found in terminalreporter.stats.values():
        for one in found:
            if isinstance(one, pytest.TestReport) and (one.when == "call" or not one.passed):
                yield one


def _reason(report: Any) -> str:
    """Why a test failed or was skipped, in one line."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    text = str(report.longreprtext).strip()
    errors = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    return errors[0] if errors else text.rpartition("\n")[2]
