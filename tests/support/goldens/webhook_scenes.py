"""Scenes of the webhook: deliveries that it accepts, ignores and refuses."""

import http.client
import socket
from typing import Any

import urllib3

from support.goldens.exchanges import Http, headers_of, without_common
from support.goldens.mask import Mask
from support.goldens.records import Records
from support.servers import Redis, Webhook
from support.webhook import payloads

BOT = {"id": 4711, "login": "helper[bot]", "type": "Bot"}

REPOSITORY = "codertocat/hello-world"


GAUGES = frozenset({"webhook_demands", "webhook_pending_posts", "worker_tasks"})


class DeliverySender:
    """Sends deliveries to a webhook and records its answers."""

    def __init__(self, service: Webhook, mask: Mask) -> None:
        self.service = service
        self.http = Http(service.url, {}, mask)
        common = headers_of(self.http.ask("GET", "/healthz", role=None))
        self.common = {name: value for name, value in common.items() if name != "Content-Type"}

    def __call__(self, delivery: str, event: str, payload: Any = None, what: str = "", **more: Any) -> Any:
        """Send and record a delivery. `what` describes its content in the golden file."""
        answer = self.service.post(event, payload, delivery, **more)
        self.http.record("POST", "/github", None, answer)
        self.http.facts[-1] |= {"delivery": delivery, "event": event, "what": what}
        return answer

    def get(self, path: str) -> None:
        self.http("GET", path, role=None)

    def send_raw(self, what: str, head: bytes, *pieces: bytes) -> None:
        """Send these bytes unchanged, and record the answer."""
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=60) as link:
            link.sendall(head)
            for piece in pieces:
                link.sendall(piece)
            answer = http.client.HTTPResponse(link)
            answer.begin()
            data = answer.read()
        made = urllib3.HTTPResponse(data, headers=dict(answer.getheaders()), status=answer.status)
        self.http.record("POST", "/github", None, made)
        self.http.facts[-1] |= {"what": what}

    @property
    def facts(self) -> list[Any]:
        return without_common(self.http.facts, self.common)


def send_deliveries(send: DeliverySender) -> None:
    """Send every kind of delivery, with every outcome."""
    comment, review_comment, review = payloads.comment, payloads.review_comment, payloads.review
    for path in ("/healthz", "/readyz"):
        send.get(path)
    send("d-1", "ping", payloads.load("ping"))
    send("d-2", "issue_comment", comment("IC_1"), "a comment")
    send("d-2", "issue_comment", comment("IC_1"), "the same delivery")
    send("d-3", "issue_comment", comment("IC_1"), "the same comment")
    edited = {"comment__updated_at": "2030-01-01T00:00:00Z"}
    send("d-4", "issue_comment", comment("IC_1", "@helper otherwise?", action="edited", **edited), "its edit")
    send("d-5", "pull_request_review_comment", review_comment(), "a comment on a line")
    send("d-6", "pull_request_review", review(body="@helper and this?"), "a review")
    send("d-7", "issue_comment", comment("IC_2"), "a comment that is deleted")
    send("d-8", "issue_comment", comment("IC_2", action="deleted"), "its deletion")
    send("d-9", "issue_comment", comment("IC_3", action="deleted"), "a deletion that comes first")
    send("d-10", "issue_comment", comment("IC_3"), "its comment")
    send("d-11", "issue_comment", comment("IC_4", "@helper early", action="edited"), "an edit that comes first")
    closed = {"issue__number": 9, "issue__state": "closed"}
    send("d-12", "issue_comment", comment("IC_5", **closed), "a comment on a closed pull request")
    send("d-13", "pull_request", payloads.load("pull_request.closed"), "a pull request closes")
    label = payloads.change(payloads.load("issues.labeled"), label__name="sessiond-task")
    send("d-14", "issues", label, "an issue with the task label")
    send("d-14", "issues", label, "the same delivery")
    assigned = payloads.change(payloads.load("issues.assigned"), assignee=BOT)
    send("d-15", "issues", assigned, "an issue assigned to the bot")
    send("d-16", "pull_request_review", review("PRR_2", state="approved"), "an approval")
    ignored = [
        ("star", {"action": "created"}, "another event"),
        ("issue_comment", {"action": "pinned"}, "another action"),
        ("issue_comment", comment("IC_6", comment__user=BOT), "the bot's own"),
        ("issue_comment", comment("IC_6", comment__user={"id": 5, "login": "x[bot]", "type": "Bot"}), "another bot's"),
        ("issue_comment", comment("IC_6", comment__author_association="NONE"), "somebody else's"),
        ("issue_comment", comment("IC_6", comment__user=None), "nobody's"),
        ("issue_comment", comment("IC_6", "no mention"), "no mention"),
        ("issue_comment", comment("IC_6", " "), "no body"),
        ("issues", payloads.load("issues.labeled"), "another label"),
        ("issues", payloads.load("issues.assigned"), "another assignee"),
        ("issues", payloads.change(label, issue__state="closed"), "a closed issue"),
        ("issues", payloads.change(label, issue__pull_request={}), "a pull request"),
    ]
    for number, (event, payload, what) in enumerate(ignored):
        send(f"i-{number}", event, payload, what)
    send("d-17", "issue_comment", comment("IC_7"), "a comment as a form", form=True)


def send_refused_deliveries(send: DeliverySender, records: Records, redis_server: Redis) -> None:
    """Cause every problem type of the webhook."""
    ping = payloads.load("ping")
    send("r-1", "ping", ping, "no signature", headers={"X-Hub-Signature-256": None})
    send("r-2", "ping", ping, "another secret", secret="another")
    send("r-3", "ping", ping, "another type", headers={"Content-Type": "text/plain"})
    send("r-4", "ping", None, "no JSON", body=b"{")
    send("r-5", "ping", ping, "no event", headers={"X-GitHub-Event": None})
    send("r-6", "issue_comment", {"action": "created"}, "an unusable payload")
    send("r-7", "ping", None, "too many bytes at once", body=b'"' + b"x" * (5 * 2**20) + b'"')
    for path in ("/nothing", "/github"):
        send.get(path)
    head = b"POST /github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    send.send_raw("a length over the limit", head + b"Content-Length: 26214401\r\n\r\n")
    send.send_raw("a body that does not come", head + b"Content-Length: 5\r\n\r\n{}")
    records.redis.set("webhook:demand:IC_bad", "no JSON")
    send("r-8", "issue_comment", payloads.comment("IC_bad"), "a record that cannot be read")
    records.redis.zadd(f"webhook:open:{REPOSITORY}", {"IC_bad": 1})
    send.get("/metrics")
    redis_server.kill9()
    send("r-9", "issue_comment", payloads.comment("IC_8"), "Redis is away")
    send.get("/readyz")
    redis_server.start()
