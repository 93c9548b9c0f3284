"""Every panel's query returns numbers from a Prometheus that scrapes all services; the alert rules pass their tests.

Needs Debian's package prometheus (prometheus, promtool). Without it, pytest skips these tests and names the package.
"""

import json
import math
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.scaled_stack import TIMES, Stack
from support.servers import Redis, Sessiond, eventually, free_port, scripted_env

ROOT = Path(__file__).parents[3]
GRAFANA = ROOT / "grafana"
RULES = GRAFANA / "prometheus" / "rules"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
VARIABLES = {"$__rate_interval": "30s", "$__range": "5m", "$session": ".*"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus or promtool is missing: apt-get install prometheus",
)


class Prometheus:
    """A Prometheus on loopback with the project's configuration, but with fixed targets instead of DNS names."""

    def __init__(self, place: Path, targets: dict[str, list[str]]) -> None:
        config = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES / "sessiond.yml")]
        for job in config["scrape_configs"]:
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": [url.removeprefix("http://") for url in targets[job["job_name"]]]}]
        assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
        place.mkdir()
        (place / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            "prometheus", f"--config.file={place}/prometheus.yml", f"--storage.tsdb.path={place}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ]  # fmt: skip
        self.log = place / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def query(self, query: str) -> list[dict[str, Any]]:
        """Return the result of an instant query."""
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def up(self) -> int:
        """Return the number of targets whose last scrape succeeded."""
        try:
            return len(self.query("up == 1"))
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return 0

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def queries() -> Iterator[tuple[str, str]]:
    """Yield (place, expression) of each query of all panels."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']} {target['refId']}", target["expr"]


def substitute_variables(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def numbers(result: list[dict[str, Any]]) -> list[float]:
    return [number for one in result if not math.isnan(number := float(one["value"][1]))]


def test_every_panel_shows_numbers_after_a_flurry(
    redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path, figures: Callable[[str], None]
) -> None:
    with ExitStack() as ends:
        stack = Stack(redis_server, sessiond(scripted_env(**TIMES)), tmp_path, ends)
        prometheus = Prometheus(tmp_path / "prometheus", stack.targets)
        ends.callback(prometheus.close)
        targets = sum(map(len, stack.targets.values()))
        eventually(lambda: prometheus.up() == targets, 30, "all targets are scraped")
        for round in range(2):
            task = stack.task(f"count-{round}")
            stack.wait_until_done(stack.flurry(range(round * 9, round * 9 + 9)), task)
        want = stack.scrape("sessiond").total("sessiond_handoffs_total")
        scraped = lambda: sum(numbers(prometheus.query("sessiond_handoffs_total"))) == want  # noqa: E731
        eventually(scraped, 10, "the last scrape")
        empty = []

        def all_shown() -> bool:
            empty[:] = [
                where
                for where, expression in queries()
                if not numbers(prometheus.query(substitute_variables(expression)))
            ]
            return not empty

        try:
            eventually(all_shown, 10)
        except AssertionError:
            pytest.fail(f"these panels show no numbers: {empty}")
        assert numbers(prometheus.query("sum(sessiond_inversions_total) + sum(sessiond_misorders_total)")) == [0]
        p95 = "histogram_quantile(0.95, sum by (le, kind) (sessiond_lock_wait_seconds_bucket))"
        waits = {one["metric"]["kind"]: float(one["value"][1]) for one in prometheus.query(p95)}
        handoffs = {
            f"{one['metric']['from_kind']}>{one['metric']['to_kind']}": int(one["value"][1])
            for one in prometheus.query("sum by (from_kind, to_kind) (sessiond_handoffs_total) > 0")
        }
        assert prometheus.query('ALERTS{alertstate="firing"}') == []
        figures(
            f"{len(list(queries()))} queries show numbers; lock wait p95 {waits}; handoffs {handoffs}; inversions 0"
        )


def test_the_alert_rules_are_valid_and_pass_their_tests() -> None:
    for words in (["check", "rules", "sessiond.yml"], ["test", "rules", "sessiond_test.yml"]):
        done = subprocess.run(["promtool", *words], cwd=RULES, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_and_panel_is_explained() -> None:
    page = (ROOT / "docs" / "operate" / "alerts.md").read_text()
    anchors = {title.lower() for title in re.findall(r"^#+ (\w+)$", page, re.M)}
    for group in yaml.safe_load((RULES / "sessiond.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["runbook"] == f"docs/operate/alerts.md#{rule['alert'].lower()}"
            assert rule["alert"].lower() in anchors
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            assert f"| {panel['title']} |" in page, panel["title"]
            assert panel["datasource"]["uid"] == "sessiond-prometheus"


def test_every_metric_is_documented_and_every_query_names_documented_metrics() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    known = set(re.findall(r"`((?:sessiond|webhook|worker)_\w+)`", page))
    rules = re.findall(r"expr: (.*(?:\n {10}.*)*)", (RULES / "sessiond.yml").read_text())
    for expression in [*rules, *(expression for _, expression in queries())]:
        for name in re.findall(r"\b(?:sessiond|webhook|worker)_\w+", expression):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in known, name
    source = "".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    made = set(re.findall(r"\"((?:sessiond|webhook|worker)_\w+(?:_total|_seconds|_bytes|_length|_present))\"", source))
    assert made - known == set()
