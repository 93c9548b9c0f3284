"""The rules of the queue as scenarios on the pure machine: one test for each rule of docs/concepts/lock.md."""

from typing import Any

import pytest

from sessiond.lock import events as ev
from sessiond.lock.machine import decide, restarted
from sessiond.lock.queries import timers
from sessiond.lock.rules import ARRIVALS, Kind, QueueFull, Times, rank_of, score_of
from sessiond.lock.state import Lock

TIMES = Times()


class LockRun:
    """A lock and its ledger. A ticket's name begins with h (handler) or w (worker)."""

    def __init__(self) -> None:
        self.lock = Lock(fence=100)
        self.said: list[tuple[str, dict[str, Any]]] = []

    def do(self, *events: ev.Event) -> "LockRun":
        for event in events:
            step = decide(self.lock, event)
            self.lock = step.lock
            self.said += step.ledger
        return self

    def take(self, *names: str, priority: int = 5) -> "LockRun":
        for name in names:
            kind = Kind.WORKER if name.startswith("w") else Kind.HANDLER
            self.do(ev.Take(name, kind, rank_of(kind, priority), name))
        return self

    def wait(self, *names: str) -> "LockRun":
        return self.do(*(ev.Wait(name, f"{name}'s") for name in names))

    def due(self, name: str, subject: str) -> "LockRun":
        timer = ev.Timer(name, subject)
        assert timer in timers(self.lock, TIMES), f"{name} of {subject} does not run"
        return self.do(ev.Due(timer))

    def lease_due(self, name: str) -> "LockRun":
        assert self.lock.lease is not None
        return self.due(name, str(self.lock.lease.fence))

    def release(self) -> "LockRun":
        assert self.lock.lease is not None
        return self.do(ev.Release(self.lock.lease.fence))

    @property
    def holder(self) -> str | None:
        return self.lock.lease.ticket if self.lock.lease else None

    @property
    def queue(self) -> list[str]:
        return [t.id for t in self.lock.queue]

    def runs(self, name: str) -> set[str]:
        return {t.subject for t in timers(self.lock, TIMES) if t.name == name}


def test_scores_put_priority_before_arrival_and_the_worker_last() -> None:
    play = LockRun().take("w", "h1").take("h0", priority=0)
    assert play.queue == ["h0", "h1", "w"]
    assert score_of(30, 1) > score_of(9, ARRIVALS - 1)
    with pytest.raises(QueueFull):
        score_of(0, ARRIVALS)


def test_rule_2_an_absent_head_is_waited_for_then_passed_over_and_keeps_its_place() -> None:
    play = LockRun().take("h1", "h2")
    assert play.runs("head-wait") == set()
    play.wait("h2")
    assert (play.holder, play.runs("head-wait")) == (None, {"h1"})
    play.due("head-wait", "h1")
    assert (play.holder, play.queue) == ("h2", ["h1"])
    play.take("h3").wait("h3").release()
    assert play.holder == "h3", "the grant does not wait again for a passed-over ticket"
    play.take("h4").wait("h1", "h4").release()
    assert play.holder == "h1", "a ticket that is present again has its old place"


def test_rule_2_all_absent_tickets_ahead_are_waited_for_at_the_same_time() -> None:
    play = LockRun().take("h1", "h2", "h3").wait("h3")
    assert play.runs("head-wait") == {"h1", "h2"}
    play.due("head-wait", "h2")
    assert play.holder is None
    play.due("head-wait", "h1")
    assert play.holder == "h3"


def test_rule_3_a_handler_in_the_queue_bars_the_worker_present_or_not() -> None:
    play = LockRun().take("w", "h").wait("w")
    assert (play.holder, play.runs("head-wait")) == (None, set())
    play.due("absence", "h")
    assert play.holder == "w", "a lapsed ticket bars nobody"


def test_rule_4_a_ticket_preempts_on_arrival_and_a_lapsed_one_on_return() -> None:
    play = LockRun().take("w").wait("w").take("h")
    assert (play.holder, play.queue) == (None, ["h", "w"])
    play.due("absence", "h").wait("w")
    assert play.holder == "w"
    play.wait("h")
    assert play.holder == "h", "a ticket that is waited on again preempts as on arrival"


def test_rule_4_handlers_never_preempt_handlers() -> None:
    assert LockRun().take("h5").wait("h5").take("h0", priority=0).wait("h0").holder == "h5"


def test_rule_5_end_and_grant_are_one_step() -> None:
    play = LockRun().take("h1", "h2").wait("h1", "h2")
    step = decide(play.lock, ev.Release(play.lock.lease.fence))  # type: ignore[union-attr]
    assert [name for name, _ in step.ledger] == ["ended", "ticket-ended", "granted"]


def test_rule_6_absence_does_not_run_while_waited_on_or_while_a_handler_holds() -> None:
    play = LockRun().take("h1", "h2").wait("h1")
    assert (play.holder, play.runs("absence")) == ("h1", set())
    play.release()
    assert play.runs("absence") == {"h2"}
    play.do(ev.Wait("h2", "x"))
    assert play.runs("absence") == set()


def test_rule_6_lapsed_survives_a_restart_and_presence_does_not() -> None:
    play = LockRun().take("h").due("absence", "h").take("h2").wait("h2").take("h3").wait("h3")
    lock = restarted(play.lock)
    assert lock.tickets["h"].lapsed and not lock.tickets["h3"].present


def test_rule_7_a_lost_lease_puts_its_ticket_back_and_the_third_loss_ends_it() -> None:
    play = LockRun().take("h")
    score = play.lock.tickets["h"].score
    for _ in range(2):
        play.wait("h").lease_due("claim")
        assert (play.queue, play.lock.tickets["h"].score, play.lock.tickets["h"].passed) == (["h"], score, True)
    play.wait("h").lease_due("claim")
    assert play.queue == [] and play.said[-1] == ("ticket-ended", {"ticket": "h", "reason": "lost-thrice"})


def test_rule_7_a_preempted_worker_is_not_passed_over_and_its_losses_are_reset() -> None:
    play = LockRun().take("w").wait("w").lease_due("claim").wait("w").take("h")
    ticket = play.lock.tickets["w"]
    assert (ticket.passed, ticket.losses) == (False, 0)


def test_rule_7_the_same_key_is_the_same_ticket_and_another_kind_is_refused() -> None:
    play = LockRun().take("h")
    assert decide(play.lock, ev.Take("x", Kind.HANDLER, 0, "h")).lock == play.lock
    with pytest.raises(ev.KindMismatch):
        decide(play.lock, ev.Take("x", Kind.WORKER, 30, "h"))


def test_rule_8_claim_window_then_lease_ttl_and_max_hold_for_handlers() -> None:
    play = LockRun().take("h").wait("h")
    assert play.runs("claim") and play.runs("hold") and not play.runs("lease")
    play.do(ev.ConfirmGrant(play.lock.fence))
    assert play.runs("lease") and not play.runs("claim")
    play.lease_due("hold")
    assert play.queue == [] and play.said[-1][1]["reason"] == "hold-limit"
    assert not LockRun().take("w").wait("w").runs("hold")


def test_rule_9_the_second_holder_waits_for_the_first_and_inherits_the_place() -> None:
    play = LockRun().take("h").wait("h").do(ev.Wait("h", "second"))
    assert play.holder == "h"
    with pytest.raises(ev.Superseded):
        decide(play.lock, ev.Wait("h", "h's"))
    play.lease_due("claim")
    assert play.lock.lease is not None and play.lock.lease.holder == "second"


def test_a_second_holders_withdrawal_does_not_end_the_firsts_lease() -> None:
    play = LockRun().take("h").wait("h").do(ev.Wait("h", "second"), ev.Withdraw("h", "second"))
    assert play.holder == "h" and not play.lock.tickets["h"].present
    play.do(ev.Withdraw("h"))
    assert play.holder is None and "h" not in play.lock.tickets


def test_no_grant_while_draining_and_a_forced_drain_recovers() -> None:
    play = LockRun().take("w").wait("w").do(ev.AcceptTurn(101, "t")).take("h").wait("h")
    assert play.lock.drain is not None and play.holder is None
    step = decide(play.lock, ev.ForceRelease(101))
    assert step.effects == (ev.RecoverNow(101),)
    with pytest.raises(ev.NotHeld):
        decide(step.lock, ev.ForceRelease(101))
    assert play.do(ev.TurnClosed("t")).holder == "h"


def test_running_background_tasks_keep_the_lock_from_the_next_holder() -> None:
    play = LockRun().take("w").wait("w").do(ev.TasksChanged(True)).take("h").wait("h")
    assert play.lock.drain is not None
    assert play.do(ev.TasksChanged(False)).holder == "h"


def test_a_timer_that_the_state_no_longer_asks_for_does_nothing() -> None:
    play = LockRun().take("h").wait("h")
    late = ev.Due(ev.Timer("claim", str(play.lock.fence - 1)))
    assert decide(play.lock, late).lock == play.lock
