"""The audit in a running sessiond counts and logs each ledger entry that breaks a rule, once."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/hello"


def counted(service: Sessiond) -> dict[str, float]:
    """Return the counters of the audit, with the violations by invariant."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        one.labels.get("invariant", one.name): one.value
        for family in families for one in family.samples
        if one.name.endswith("_total") and family.name.startswith(
            ("sessiond_inversions", "sessiond_misorders", "sessiond_violations", "sessiond_ledger_checked")
        )
    }  # fmt: skip


def forge(server: Redis, event: str, **data: Any) -> None:
    """Add an entry that no owner wrote."""
    fields: dict[Any, Any] = {"event": event, "epoch": "1", "version": "1", "data": json.dumps(data)}
    with redis.Redis.from_url(server.url) as connection:
        connection.xadd(f"sessiond:{{{SESSION}}}:ledger", fields)


def test_a_grant_ahead_of_a_handler_is_counted_as_inversion_and_misorder(
    redis_server: Redis, sessiond: Callable[..., Sessiond]
) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    handler = client.take(SESSION, kind="handler", key="waits")["id"]
    worker = client.take(SESSION, kind="worker", key="task")["id"]
    entries = lambda: len(client.ledger(SESSION))  # noqa: E731
    read = lambda: counted(service)["sessiond_ledger_checked_total"] == entries()  # noqa: E731
    eventually(read, 5, "the ledger is read")
    assert sum(counted(service).values()) == entries(), "nothing is wrong so far"
    forge(redis_server, "passed-over", ticket=handler)
    score = next(e["score"] for e in client.ledger(SESSION) if e.get("ticket") == worker)
    forge(redis_server, "granted", ticket=worker, fence=2**60, kind="worker", score=score, holder="x")
    forge(redis_server, "ended", ticket=worker, fence=2**60, kind="worker", reason="expired")
    forge(redis_server, "back", ticket=worker, score=score)
    client.take(SESSION, kind="handler", priority=0, key="urgent")
    forge(redis_server, "granted", ticket=handler, fence=2**60 + 1, kind="handler", score=1, holder="x")
    forge(redis_server, "granted", fence=1)  # not a valid entry: the audit waits for the next snapshot
    client.take(SESSION, kind="handler", key="last")
    eventually(read, 5, "the ledger is read on")
    found = counted(service)
    del found["sessiond_ledger_checked_total"]
    assert (found.pop("sessiond_inversions_total"), found.pop("sessiond_misorders_total")) == (1, 1)
    # No holder waits on the forged grants, and forged entries have no version of their own.
    assert found.keys() >= {"no_worker_while_handler_in_queue", "handler_fifo", "one_holder_per_lease", "single_writer"}
    assert sum(found.values()) == service.log_bytes().count(b"the ledger breaks a rule"), "each is counted once"
