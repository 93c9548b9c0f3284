"""The end of a turn (cancel, failure, close) and of the process (stop, recovery, exit). Pure.

A prompt that was written is never sent again. A prompt that was not written may still be sent.
"""

from typing import Final

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.outcome import outcome_of, says_no_login
from sessiond.agent.state import AgentTurn, Phase, TurnOutcome
from sessiond.agent.transitions import ALIVE, Draft, Move
from sessiond.lock.rules import Kind

FAILS_ALLOWED: Final = 3
FATAL: Final = frozenset({"no-login", "missing-capability"})
FAILED_START: Final = frozenset({"start-deadline", "not-taken", "initialize-refused"})
RECOVERIES: Final = FAILED_START | {"drain-deadline", "strays", "rules-refused", "garbage", "stdin-full", "no-answer"}
"""Reasons to stop a process and resume its conversation in a new one: `recovery` in the ledger."""


def backoff(fails: int) -> float:
    """Return for how many seconds a broken agent waits after this many failures in a row."""
    return float(min(300, 2 ** max(1, fails)))


# ---- the end of a turn -----------------------------------------------------------------------


def cancel(d: Draft, e: st.Cancel) -> None:
    """Cancel the named turn. Drop a cancel for any other turn. A prompt that is not written yet stays unwritten."""
    turn = d.agent.turn
    if turn is None or turn.id != e.turn or turn.cancel is not None:
        return
    d.turn(cancel=e.why)
    if not turn.written:
        fail(d, e.why, TurnOutcome.FAILED if e.why == "timeout" else TurnOutcome.CANCELLED)
    elif d.agent.phase is Phase.IN_TURN:
        d.note("interrupt", turn=turn.id, why=e.why)
        d.ask("interrupt", wire.interrupt)


def fail(d: Draft, reason: str, outcome: TurnOutcome = TurnOutcome.FAILED) -> None:
    """End the open turn without a result."""
    turn = d.agent.turn
    if turn is not None:
        d.set(turn=None)
        d.out.append(st.TurnOver(turn.id, outcome, reason=reason))


def close(d: Draft, turn: AgentTurn) -> None:
    """Close the open turn and output its outcome."""
    _conclude(d, turn)
    if d.agent.phase is Phase.IN_TURN:
        d.go(Move.CLOSED)
    if turn.result is not None and says_no_login(turn.result):
        stop(d, st.Stop("no-login"))


def _conclude(d: Draft, turn: AgentTurn) -> None:
    outcome, reason = outcome_of(turn)
    result = turn.result
    d.set(turn=None, fenced=False, odd=0)
    if result is not None and not says_no_login(result):  # the agent works, whatever this turn's outcome
        d.set(fails=0)
    text = result.text if result is not None and outcome is TurnOutcome.COMPLETED else ""
    usage = result.usage if result is not None else {}
    d.out.append(st.TurnOver(turn.id, outcome, text, reason, usage, turn.cost))


# ---- the end of the process ------------------------------------------------------------------


def stop(d: Draft, e: st.Stop) -> None:
    """Stop the process if it runs. An operator's restart also ends `broken`."""
    if d.agent.phase in ALIVE:
        d.go(Move.STOP, e.why)
        d.note("agent-stopping", why=e.why)
        d.out.append(st.Kill(e.why))
    elif d.agent.phase is Phase.STOPPING and e.why == "shutdown":
        d.set(why=e.why)  # no other process may start, even if a turn waits for one
    elif d.agent.phase is Phase.BROKEN and e.why == "restart":
        d.set(fails=0)
        d.go(Move.RESTED)


def recover(d: Draft, reason: str) -> None:
    """Stop a process that is not used any further. The next turn resumes the conversation."""
    if d.agent.phase in ALIVE:
        d.note("recovery", reason=reason)
        stop(d, st.Stop(reason))


def exited(d: Draft, e: st.Exited) -> None:
    """Reset the process's state after its tree is gone. Close a turn whose result was read."""
    why = d.agent.why if d.agent.phase is Phase.STOPPING else e.why
    d.note("agent-reaped", exit=e.status, why=why or "died", stderr=e.stderr[-300:])
    reason = why or f"agent exited with {e.status}: {_last_line(e.stderr)}".rstrip(": ")
    if d.agent.turn is not None and d.agent.turn.result is not None:
        _conclude(d, d.agent.turn)
    turn = d.agent.turn
    died = e.tried and _failed(why, turn)
    fails = d.agent.fails + died
    broken = why in FATAL or (died and fails >= FAILS_ALLOWED)
    d.set(
        said="idle", requests={}, tasks=frozenset(), stopped_tasks=frozenset(), strays=False, questions={},
        foreign=False, dirty=False, fenced=False, model=None, rules=None, cost=0.0, fails=fails, busy=False, odd=0,
    )  # fmt: skip
    d.go(Move.GONE_BAD if broken else Move.GONE, reason if broken else "")
    if broken:
        d.note("agent-broken", why=reason, rest_seconds=backoff(fails))
    keep = turn is not None and not turn.written and not broken and why != "shutdown"
    if keep:
        d.turn(inherited=False)
        d.out.append(st.Busy(False))
        return
    if turn is not None:
        _reap(d, turn, reason)
    d.out.append(st.Gone())


def _failed(why: str, turn: AgentTurn | None) -> bool:
    """Return whether this exit counts as a failure.

    A process that ends before the waiting prompt is written counts, so that it is not restarted for ever.
    """
    waits = turn is not None and not turn.written
    return not why or why in FAILED_START or why in FATAL or (waits and why in RECOVERIES)


def _reap(d: Draft, turn: AgentTurn, reason: str) -> None:
    if turn.written and turn.cancel == "preempted" and turn.kind is Kind.WORKER:
        fail(d, reason, TurnOutcome.CANCELLED)
    elif turn.written and reason not in FATAL:
        fail(d, reason, TurnOutcome.LOST)
    else:
        fail(d, reason)


def _last_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1][:200] if lines else ""
