"""The events of the crash matrix. Each is a generator that yields three times:

1. an older copy of Redis may be taken now;
2. the step of the event must be held from now on;
3. the call that makes the step has been sent.

After the crash the generator continues, and repeats its calls.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from sessiond.client import LeaseLost, ProblemError, Superseded, TicketEnded, TurnResult
from support.session.crash_scenes import Scene

Run = Callable[[Scene], Iterator[None]]
LONG: Final = "#tokens 100000\n#pace 300ms"


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the matrix.

    `step` is the ledger event of the held step. `ends` are the tickets that the step may end.
    """

    name: str
    step: str
    run: Run
    ends: frozenset[str] = frozenset()


def take(s: Scene) -> Iterator[None]:
    s.lease("z")
    yield
    s.take("b")
    yield
    call = s.start_call(s.take, "a")
    yield
    ticket = s.retry(s.take, "a")
    assert not call.answered or call.answer == ticket
    assert sorted(t["key"] for t in s.view()["queue"]) == ["a", "b"]


def take_that_preempts(s: Scene) -> Iterator[None]:
    s.lease("w", "worker")
    yield
    turn = s.start_call(s.turn, "w", f"preempted {s.session}\n{LONG}")
    s.wait_for_turn()
    yield
    s.start_call(s.take, "a")
    yield
    s.retry(s.take, "a")
    s.wait_until(lambda: s.lost("w") == "preempted" and not s.view()["draining"])
    turn.end()
    assert turn.outcome in ("cancelled", "lost")
    assert s.sent(f"preempted {s.session}\n{LONG}") == 1


def wait_granted(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    s.take("b")
    yield
    call = s.start_call(s.wait, "a", 20)
    yield
    found = s.retry(s.wait, "a", 20)
    assert found["state"] == "granted"
    assert not call.answered or call.answer["lease"]["secret"] == found["lease"]["secret"]


def wait_that_supersedes(s: Scene) -> Iterator[None]:
    s.lease("z")
    s.take("a")
    yield
    old = s.start_call(s.wait, "a", 30, "old")
    s.wait_until(lambda: s.ticket("a")["present"])
    yield
    s.start_call(s.wait, "a", 0, "new")
    yield
    old.end()
    if isinstance(old.error, Superseded):  # permanently, even if the new holder never waits again
        with pytest.raises(Superseded):
            s.retry(s.wait, "a", 0, "old")
    assert s.retry(s.wait, "a", 0, "new")["state"] == "waiting"
    with pytest.raises(Superseded):
        s.retry(s.wait, "a", 0, "old")


def waits_end(s: Scene) -> Iterator[None]:
    s.lease("z")
    s.take("a")
    yield
    s.take("b")
    yield
    call = s.start_call(s.wait, "a", 0)
    yield
    assert not call.answered or call.answer["state"] == "waiting"
    assert s.retry(s.wait, "a", 0)["state"] == "waiting"


def hang_up(s: Scene) -> Iterator[None]:
    s.lease("z")
    s.take("a")
    yield
    connection = s.open_wait("a")
    yield
    connection.close()
    yield
    s.wait_until(lambda: not s.ticket("a")["present"])


def claim(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    s.wait("a", 20)
    yield
    s.start_call(s.renew, "a")
    yield
    s.retry(s.renew, "a")
    assert s.view()["holder"]["claimed"]


def renew(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    s.lease("a")
    yield
    s.start_call(s.renew, "a")
    yield
    s.retry(s.renew, "a")


def turn(s: Scene, leased: bool = False) -> Iterator[None]:
    """Run a turn. Several events hold it, each at another of its steps."""
    prompt = f"once {s.session}"
    if not leased:
        s.lease("a")
    yield
    s.take("b")
    yield
    call = s.start_call(s.turn, "a", prompt, "key")
    yield
    call.end()
    before = s.sent(prompt)
    known = _turn(s)
    assert known != "unknown" or before == 0, "the agent received a prompt whose turn was not accepted"
    result: TurnResult = s.retry(s.turn, "a", prompt, "key")
    assert result.completed
    if call.outcome == "completed" or known == "completed":
        assert (result.text, s.sent(prompt)) == ("scripted answer", before)


def turn_again(s: Scene) -> Iterator[None]:
    """Run the second turn of a lease. One step accepts it and writes its prompt."""
    s.lease("a")
    assert s.turn("a", f"before {s.session}").completed
    yield from turn(s, leased=True)


def _turn(s: Scene) -> str:
    try:
        return str(s.retry(s.client.turn_by_key, s.session, "key").get("outcome"))
    except ProblemError as error:
        assert error.status == 404
        return "unknown"


def release(s: Scene) -> Iterator[None]:
    s.lease("a")
    yield
    s.take("b")
    s.wait("b")
    yield
    s.start_call(s.release, "a")
    yield
    s.retry(s.release, "a")
    s.retry(s.release, "a")
    assert s.ended("a") == "released"
    assert s.retry(s.wait, "b", 20)["state"] == "granted"


def release_in_turn(s: Scene) -> Iterator[None]:
    """Release during a turn. One event holds the start of the drain, another its end."""
    s.lease("a")
    yield
    s.take("b")
    s.wait("b")
    turn = s.start_call(s.turn, "a", f"released {s.session}\n{LONG}")
    s.wait_for_turn()
    yield
    s.start_call(s.release, "a")
    yield
    s.retry(s.release, "a")
    turn.end()
    assert turn.outcome in ("cancelled", "lost")
    assert s.ended("a") == "released"
    assert s.retry(s.wait, "b", 20)["state"] == "granted"


def withdraw(s: Scene) -> Iterator[None]:
    s.lease("z")
    s.take("a")
    yield
    s.wait("a")
    yield
    s.start_call(s.withdraw, "a")
    yield
    _ended(s, s.withdraw, "withdrawn")


def withdraw_leased(s: Scene) -> Iterator[None]:
    s.lease("a")
    yield
    s.take("b")
    s.wait("b")
    yield
    s.start_call(s.withdraw, "a")
    yield
    _ended(s, s.withdraw, "withdrawn")
    assert s.lost("a") == "withdrawn"
    assert s.retry(s.wait, "b", 20)["state"] == "granted"


def _ended(s: Scene, work: Callable[[str], None], reason: str) -> None:
    try:
        s.retry(work, "a")
    except TicketEnded as over:
        assert over.reason == reason
    assert s.ended("a") == reason


def give_up(s: Scene) -> Iterator[None]:
    """Release with the secret of a lost lease."""
    s.lease("a", "worker")
    s.take("b")
    assert s.lost("a") == "preempted"
    yield
    s.wait("b", 20)
    yield
    s.start_call(s.release, "a")
    yield
    with pytest.raises(LeaseLost, match="preempted"):
        s.retry(s.release, "a")
    assert s.ended("a") == "released"


def force_release(s: Scene) -> Iterator[None]:
    s.lease("a")
    yield
    s.take("b")
    s.wait("b")
    fence = max(s.shown)
    yield
    call = s.start_call(s.force, fence)
    yield
    try:
        s.retry(s.force, fence)
    except ProblemError as error:
        assert error.type == "not-held"
    else:
        assert not call.answered
    assert (s.ended("a"), s.lost("a")) == ("forced", "forced")
    assert s.retry(s.wait, "b", 20)["state"] == "granted"


def conversation(s: Scene) -> Iterator[None]:
    s.lease("a")
    assert s.turn("a", f"first {s.session}").completed
    yield
    s.take("b")
    yield
    call = s.start_call(s.client.new_conversation, s.session)
    yield
    now = s.retry(s.view)["agent"]["conversation"]
    assert not call.answered or call.answer["id"] == now["id"]
    fresh = s.retry(s.client.new_conversation, s.session)
    assert fresh["generation"] > 1
    assert "first" not in s.retry(s.turn, "a", f"second {s.session}\n#history").text


def agent_restart(s: Scene) -> Iterator[None]:
    s.lease("a")
    assert s.turn("a", f"first {s.session}").completed
    yield
    s.take("b")
    yield
    s.start_call(s.client.restart_agent, s.session)
    yield
    s.retry(s.client.restart_agent, s.session)
    assert "first" in s.retry(s.turn, "a", f"second {s.session}\n#history").text


def agent_reaped(s: Scene) -> Iterator[None]:
    prompt = f"reaped {s.session}\n{LONG}"
    s.lease("a")
    yield
    s.take("b")
    call = s.start_call(s.turn, "a", prompt)
    s.wait_for_turn()
    yield
    s.client.restart_agent(s.session)
    yield
    call.end()
    assert (call.outcome, s.sent(prompt)) == ("lost", 1)
    assert s.lost("a") == ""


def cancel(s: Scene) -> Iterator[None]:
    """The holder cancels its turn and keeps its lease."""
    prompt = f"cancelled {s.session}\n{LONG}"
    s.lease("a")
    yield
    s.take("b")
    call = s.start_call(s.turn, "a", prompt)
    s.wait_for_turn()
    turn = s.view()["turn"]
    yield
    s.start_call(s.cancel, "a", turn)
    yield
    with contextlib.suppress(ProblemError):  # a closed turn cannot be cancelled
        s.retry(s.cancel, "a", turn)
    call.end()
    assert call.outcome in ("cancelled", "lost") and s.sent(prompt) == 1
    assert s.lost("a") == ""


def tasks(s: Scene) -> Iterator[None]:
    """Start a background task. The end of its lease or of its owner stops it."""
    s.lease("a")
    yield
    s.take("b")
    yield
    call = s.start_call(s.turn, "a", f"tasks {s.session}\n#bg 600s\n#say begun")
    yield
    call.end()
    assert call.outcome in ("completed", "lost")
    s.retry(s.release, "a")
    assert s.retry(s.wait, "b", 20)["state"] == "granted"
    assert s.retry(s.view)["agent"]["tasks"] == []


def force_in_draining(s: Scene) -> Iterator[None]:
    """The agent ignores the interrupt, and the operator ends it during the drain."""
    s.lease("a")
    yield
    s.take("b")
    s.wait("b")
    fence = max(s.shown)
    turn = s.start_call(s.turn, "a", f"drains {s.session}\n#fault ignore-interrupt\n{LONG}")
    s.wait_for_turn()
    s.force(fence)
    s.wait_until(lambda: s.view()["draining"])
    yield
    s.start_call(s.force, fence)
    yield
    with contextlib.suppress(ProblemError):
        s.retry(s.force, fence)
    turn.end()
    assert turn.outcome == "lost"
    assert s.retry(s.wait, "b", 20)["state"] == "granted"


# ---- deadlines: with short times, every call comes after the second yield


def expiry(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    s.take("b")
    yield
    s.wait("a", 20)
    s.renew("a")
    yield


def unclaimed(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    s.take("b")
    yield
    s.wait("a", 20)
    yield


def passed_over(s: Scene) -> Iterator[None]:
    s.take("z")
    s.withdraw("z")
    yield
    yield
    s.take("a")
    s.take("b")
    s.start_call(s.wait, "b", 20)
    yield


def lapsed(s: Scene) -> Iterator[None]:
    s.take("w", "worker")
    yield
    yield
    s.take("a")
    yield


def grace_over(s: Scene) -> Iterator[None]:
    s.take("z")
    yield
    s.take("a")
    yield
    s.lease("z")
    s.wait("a")
    yield


def recovery(s: Scene) -> Iterator[None]:
    """The lease expires, and the agent ignores the interrupt."""
    s.take("a")
    yield
    s.take("b")
    yield
    s.wait("a", 20)
    call = s.start_call(s.turn, "a", f"deaf {s.session}\n{LONG}")
    yield
    call.end()
    assert call.outcome == "lost"
    assert s.lost("a") == "expired"


# ---- tickets that end by a deadline or by losses


def too_old(s: Scene) -> Iterator[None]:
    s.take("z")
    s.withdraw("z")
    yield
    yield
    s.take("a")
    yield
    assert s.ended("a") in ("", "too-old")


def hold_limit(s: Scene) -> Iterator[None]:
    s.take("a")
    yield
    yield
    s.wait("a", 20)
    s.renew("a")
    yield
    assert s.ended("a") in ("", "hold-limit") and s.lost("a") in ("", "hold-limit")


def lost_thrice(s: Scene) -> Iterator[None]:
    """The holder does not claim three grants in a row."""
    s.take("a")
    yield
    for _ in range(2):
        s.wait("a", 20)
        s.wait_until(lambda: s.view()["holder"] is None)
    yield
    s.wait("a", 20)
    yield
    assert s.ended("a") in ("", "lost-thrice")


A: Final = frozenset({"a"})
EVENTS: Final = (
    Event("take", "taken", take),
    Event("take that preempts", "interrupt", take_that_preempts),
    Event("wait, granted", "granted", wait_granted),
    Event("wait that supersedes", "superseded", wait_that_supersedes),
    Event("wait's end", "quiet", waits_end),
    Event("hang-up", "absent", hang_up),
    Event("claim", "claimed", claim),
    Event("renew", "quiet", renew),
    Event("turn accepted", "turn-accepted", turn),
    Event("agent started", "agent-started", turn),
    Event("prompt written", "conversation", turn),
    Event("second turn accepted and written", "turn-accepted", turn_again),
    Event("turn started", "turn-started", turn),
    Event("turn closed", "turn-closed", turn),
    Event("release, handoff", "ended", release, A),
    Event("release in a turn", "draining", release_in_turn, A),
    Event("drained, handoff", "drained", release_in_turn, A),
    Event("withdraw", "ticket-ended", withdraw, A),
    Event("withdraw, leased", "ended", withdraw_leased, A),
    Event("give up", "ticket-ended", give_up, A),
    Event("force-release", "force-release", force_release, A),
    Event("fresh conversation", "conversation", conversation),
    Event("agent restart", "agent-restart", agent_restart),
    Event("agent reaped", "agent-reaped", agent_reaped),
    Event("cancel", "interrupt", cancel),
    Event("background task", "tasks", tasks, A),
    Event("force-release in draining", "force-release", force_in_draining, A),
)
DEADLINES: Final = (
    Event("expiry", "ended", expiry),
    Event("unclaimed", "ended", unclaimed),
    Event("passed over", "passed-over", passed_over),
    Event("lapsed", "lapsed", lapsed),
    Event("grace over", "absent", grace_over),
    Event("recovery", "recovery", recovery),
)
ENDINGS: Final = (
    Event("too old", "ticket-ended", too_old, A),
    Event("hold limit", "ticket-ended", hold_limit, A),
    Event("lost thrice", "ticket-ended", lost_thrice, A),
)
