"""The layout of the tests: they mirror the services, no folder is too large, and unit tests start no process."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "common": "sessiond_common",
    "ops": "sessiond_ops",
    "sessiond": "sessiond",
    "webhook": "sessiond_webhook",
    "worker": "sessiond_worker",
}
"""The import package of each service folder."""
LARGEST_FOLDER = 13
EXCEPTIONS = {
    "unit/docs": "the documentation is not a service",
    "unit/grafana": "the dashboards and docker-compose.yml are not a service",
    "unit/sessiond/lock/test_explorer.py": "explores lock/machine.py with support/lock/explorer.py",
    "unit/test_layout.py": "checks the tests themselves",
    "unit/test_requirements.py": "the lock files are not a service",
    "integration/sessiond/lock/test_explorer.py": "explores lock/machine.py with support/lock/explorer.py",
    "integration/sessiond/session/test_refused_writes.py": "an outage in which Redis answers reads only",
    "integration/webhook/ingress/test_app_examples.py": "needs node, so it is separate from test_app.py",
    "integration/webhook/ingress/test_app_fuzz.py": "sends random requests to ingress/app.py",
    "system/claude": "the real claude binary under a whole service",
    "system/grafana": "the dashboards are not a service",
    "system/sessiond/agent/test_fault_table.py": "every fault of the agent under a whole service",
    "system/sessiond/agent/test_many_lines.py": "the load of an agent that writes without end",
    "system/sessiond/agent/test_process_tree.py": "every way in which an agent's process tree ends",
    "system/sessiond/agent/test_single_writer.py": "one invariant, checked with strace",
    "system/sessiond/http/test_board_page.py": "the page of the board in a browser",
    "system/sessiond/session/test_clocks.py": "jumps of the wall clock",
    "system/sessiond/session/test_crash_matrix.py": "a crash at each step of each event",
    "system/sessiond/session/test_order.py": "the order of grants under load",
    "system/sessiond/session/test_soak.py": "thousands of handoffs",
    "system/sessiond/session/test_takeover.py": "crashes while a new owner takes over",
    "system/test_deliveries.py": "all services together",
    "system/test_goldens.py": "all services together",
    "system/test_log_correlation.py": "all services together",
    "system/test_metrics.py": "all services together",
    "system/test_package.py": "the built package",
    "system/webhook/handler/test_handler_crashes.py": "a crash at each step of an answer",
    "system/webhook/poster/test_poster_crashes.py": "a crash at each step of a post",
    "system/worker/runner/test_crashes.py": "a crash at each step of a task",
    "system/worker/runner/test_interrupted.py": "every interruption of a task",
}
"""Test modules and folders without a module of the same name, each with what they test instead."""
PROCESSES = frozenset({"Caller", "Github", "Model", "Redis", "Sessiond", "StandIn", "Webhook"})
"""Classes of support.servers that start a process."""


def mirrored(test: Path) -> bool:
    """Whether the test module has the path of a module of a service."""
    service, *folders = test.relative_to(ROOT / "tests").parts[1:-1] or [""]
    if service not in PACKAGES:
        return False
    name = test.stem.removeprefix("test_")
    place = ROOT.joinpath("services", service, PACKAGES[service], *folders)
    return any((place / f"{one}.py").exists() for one in (name, f"__{name}__"))


def test_each_test_module_mirrors_a_module_of_the_services_or_is_an_exception() -> None:
    tests = [test for kind in ("unit", "integration", "system") for test in (ROOT / "tests" / kind).rglob("test_*.py")]
    others = {str(test.relative_to(ROOT / "tests")) for test in tests if not mirrored(test)}
    listed = {name: {other for other in others if other == name or other.startswith(f"{name}/")} for name in EXCEPTIONS}
    assert len(tests) > 100
    assert others - set().union(*listed.values()) == set()
    assert [name for name, found in listed.items() if not found] == [], "these exceptions match no test"


def test_no_folder_has_too_many_modules() -> None:
    modules = [one for top in ("services", "tests") for one in (ROOT / top).rglob("*.py")]
    counts = Counter(str(one.parent.relative_to(ROOT)) for one in modules if one.name != "__init__.py")
    assert len(counts) > 50
    assert {folder: count for folder, count in counts.items() if count > LARGEST_FOLDER} == {}


def imports(module: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each import. The name is empty for `import module`."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def starts_processes(module: str, name: str) -> bool:
    return module in ("subprocess", "multiprocessing") or (module == "support.servers" and name in PROCESSES)


def test_unit_tests_import_nothing_that_starts_a_process() -> None:
    tests = list((ROOT / "tests" / "unit").rglob("*.py"))
    assert len(tests) > 50
    assert [(str(test), *one) for test in tests for one in imports(test) if starts_processes(*one)] == []
