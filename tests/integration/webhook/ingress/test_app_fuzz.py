"""Random requests: no answer is 5xx, no unsigned delivery is accepted, and each request is counted."""

import copy
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessiond_webhook.deliveries.signature import sign
from sessiond_webhook.ingress.metrics import EVENTS
from support.servers import Redis, Webhook
from support.webhook import payloads

BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    redis = Redis()
    env = {"TRIGGER": "all", "WEBHOOK_ARRIVAL_SECONDS": "1", "WEBHOOK_TICKET_SECONDS": "0.2", "TASK_LABEL": "bug"}
    made = Webhook(redis.url, Path(tmp_path_factory.mktemp("fuzz")), env)
    yield made
    assert "Traceback" not in made.log_text(0)
    assert not [outcome for _, outcome in made.counted() if outcome in ("internal", "not-stored", "redis-away")]
    made.close()
    redis.close()


VALUE = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.sampled_from(["application/json", "application/x-www-form-urlencoded", "text/x"]) | VALUE,
        "X-GitHub-Event": st.sampled_from(sorted(EVENTS)) | VALUE,
        "X-GitHub-Delivery": VALUE,
        "X-Hub-Signature-256": VALUE | st.sampled_from(["sha256=" + "0" * 64, "sha256=", "sha1=" + "0" * 40]),
        "Accept-Encoding": VALUE,
        "X-Forwarded-For": VALUE,
        "Content-Encoding": VALUE,
    },
)
BODY = st.binary(max_size=300) | st.sampled_from(
    [b"{}", b"payload={}", b'{"action":"created"}', *(json.dumps(payloads.load(n)).encode() for n in payloads.NAMES)]
)


def ask(service: Webhook, body: bytes, headers: dict[str, str]) -> int:
    link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    try:
        link.putrequest("POST", "/github", skip_accept_encoding=True)
        for name, value in headers.items():
            link.putheader(name, value.encode("latin-1"))
        link.putheader("Content-Length", str(len(body)))
        link.endheaders(body)
        return link.getresponse().status
    finally:
        link.close()


@BOUNDED
@given(BODY, HEADERS)
def test_no_unsigned_delivery_is_accepted(service: Webhook, body: bytes, headers: dict[str, str]) -> None:
    assert 400 <= ask(service, body, headers) < 500


@BOUNDED
@given(BODY, HEADERS)
def test_a_signed_delivery_never_gets_5xx(service: Webhook, body: bytes, headers: dict[str, str]) -> None:
    status = ask(service, body, {**headers, "X-Hub-Signature-256": sign(Webhook.SECRET, body)})
    assert 200 <= status < 500


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=8), st.just([]), st.just({}),
    st.just("\x00"), st.just("x" * 5000), st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


@BOUNDED
@given(st.sampled_from(payloads.NAMES), st.data())
def test_a_signed_damaged_payload_never_gets_5xx(service: Webhook, name: str, data: Any) -> None:
    payload = copy.deepcopy(payloads.load(name))
    for _ in range(data.draw(st.integers(1, 3))):
        place = payload
        deep = [key for key in ("comment", "review", "issue", "pull_request", "repository", "label") if key in payload]
        if deep and data.draw(st.booleans()):
            inner = payload[data.draw(st.sampled_from(deep))]
            place = inner if isinstance(inner, dict) else payload
        if place:
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(ODD)
    status = service.post(payloads.EVENTS[name], payload).status
    assert status in (200, 202, 204, 400), status


@BOUNDED
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_never_get_5xx(service: Webhook, raw: bytes, begun: bool) -> None:
    head = b"POST /github HTTP/1.1\r\nHost: x\r\n" if begun else b""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as link:
        link.sendall(head + raw)
        link.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := link.recv(4096):
            answer += piece
    assert not answer or 400 <= int(answer.split(b" ")[1]) < 500, answer


def test_the_counts_of_all_processes_add_up_to_the_sent_requests(service: Webhook) -> None:
    before = sum(service.counted().values())
    for number in range(60):
        service.pool.clear()  # a new connection can reach another process
        service.post("issue_comment", payloads.comment(f"IC_sum{number}"))
    assert sum(service.counted().values()) == before + 60
    assert len({p.pid for p in service.workers()}) == 2
