"""A webhook that accepts two secrets, and a check of its problem details."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sessiond_webhook.ingress.problems import KINDS
from support.servers import Redis, Webhook

PREVIOUS = "the secret before"


@contextmanager
def two_secrets(place: Path) -> Iterator[Webhook]:
    """Run a webhook with two processes that accepts every comment, signed with either of two secrets."""
    redis = Redis()
    secret = place / "previous"
    secret.write_text(PREVIOUS + "\n")
    env = {"WEBHOOK_SECRET_PREVIOUS_FILE": str(secret), "WEBHOOK_ARRIVAL_SECONDS": "5", "TRIGGER": "all"}
    made = Webhook(redis.url, place, env)
    yield made
    made.close()
    redis.close()


def problem(answer: Any, kind: str) -> None:
    assert answer.headers["Content-Type"] == "application/problem+json", (answer.status, answer.data)
    found = answer.json()
    assert (found["type"], found["status"], answer.status) == (kind, KINDS[kind].status, KINDS[kind].status), found
    assert found["title"] and found["detail"]
    assert ("Retry-After" in answer.headers) == (KINDS[kind].retry_after is not None)


def connection(service: Webhook) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
