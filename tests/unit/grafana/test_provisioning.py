"""The configuration of Grafana, Prometheus and compose is consistent and valid. Needs none of them."""

import json
import re
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
GRAFANA = ROOT / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = {name: one for name, one in COMPOSE["services"].items() if one.get("profiles") is None}
PANELS = {"stat", "timeseries", "table", "state-timeline", "bargauge"}
"""Panel types that the dashboards use. All come with Grafana."""
UNITS = {"none", "short", "s", "bytes", "ops", "reqps", "currencyUSD"}
"""Ids of Grafana's units that the dashboards use. Grafana prints an unknown one as text after each number."""
SCHEMA = {"10.4": 39}
"""The newest dashboard schema of each Grafana release. A release accepts older schemas, not newer ones."""
Panel = dict[str, Any]


def panels() -> Iterator[tuple[str, Panel]]:
    for name, board in DASHBOARDS.items():
        for panel in board["panels"]:
            yield f"{name}: {panel['title']}", panel


def provisioned(kind: str, key: str) -> dict[str, Any]:
    (path,) = (GRAFANA / "provisioning" / kind).iterdir()
    (found,) = yaml.safe_load(path.read_text())[key]
    return found  # type: ignore[no-any-return]


def test_each_dashboard_is_a_bare_model_with_a_unique_uid() -> None:
    release = SERVICES["grafana"]["image"].partition(":")[2].rpartition(".")[0]
    for board in DASHBOARDS.values():
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", board["uid"])
        assert board.get("id") is None and "__inputs" not in board
        assert 36 <= board["schemaVersion"] <= SCHEMA[release]
        assert {tag for link in board["links"] for tag in link["tags"]} <= set(board["tags"])
    for what in ("uid", "title"):
        assert len({board[what] for board in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    found = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in found}) == len({panel["title"] for panel in found}) == len(found)
    for panel in found:
        place = panel["gridPos"]
        assert min(place["x"], place["y"]) >= 0 and min(place["w"], place["h"]) > 0 and place["x"] + place["w"] <= 24
    for one, other in combinations(found, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    # No gaps either: Grafana would move the panels below a gap up.
    area = sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in found)
    assert area == 24 * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in found)


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in (("x", "w"), ("y", "h"))
    )


def test_each_panel_is_valid_for_grafana() -> None:
    for where, panel in panels():
        check_panel(where, panel)


def check_panel(where: str, panel: Panel) -> None:
    assert panel["type"] in PANELS and panel["description"], where
    field = panel["fieldConfig"]["defaults"]
    if panel["type"] == "state-timeline":
        (mapping,) = field["mappings"]
        assert set(mapping["options"]) == {"0", "1", "2", "3"}, (
            "needs a text for each of: nobody, a handler, the worker, draining"
        )
    else:
        assert field["unit"] in UNITS, where
    for steps in (field[name]["steps"] for name in ("thresholds",) if name in field):
        assert steps[0]["value"] is None and [s["value"] for s in steps[1:]] == sorted(s["value"] for s in steps[1:])
    targets = panel["targets"]
    assert len({target["refId"] for target in targets}) == len(targets) > 0
    uid = provisioned("datasources", "datasources")["uid"]
    assert {
        source["uid"] for source in (panel["datasource"], *(t.get("datasource", {"uid": uid}) for t in targets))
    } == {uid}
    for target in targets:
        shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat") or ""))
        kept = {name for found in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for name in found.split(", ")}
        assert shown <= kept, "the legend names labels that the query drops"
        variables = {one["name"] for board in DASHBOARDS.values() for one in board["templating"]["list"]}
        assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= variables


def test_grafana_reads_dashboards_and_prometheus_where_compose_puts_them() -> None:
    source, provider = provisioned("datasources", "datasources"), provisioned("dashboards", "providers")
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090" and source["isDefault"]
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])
    for board in DASHBOARDS.values():
        for variable in board["templating"]["list"]:
            assert variable["datasource"]["uid"] == source["uid"]


def test_prometheus_scrapes_each_service_where_it_serves_metrics() -> None:
    config = yaml.safe_load((GRAFANA / "prometheus" / "prometheus.yml").read_text())
    ports = {"sessiond": 8420, "webhook": 8421}
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        (name,) = found["names"]
        service = SERVICES[name]
        assert job["job_name"] == name and found["type"] == "A"
        assert found["port"] == ports.get(name) or str(found["port"]) == service["environment"]["METRICS_PORT"]
        assert set(service["networks"]) & set(SERVICES["prometheus"]["networks"])
    assert {job["job_name"] for job in config["scrape_configs"]} == {
        "sessiond",
        "webhook",
        "handler",
        "poster",
        "worker",
    }


def test_every_service_has_limits_a_healthcheck_and_a_restart_policy() -> None:
    for name, service in SERVICES.items():
        assert service["mem_limit"], name
        assert service["restart"] == ("no" if name == "init" else "unless-stopped"), name
        assert name == "init" or service["healthcheck"]["test"], name
        assert "no-new-privileges:true" in service["security_opt"] and service["cap_drop"] == ["ALL"], name
    named = {one.split(":")[0] for service in SERVICES.values() for one in service.get("volumes", ())}
    assert set(COMPOSE["volumes"]) <= named
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"proxy", "grafana"}
    assert all(port.startswith("${") and "_BIND:-127.0.0.1}:" in port for ports in published.values() for port in ports)


def test_the_stop_grace_period_is_longer_than_a_drain() -> None:
    settings = (ROOT / "services" / "sessiond" / "sessiond" / "lock" / "rules.py").read_text()
    (drain,) = re.findall(r"drain_deadline: float = ([\d.]+)", settings)
    assert float(SERVICES["sessiond"]["stop_grace_period"].removesuffix("s")) > 2 * float(drain)


IMAGES = {"sessiond": "server", "webhook": "services", "worker": "services"}
"""The extra that each image installs."""


@pytest.mark.parametrize("service", IMAGES)
def test_an_image_copies_existing_files(service: str) -> None:
    """Without this check, a wrong path would fail only at the next build."""
    context = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in dockerfile(service) if line.startswith("COPY ") and "--from" not in line]
    named = [path for words in copies for path in words if not path.startswith("--")]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path in named if path.split("/")[0] not in context] == []


@pytest.mark.parametrize(("service", "extra"), IMAGES.items())
def test_an_image_installs_the_wheel_and_the_lock_file_of_its_extra(service: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(dockerfile(service))
    assert extra in project["optional-dependencies"]
    assert f"requirements/{extra}.txt" in text and f"--require-hashes --only-binary :all: -r /tmp/{extra}.txt" in text
    assert re.findall(r"pip install .*--no-index .*\[(\w+)\]", text) == [extra]


def dockerfile(service: str) -> list[str]:
    return (ROOT / "services" / service / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
