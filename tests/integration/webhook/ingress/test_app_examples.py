"""All example payloads of npm `@octokit/webhooks-examples`, signed by npm `@octokit/webhooks-methods`.

Needs node 20 or newer, npm and a registry. Without them the test is skipped with the reason.
"""

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond_webhook.ingress.metrics import event_label
from support.servers import TESTS, Redis, Webhook

NPM = TESTS / "support" / "webhook" / "npm"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not on PATH")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < 20:
        pytest.skip(f"needs node 20 or newer, found {version}")
    place = Path(tmp_path_factory.mktemp("npm"))
    for path in NPM.iterdir():
        if path.is_file():
            shutil.copy(path, place)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        done = subprocess.run(install, cwd=place, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("needs an npm registry, and npm ci got no answer within 120 s")
    if done.returncode:
        why = done.stderr.strip()
        assert "EINTEGRITY" not in why and "EUSAGE" not in why, why
        pytest.skip(f"needs an npm registry: {why.splitlines()[0] if why else 'npm ci failed'}")
    command = ["node", "sign.mjs", Webhook.SECRET]
    lines = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in lines.splitlines()]


def outcome(answer: Any) -> str:
    if answer.status == 204:
        return "ignored"
    found = answer.json()
    return str(found.get("outcome") or found["type"])


@pytest.mark.parametrize("form", [False, True], ids=["json", "form"])
def test_every_example_is_accepted_and_counted_with_its_outcome(
    webhook: Callable[..., Webhook], redis_server: Redis, signed: list[dict[str, Any]], form: bool
) -> None:
    service = webhook({"TRIGGER": "all", "TASK_LABEL": "bug", "BOT_LOGIN": "Codertocat", "BOT_ID": "1"})
    assert len(signed) > 700
    told: Counter[tuple[str, str]] = Counter()
    for one in signed:
        body = one["body"].encode()
        headers = {} if form else {"X-Hub-Signature-256": one["signature"]}
        answer = service.post(one["name"], None, body=body, headers=headers, form=form)
        assert answer.status in (200, 202, 204), (one["name"], answer.data)
        told[event_label(one["name"]), outcome(answer)] += 1
    assert not [event for event, _ in told if event == "other"]
    assert service.counted() == dict(told)
    words = {word for _, word in told}
    assert {"accepted", "known", "withdrawn", "ignored", "ping", "task", "nothing"} <= words, words
    assert told["ping", "ping"] and told["issue_comment", "accepted"] and told["issues", "task"]


def test_our_signature_equals_that_of_githubs_package(signed: list[dict[str, Any]]) -> None:
    from sessiond_webhook.deliveries.signature import sign, valid

    for one in signed:
        assert sign(Webhook.SECRET, one["body"].encode()) == one["signature"]
        assert valid([Webhook.SECRET], one["signature"], one["body"].encode())
