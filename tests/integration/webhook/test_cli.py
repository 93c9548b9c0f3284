"""`sessionctl send` against a real webhook."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond_webhook import cli
from support.servers import Webhook, free_port
from support.webhook import payloads

PING = str(payloads.DATA / "ping.json")
COMMENT = str(payloads.DATA / "issue_comment.created.json")


def send(*words: str, input: bytes = b"", **env: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WEBHOOK_", "SESSIOND_"))}
    done = subprocess.run(
        [sys.executable, "-m", "sessiond_ops.sessionctl", "send", *words],
        env={**kept, **env}, input=input, capture_output=True, timeout=30,
    )  # fmt: skip
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_send_signs_and_posts_with_every_source_of_the_secret(webhook: Callable[..., Webhook], tmp_path: Path) -> None:
    service = webhook({"TRIGGER": "all"})
    (tmp_path / "webhook-secret").write_text(Webhook.SECRET + "\n")
    here = {"WEBHOOK_PORT": str(service.port)}
    sources: list[tuple[list[str], dict[str, str]]] = [
        (["--secret", Webhook.SECRET], {}),
        (["--secret-file", str(tmp_path / "webhook-secret")], {}),
        ([], {"WEBHOOK_SECRET": Webhook.SECRET}),
        ([], {"WEBHOOK_SECRET_FILE": str(tmp_path / "webhook-secret")}),
        ([], {"SESSIOND_STATE_DIR": str(tmp_path)}),
        (["--form", "--secret", Webhook.SECRET], {}),
    ]
    for words, env in sources:
        done = send(PING, "--event", "ping", *words, **here, **env)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.startswith("200 ping ")
    signed = {"WEBHOOK_SECRET": Webhook.SECRET}
    done = send(COMMENT, "--event", "issue_comment", "--delivery", "one", "--url", service.url, **signed)
    assert done.stdout.startswith("202 accepted demand=MDEyOklzc3VlQ29tbWVudDQ5MjcwMDQwMA== ")
    again: dict[str, Any] = json.loads(
        send("-", "--event", "issue_comment", "--delivery", "one", "--json", "--url", service.url,
             input=Path(COMMENT).read_bytes(), **signed).stdout
    )  # fmt: skip
    assert (again["status"], again["outcome"], again["delivery"]) == (202, "duplicate", "one")
    assert send(PING, "--event", "star", "--url", service.url, **signed).stdout.startswith("204 ignored ")
    refused = send(PING, "--event", "ping", "--secret", "wrong", **here)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "401 unauthorized" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["/nowhere.json", "--event", "ping", "--secret", "x"],
        [PING, "--event", "ping"],
        [PING, "--event", "ping", "--secret-file", "/nowhere"],
        [PING, "--event", "ping", "--secret", "x", "--url", "ftp://x"],
        [__file__, "--event", "ping", "--secret", "x"],
    ],
)
def test_bad_input_gives_one_line_and_exit_2(words: list[str], tmp_path: Path) -> None:
    done = send(*words, SESSIOND_STATE_DIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done


def test_an_unreachable_webhook_gives_one_line_and_exit_1() -> None:
    done = send(PING, "--event", "ping", "--secret", "x", "--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_send_can_be_added_to_subparsers() -> None:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    assert callable(parser.parse_args(["send", "x", "--event", "ping"]).run)
