"""Handlers are served first and in order. Real processes make flurries, and only the ledger is checked."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from sessiond.client import Client
from sessiond.verify import verify
from support.servers import Caller, Sessiond, eventually, scripted_env
from support.size import FULL

SESSION = "octo/hello"
FLURRIES = 70 if FULL else 50


def recount(entries: list[dict[str, Any]]) -> tuple[int, int]:
    """Return (inversions, misorders). The count is simple because every handler keeps its place until its grant."""
    waiting: dict[str, tuple[int, str]] = {}
    inversions = misorders = 0
    for e in entries:
        if e["event"] == "taken":
            waiting[e["ticket"]] = (e["score"], e["kind"])
        elif e["event"] == "back":
            waiting[e["ticket"]] = (e["score"], "worker")
        elif e["event"] == "granted":
            waiting.pop(e["ticket"])
            ahead = [kind for score, kind in waiting.values() if score < e["score"]]
            misorders += bool(ahead)
            inversions += e["kind"] == "worker" and any(kind == "handler" for _, kind in waiting.values())
    return inversions, misorders


def everything(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while entries := client.ledger(SESSION, found[-1]["id"] if found else None):
        found += entries
    return found


@pytest.mark.long
def test_flurries_are_served_in_the_exact_order_of_their_scores(
    sessiond: Callable[..., Sessiond], caller: Callable[..., Caller], figures: Callable[[str], None]
) -> None:
    service = sessiond(scripted_env())
    client, dice = service.client(), random.Random(7)
    worker, handlers = caller(service, "worker"), [caller(service, "handler") for _ in range(6)]
    worker.do(kind="worker", key="loop", prompt="#tokens 2000\n#pace 5ms", timeout=60)
    worker.wait_for("granted")
    for flurry in range(FLURRIES):
        size = dice.randint(2, 6)
        for n in range(size):
            key, priority = f"f{flurry}-{n}", dice.choice((3, 5, 5, 5, 7))
            client.take(SESSION, kind="handler", key=key, priority=priority)
            handlers[n].do(key=key, priority=priority, delay=dice.uniform(0, 0.06), hold=dice.choice((0, 0.004)))
        for n in range(size):
            handlers[n].wait_for("done")
        worker.wait_for("done")  # The worker was preempted or is done. It comes again in both cases.
        worker.do(kind="worker", key="loop", prompt="#tokens 2000\n#pace 5ms", timeout=60)
        worker.wait_for("granted")
    entries = everything(client)
    report = verify(entries)
    grants = sum(e["event"] == "granted" and e["kind"] == "handler" for e in entries)
    taken = sum(e["event"] == "taken" and e["kind"] == "handler" for e in entries)
    figures(f"{FLURRIES} flurries, {grants} handler grants, {report.preemptions} preemptions, {report.entries} entries")
    assert grants == taken > 2 * FLURRIES
    assert report.preemptions >= FLURRIES - 1
    assert not [e for e in entries if e["event"] in ("passed-over", "lapsed", "recovery", "refused")]
    assert (report.inversions, report.misorders, report.violations) == (0, 0, [])
    assert recount(entries) == (0, 0)


def test_a_handler_that_dies_in_the_queue_delays_the_next_by_head_wait_once(
    sessiond: Callable[..., Sessiond], caller: Callable[..., Caller]
) -> None:
    service = sessiond(scripted_env(head_wait=3))
    client = service.client()
    first, dead, second, third = (caller(service) for _ in range(4))
    first.do(key="first", hold=30)
    first.wait_for("granted")
    for who, key in ((dead, "dead"), (second, "second"), (third, "third")):
        who.do(key=key)
        eventually(lambda key=key: any(t["key"] == key and t["present"] for t in client.view(SESSION)["queue"]))
    dead.kill9()
    eventually(lambda: not client.view(SESSION)["queue"][0]["present"], what="the hang-up is seen")
    client.force_release(SESSION, client.view(SESSION)["holder"]["fence"], "the test's")
    for who in (second, third):
        who.wait_for("done")
    entries = everything(client)
    ms = {e["ticket"]: int(e["id"].partition("-")[0]) for e in entries if e["event"] == "granted"}
    _, second_at, third_at = sorted(ms.values())
    released = next(int(e["id"].partition("-")[0]) for e in entries if e.get("reason") == "forced")
    assert sum(e["event"] == "passed-over" for e in entries) == 1
    assert 2900 <= second_at - released < 5800
    assert third_at - second_at < 2900
    assert client.view(SESSION)["queue"][0]["key"] == "dead"
    assert verify(entries).violations == []
