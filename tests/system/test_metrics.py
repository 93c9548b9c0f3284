"""After a flurry on a scaled stack, each service's metrics equal the exact counts of the ledger and the records."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from sessiond.verify import verify
from sessiond_common import VERSION
from support.ledger_checks import Entries, count_events, count_handoffs
from support.scaled_stack import BUSY, QUIET, TIMES, Scrape, Stack
from support.servers import Redis, Sessiond, eventually, scripted_env

COMMENTS = 12


def test_the_metrics_equal_the_ledger_and_the_records(
    redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path
) -> None:
    with ExitStack() as ends:
        stack = Stack(redis_server, sessiond(scripted_env(**TIMES)), tmp_path, ends)
        task = stack.task("count")
        keys = stack.flurry(range(COMMENTS))
        ping = stack.webhook.post("ping", {"zen": "Keep it logically awesome."})
        assert ping.status == 200
        found = stack.wait_until_done(keys, task)
        eventually(lambda: all_leases_ended(stack), 20, "every granted lease has ended")
        ledgers = read_ledgers(stack)
        entries = sum(ledgers, Entries())
        eventually(lambda: stack.scrape("sessiond").total("sessiond_ledger_checked_total") == len(entries), 10)
        check_lock(stack.scrape("sessiond"), ledgers)
        check_turns(stack.scrape("sessiond"), entries)
        check_preemptions(stack.scrape("sessiond"), entries)
        for _ in range(4):  # each scrape may reach another of the webhook's processes
            check_webhook(stack.scrape("webhook"))
        handlers, poster, worker = stack.scrape("handler"), stack.scrape("poster"), stack.scrape("worker")
        closed = count_events(entries, "turn-closed", "kind", "outcome")
        assert handlers.by("webhook_answers_total", "outcome") == {("answered",): COMMENTS}
        assert handlers.by("webhook_turns_total", "outcome") == {
            (o,): n for (k, o), n in closed.items() if k == "handler"
        }
        assert worker.by("worker_turns_total", "outcome") == {(o,): n for (k, o), n in closed.items() if k == "worker"}
        assert poster.total("webhook_posts_total", outcome="answer") == COMMENTS
        assert poster.total("webhook_posted_seconds_count") == COMMENTS == len(found)
        assert all(stack.scrape(name).by(f"{prefix}_build_info", "version") for name, prefix in BUILDS)
        check_labels(stack.scrape("sessiond", "webhook", "handler", "poster", "worker"))
        # Both handlers ran jobs, each in its own work-horse.
        assert [Scrape(url).total("webhook_answers_total") > 0 for url in stack.targets["handler"]] == [True, True]


def check_labels(scrape: Scrape) -> None:
    """Check that only gauges have a session label. They end with the session, but counters would stay forever."""
    named = {name for name, labels in scrape.values if "session" in dict(labels)}
    assert {scrape.kinds[name] for name in named} == {"gauge"}
    waits = {float(dict(labels)["le"]) for name, labels in scrape.values if name == "sessiond_lock_wait_seconds_bucket"}
    assert min(waits) == 0.001 and max(waits - {float("inf")}) == 1800


BUILDS = [("sessiond", "sessiond"), ("webhook", "webhook"), ("handler", "webhook"), ("worker", "worker")]


def read_ledgers(stack: Stack) -> list[Entries]:
    return [stack.service.ledger(BUSY), stack.service.ledger(QUIET)]


def all_leases_ended(stack: Stack) -> bool:
    entries = sum(read_ledgers(stack), Entries())
    return count_events(entries, "granted") == count_events(entries, "ended")


def check_lock(scrape: Scrape, ledgers: list[Entries]) -> None:
    entries, handoffs = sum(ledgers, Entries()), count_handoffs(ledgers)
    assert scrape.by("sessiond_handoffs_total", "from_kind", "to_kind") == handoffs
    assert {("nobody", "worker"), ("worker", "handler"), ("handler", "handler"), ("handler", "worker")} <= set(handoffs)
    assert scrape.by("sessiond_lock_wait_seconds_count", "kind") == count_events(entries, "granted", "kind")
    assert scrape.by("sessiond_leases_ended_total", "kind", "reason") == count_events(
        entries, "ended", "kind", "reason"
    )
    assert scrape.by("sessiond_hold_seconds_count", "kind") == count_events(entries, "ended", "kind")
    assert scrape.by("sessiond_drains_total", "outcome") == count_events(entries, "drained", "how")
    assert scrape.by("sessiond_recoveries_total", "reason") == count_events(entries, "recovery", "reason")
    assert scrape.total("sessiond_passed_over_total") == sum(e["event"] == "passed-over" for e in entries)
    assert scrape.total("sessiond_lapsed_total") == sum(e["event"] == "lapsed" for e in entries)
    reports = [verify(ledger) for ledger in ledgers]
    assert scrape.total("sessiond_inversions_total") == sum(r.inversions for r in reports) == 0
    assert scrape.total("sessiond_misorders_total") == sum(r.misorders for r in reports) == 0
    assert scrape.total("sessiond_violations_total") == sum(len(r.violations) for r in reports) == 0
    assert set(scrape.by("sessiond_queue_length", "session", "kind")) == set()
    assert {dict(labels)["session"] for name, labels in scrape.values if name == "sessiond_holder"} == {BUSY, QUIET}
    assert scrape.total("sessiond_redis_step_seconds_count") >= len({(e["version"], e["epoch"]) for e in ledgers[0]})


def check_turns(scrape: Scrape, entries: Entries) -> None:
    closed = count_events(entries, "turn-closed", "kind", "outcome")
    assert scrape.by("sessiond_turns_total", "kind", "outcome") == closed
    # The scripted agent reports one token for each result, and the cost that a comment names.
    results = sum(n for (_, outcome), n in closed.items() if outcome == "completed")
    assert scrape.total("sessiond_tokens_total", type="output") >= results
    answers = sum(n for (kind, outcome), n in closed.items() if (kind, outcome) == ("handler", "completed"))
    assert scrape.total("sessiond_cost_usd_total") == pytest.approx(answers * 0.25, abs=0.1)
    assert scrape.total("sessiond_agents") == 2
    assert all(n > 2**20 for n in scrape.by("sessiond_agent_memory_bytes", "session").values())


def check_preemptions(scrape: Scrape, entries: Entries) -> None:
    """Check that the phases equal those of the ledger, which has a precision of 0.01 ms."""
    fences = [e["fence"] for e in entries if e["event"] == "ended" and e["reason"] == "preempted"]
    cut = [e for e in entries if e["event"] == "turn-closed" and e["fence"] in fences and "ticket_to_interrupt_ms" in e]
    assert scrape.total("sessiond_preemptions_total") == len(fences) >= 1
    phases = {
        "interrupt": [e["ticket_to_interrupt_ms"] for e in cut],
        "ack": [e["ticket_to_interrupt_ms"] + e["interrupt_to_ack_ms"] for e in cut if "interrupt_to_ack_ms" in e],
        "closed": [e["ticket_to_interrupt_ms"] + e["interrupt_to_closed_ms"] for e in cut],
    }
    for phase, times in phases.items():
        assert scrape.total("sessiond_preemption_seconds_count", phase=phase) == len(times) >= 1
        assert scrape.total("sessiond_preemption_seconds_sum", phase=phase) == pytest.approx(sum(times) / 1000)
    assert scrape.total("sessiond_preemption_seconds_count", phase="grant") == len(fences)


def check_webhook(scrape: Scrape) -> None:
    assert scrape.by("webhook_deliveries_total", "event", "outcome") == {
        ("issue_comment", "accepted"): COMMENTS, ("ping", "ping"): 1,
    }  # fmt: skip
    assert scrape.by("webhook_demands", "state") == {("posted",): COMMENTS}
    assert scrape.total("webhook_oldest_demand_seconds") == scrape.total("webhook_pending_posts") == 0
    assert scrape.by("worker_tasks", "state") == {("done",): 1}
    assert scrape.by("webhook_build_info", "version") == {(VERSION,): 1}
