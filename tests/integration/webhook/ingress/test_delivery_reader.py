"""Every answer of `POST /github` that depends on the request, over real HTTP with two processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond_webhook.deliveries.signature import sign
from support.servers import Webhook
from support.webhook import payloads
from support.webhook.ingress_calls import PREVIOUS, problem, two_secrets


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    with two_secrets(Path(tmp_path_factory.mktemp("webhook"))) as made:
        yield made


def test_pings_and_ignored_events_are_answered(service: Webhook) -> None:
    assert service.post("ping", payloads.load("ping")).status == 200
    before = service.counted().get(("star", "ignored"), 0)
    assert service.post("star", {"action": "created"}).status == 204
    assert service.counted()["star", "ignored"] == before + 1
    assert service.post("of my own making", {}, headers={"X-GitHub-Event": "made_up"}).status == 204
    assert service.counted()["other", "ignored"] >= 1


def test_a_delivery_is_accepted_with_either_secret_as_json_and_as_a_form(service: Webhook) -> None:
    for number, more in enumerate([{}, {"secret": PREVIOUS}, {"form": True}, {"form": True, "secret": PREVIOUS}]):
        answer = service.post("issue_comment", payloads.comment(f"IC_s{number}", "über & co = ok? +1"), **more)
        assert (answer.status, answer.json()["outcome"], answer.json()["demand"]) == (202, "accepted", f"IC_s{number}")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Hub-Signature-256": None},
        {"X-Hub-Signature-256": ""},
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        {"X-Hub-Signature-256": "sha1=" + "0" * 40},
        {"X-Hub-Signature-256": None, "X-Hub-Signature": "sha1=" + "0" * 40},
    ],
)
def test_an_unsigned_or_wrongly_signed_delivery_gets_401(service: Webhook, headers: dict[str, str | None]) -> None:
    answer = service.post("issue_comment", payloads.comment("IC_unsigned"), headers=headers)
    problem(answer, "unauthorized")
    problem(service.post("ping", {}, secret="another"), "unauthorized")


def test_a_signature_of_another_body_gets_401(service: Webhook) -> None:
    body = b'{"zen": "x"}'
    headers = {"X-Hub-Signature-256": sign(Webhook.SECRET, body + b" ")}
    problem(service.post("ping", None, body=body, headers=headers), "unauthorized")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "", None])
def test_other_content_types_get_415(service: Webhook, kind: str | None) -> None:
    problem(service.post("ping", {}, headers={"Content-Type": kind}), "unsupported-media-type")
    unsigned = {"Content-Type": kind, "X-Hub-Signature-256": None}
    problem(service.post("ping", {}, headers=unsigned), "unsupported-media-type")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{} {}", b'"\\ud800"', b"[" * 5000, b"NaN"])
def test_a_body_that_is_not_json_gets_400(service: Webhook, body: bytes) -> None:
    problem(service.post("issue_comment", None, body=body), "bad-request")


@pytest.mark.parametrize(
    "body", [b"", b"payload=", b"payload={", b"x={}", b"payload={}&payload={}", b"payload=%ff", b"\xff"]
)
def test_a_form_without_a_payload_gets_400(service: Webhook, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    problem(service.post("issue_comment", None, body=body, headers=headers), "bad-request")


@pytest.mark.parametrize("name", ["X-GitHub-Event", "X-GitHub-Delivery"])
@pytest.mark.parametrize("value", [None, "", "two words", "x" * 201])
def test_a_delivery_without_its_headers_gets_400(service: Webhook, name: str, value: str | None) -> None:
    problem(service.post("ping", {}, headers={name: value}), "bad-request")


@pytest.mark.parametrize("payload", [{}, [], {"action": 5}, {"action": "created"}, payloads.comment(comment__id="x")])
def test_an_unusable_payload_of_a_handled_event_gets_400(service: Webhook, payload: Any) -> None:
    problem(service.post("issue_comment", payload), "bad-payload")


def test_other_paths_and_methods_are_refused(service: Webhook) -> None:
    problem(service.pool.request("GET", f"{service.url}/nothing"), "not-found")
    answer = service.pool.request("GET", f"{service.url}/github")
    problem(answer, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"
    assert service.pool.request("GET", f"{service.url}/healthz").status == 200
    assert service.pool.request("GET", f"{service.url}/readyz").status == 200
