"""The process of the ingress: its settings, its signals, its metrics directory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sessiond_webhook.deliveries.signature import sign
from support.servers import Webhook, eventually
from support.webhook import payloads
from support.webhook.ingress_calls import connection


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "WEBHOOK_SECRET"),
        ({"WEBHOOK_SECRET": "  "}, "WEBHOOK_SECRET"),
        ({"WEBHOOK_SECRET_FILE": "/nowhere"}, "WEBHOOK_SECRET_FILE"),
        ({"WEBHOOK_SECRET": "x", "WEBHOOK_PORT": "many"}, "WEBHOOK_PORT"),
        ({"WEBHOOK_SECRET": "x", "WEBHOOK_PROCESSES": "0"}, "WEBHOOK_PROCESSES"),
        ({"WEBHOOK_SECRET": "x", "TRIGGER": "whim"}, "TRIGGER"),
        ({"WEBHOOK_SECRET": "x", "ALLOWED_USERS": "mona"}, "ALLOWED_USERS"),
        ({"WEBHOOK_SECRET": "x", "ALLOWED_ASSOCIATIONS": "OWNER FRIEND"}, "ALLOWED_ASSOCIATIONS"),
        ({"WEBHOOK_SECRET": "x", "BOT_ID": "helper"}, "BOT_ID"),
        ({"WEBHOOK_SECRET": "x", "REDIS_URL": "http://x"}, "REDIS_URL"),
    ],
)
def test_bad_settings_give_one_line_and_exit_2(env: dict[str, str], named: str) -> None:
    full = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(
        [sys.executable, "-m", "sessiond_webhook"], env=full, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert named in done.stderr and "Traceback" not in done.stderr


def test_sigusr1_writes_the_stacks_and_sigterm_ends_the_process_cleanly(webhook: Callable[..., Webhook]) -> None:
    service = webhook()
    for worker in service.workers():
        worker.send_signal(signal.SIGUSR1)
    eventually(lambda: service.log_text(0).count("Current thread") >= 2, 10, "stacks of both")
    idle = connection(service)
    idle.request("GET", "/healthz")
    assert idle.getresponse().read()
    service.hold("ingress-committed")
    late, body = connection(service), json.dumps(payloads.load("pull_request.closed")).encode()
    headers = {
        "Content-Type": "application/json", "X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "late",
        "X-Hub-Signature-256": sign(Webhook.SECRET, body),
    }  # fmt: skip
    late.request("POST", "/github", body=body, headers=headers)
    service.wait_until_reached("ingress-committed")
    service.process.terminate()
    service.release("ingress-committed")
    assert late.getresponse().status == 202
    assert service.process.wait(20) == 0
    assert "not answered in time" not in service.log_text(0)
    idle.close()


def test_no_metrics_directory_is_left(webhook: Callable[..., Webhook], tmp_path: Path) -> None:
    service = webhook({"TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.glob("webhook-metrics-*"))) == 1
    service.terminate()
    assert not list(tmp_path.glob("webhook-metrics-*"))
