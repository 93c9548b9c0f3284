"""Handlers of the agent's messages. Pure.

A result belongs to the open turn only if it names the turn's uuid. The messages of a turn that no holder
started go to the ledger only.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.permissions import refusal
from sessiond.agent.termination import fail, recover, stop
from sessiond.agent.transitions import ALIVE, Draft, Move
from sessiond.lock.rules import Kind

NEEDED: Final = frozenset({"interrupt_cancel_queued_v1", "msg_lifecycle_v1"})
"""The capabilities that a binary must have."""
ODD_ALLOWED: Final = 1000
"""How many unexpected lines the agent may write between the ends of two turns. Each causes a ledger entry."""


def read(d: Draft, e: st.Got) -> None:
    """Handle one line. Ignore the lines of a process that was asked to end."""
    if d.agent.phase in ALIVE:
        _LINES.get(type(e.message), _other)(d, e.message)


def _forward(d: Draft) -> None:
    turn = d.agent.turn
    if turn is not None and turn.taken and turn.result is None:
        d.out.append(st.Forward())


def _other(d: Draft, _: Any) -> None:
    _forward(d)


def _odd(d: Draft, event: str, **data: Any) -> None:
    """Record an unexpected line in the ledger. Recover the process when there are too many of them."""
    d.note(event, **data)
    d.set(odd=d.agent.odd + 1)
    if d.agent.odd > ODD_ALLOWED:
        d.note("fault", what="garbage", detail=f"more than {ODD_ALLOWED} unexpected lines")
        recover(d, "garbage")


def _state(d: Draft, m: wire.StateChanged) -> None:
    d.set(said=m.state)
    if m.state == "idle":
        d.set(foreign=False)
        return
    d.set(fenced=False)
    turn = d.agent.turn
    if (turn is None or not turn.written) and not d.agent.foreign:
        # No prompt is outstanding: claude started this turn by itself. Interrupt it, then send a fence request.
        d.set(foreign=True, dirty=True)
        d.ask("interrupt", wire.interrupt)
        _odd(d, "foreign", origin="unasked", state=m.state[:200])


def _lifecycle(d: Draft, m: wire.Lifecycle) -> None:
    turn = d.agent.turn
    if turn is None or turn.uuid != m.uuid:
        return
    d.turn(lifecycle=m.state, taken=turn.taken or m.state == "started")
    if m.state == "started" and d.agent.foreign:
        _started(d)


def _started(d: Draft) -> None:
    """Mark the open turn as started.

    Usually its own init says so. If claude folds the prompt into a turn of its own, there is no second init.
    """
    turn = d.agent.turn
    if turn is not None and not turn.started:
        d.turn(started=True)
        d.out.append(st.TurnStarted(turn.id))


def _init(d: Draft, m: wire.Init) -> None:
    missing = NEEDED - m.capabilities
    if missing:
        d.note("fault", what="missing-capability", missing=sorted(missing), version=m.version)
        stop(d, st.Stop("missing-capability"))
        return
    turn = d.agent.turn
    if turn is None or not turn.taken:
        d.set(dirty=True, foreign=True)
        return
    if m.session_id != d.agent.conversation:
        d.note("fault", what="session-id-changed", conversation=m.session_id)
        d.set(conversation=m.session_id, generation=d.agent.generation + 1)
    _started(d)
    _forward(d)


def _result(d: Draft, m: wire.Result) -> None:
    turn = d.agent.turn
    # Only the result of an early error does not name its turn.
    unnamed = m.is_error and not m.uuids and m.origin is None and turn is not None and turn.taken
    if turn is None or not (turn.uuid in m.uuids or unnamed):
        _spent(d, m)  # belongs to no holder
        d.set(dirty=True)
        _odd(d, "foreign", origin=m.origin, state="result", text_chars=len(m.text), is_error=m.is_error)
    elif turn.result is not None:
        _spent(d, m)
        _odd(d, "fault", what="second-result", turn=turn.id)
    else:
        if turn.uuid in m.uuids:
            _started(d)
        _forward(d)
        d.turn(result=m, taken=True, cost=_spent(d, m))


def _spent(d: Draft, m: wire.Result) -> float | None:
    """Return what this turn cost in US dollars: the growth of the process's running total."""
    if m.cost_usd is None:
        return None
    before = d.agent.cost
    d.set(cost=max(before, m.cost_usd))
    return d.agent.cost - before


def _response(d: Draft, m: wire.Response) -> None:
    what = d.agent.requests.get(m.request_id)
    if what is None:
        _odd(d, "fault", what="unknown-response")
        return
    d.set(requests={k: v for k, v in d.agent.requests.items() if k != m.request_id})
    name, _, value = what.partition(":")
    if name in _RESPONSES:
        _RESPONSES[name](d, m, value)


def _initialized(d: Draft, m: wire.Response, _: str) -> None:
    if m.ok:
        d.go(Move.READY)
    else:
        recover(d, "initialize-refused")


def _fence_answered(d: Draft, m: wire.Response, _: str) -> None:
    # The fence request counts only if nothing, such as a cancel, was written after it.
    d.set(fenced=d.agent.said == "idle" and m.request_id == d.last_request)


def _interrupt_answered(d: Draft, _: wire.Response, __: str) -> None:
    d.out.append(st.Acked())


def _rules_answered(d: Draft, m: wire.Response, kind: str) -> None:
    if m.ok:
        d.set(rules=Kind(kind))
        return
    # No turn may run under the last holder's rules, so the process is not used any further.
    _fail_asking_turn(d, m, "rules-refused")
    recover(d, "rules-refused")


def _model_answered(d: Draft, m: wire.Response, model: str) -> None:
    if m.ok:
        d.set(model=model)
    else:
        _fail_asking_turn(d, m, "model-refused")


def _fail_asking_turn(d: Draft, m: wire.Response, reason: str) -> None:
    """Fail the open turn if it sent this request. The request of a cancelled turn does not fail the next one."""
    if d.agent.turn is not None and d.agent.turn.asked == m.request_id:
        fail(d, f"{reason}: {m.error}")


_RESPONSES: Final[Mapping[str, Callable[[Draft, wire.Response, str], None]]] = {
    "initialize": _initialized,
    "fence": _fence_answered,
    "interrupt": _interrupt_answered,
    "rules": _rules_answered,
    "model": _model_answered,
}
"""Handlers of responses by the name of our request. The third argument is what follows the colon in that name."""


def _question(d: Draft, m: wire.Question) -> None:
    d.set(questions={**d.agent.questions, m.request_id: m})
    d.out.append(st.Asked(m.request_id))


def _request(d: Draft, m: wire.Request) -> None:
    _odd(d, "fault", what="unknown-request", subtype=m.subtype[:200])
    d.out.append(st.Write("refuse", wire.refuse(m.request_id, "this host does not know such requests")))
    _forward(d)


def _question_cancelled(d: Draft, m: wire.QuestionCancelled) -> None:
    d.set(questions={rid: q for rid, q in d.agent.questions.items() if rid != m.request_id})


def answer(d: Draft, e: st.AnswerQuestion) -> None:
    """Answer a permission question that is still open. Deny it if its turn is being cancelled or has its result."""
    question, turn = d.agent.questions.get(e.request), d.agent.turn
    if question is None or d.agent.phase not in ALIVE:
        return
    _question_cancelled(d, wire.QuestionCancelled(e.request))
    if turn is None or not turn.taken or turn.result is not None or turn.cancel is not None:
        why: str | None = "the turn is over"
    else:
        why = refusal(turn.kind, question, d.agent.cwd)
    if why is None:
        try:
            d.out.append(st.Write("allow", wire.allow(e.request, question.input)))
        except TypeError:
            why = "its input is nested too deeply"
    if why is not None:
        d.note("denied", tool=question.tool, why=why[:200])
        d.out.append(st.Write("deny", wire.deny(e.request, why)))


def _tasks(d: Draft, m: wire.Tasks) -> None:
    # A task that ended may have left processes that claude does not know, so check for them.
    d.set(tasks=m.ids, dirty=d.agent.dirty or bool(d.agent.tasks - m.ids))
    _forward(d)


_LINES: Final[Mapping[type, Callable[[Draft, Any], None]]] = {
    wire.StateChanged: _state,
    wire.Lifecycle: _lifecycle,
    wire.Init: _init,
    wire.Result: _result,
    wire.Response: _response,
    wire.Question: _question,
    wire.Request: _request,
    wire.Tasks: _tasks,
    wire.QuestionCancelled: _question_cancelled,
}
