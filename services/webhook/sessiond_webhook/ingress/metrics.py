"""The metrics of the ingress. Each process writes its own file, and a scrape adds them up.

Import this only after PROMETHEUS_MULTIPROC_DIR is set. Each label has a bounded set of values. Units are base units.
"""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from sessiond_common import VERSION
from sessiond_common.metrics import multiprocess
from sessiond_common.metrics.job_metrics import DIRECTORY

_OWN = CollectorRegistry()

DELIVERIES = Counter(
    "webhook_deliveries_total", "Answered requests of POST /github", ["event", "outcome"], registry=_OWN
)
IGNORED = Counter("webhook_ignored_total", "Signed deliveries that this service ignored", ["reason"], registry=_OWN)
TICKETS = Counter(
    "webhook_tickets_total", "Tickets that the ingress took or withdrew, by outcome", ["outcome"], registry=_OWN
)
SECONDS = Histogram(
    "webhook_request_seconds", "Seconds from the headers of a POST /github to its answer", registry=_OWN,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)  # fmt: skip

OTHER: Final = "other"
EVENTS: Final = frozenset({
    "branch_protection_configuration", "branch_protection_rule", "check_run", "check_suite", "code_scanning_alert",
    "cache_sync", "commit_comment", "content_reference", "enterprise", "user",
    "create", "custom_property", "custom_property_values", "delete", "dependabot_alert",
    "deploy_key", "deployment", "deployment_protection_rule", "deployment_review", "deployment_status", "discussion",
    "discussion_comment", "fork", "github_app_authorization", "gollum", "installation", "installation_repositories",
    "installation_target", "issue_comment", "issue_dependencies", "issues", "label", "marketplace_purchase", "member",
    "membership", "merge_group", "meta", "milestone", "org_block", "organization", "package", "page_build",
    "personal_access_token_request", "ping", "project", "project_card", "project_column", "projects_v2",
    "projects_v2_item", "projects_v2_status_update", "public", "pull_request", "pull_request_review",
    "pull_request_review_comment", "pull_request_review_thread", "push", "registry_package", "release", "repository",
    "repository_advisory", "repository_dispatch", "repository_import", "repository_ruleset",
    "repository_vulnerability_alert", "secret_scanning_alert", "secret_scanning_alert_location",
    "secret_scanning_scan", "security_advisory", "security_and_analysis", "sponsorship", "star", "status",
    "sub_issues", "team", "team_add", "watch", "workflow_dispatch", "workflow_job", "workflow_run",
})  # fmt: skip
"""The names of GitHub's events. Every other name counts as `other`."""


def event_label(event: str | None) -> str:
    """Return the event as the value of a label."""
    return event if event in EVENTS else OTHER


class _Build(Collector):
    def collect(self) -> Iterator[Metric]:
        labels = {"version": VERSION, "python": platform.python_version()}
        yield InfoMetricFamily("webhook_build", "Versions of the running service", value=labels)


def exposition(*more: Collector) -> bytes:
    """Return the text of a scrape: the sums of all processes of this replica, and the collectors `more`."""
    return multiprocess.exposition(Path(os.environ[DIRECTORY]), _Build(), *more)
