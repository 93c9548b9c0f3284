"""The agent's machine: `decide(agent, event)` gives the next state and what to do. Pure.

Two rules. First: a line is written only from here, and a cancel names its turn; what belongs to
a closed turn or a dead process is dropped. Second: progress is a level; every step ends in
`_advance`, which sends, fences and closes as soon as the state allows it, whatever came last.

    ASLEEP -> STARTING -> IDLE -> IN_TURN -> IDLE     any -> STOPPING(why) -> ASLEEP | BROKEN(why)

A turn is over when its lifecycle is terminal, it never was `started` or its result is read, and
claude says idle. It is closed when, besides, every control request is answered, no background
task runs that must be stopped, and the fence (one cheap request behind it all) came back idle.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.permissions import refusal, rules_for
from sessiond.agent.state import Agent, Outcome, Phase, Turn
from sessiond.lock.rules import Kind, Times

MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.ASLEEP: frozenset({Phase.STARTING, Phase.BROKEN}),
    Phase.STARTING: frozenset({Phase.IDLE, Phase.STOPPING, Phase.ASLEEP, Phase.BROKEN}),
    Phase.IDLE: frozenset({Phase.IN_TURN, Phase.STOPPING, Phase.ASLEEP, Phase.BROKEN}),
    Phase.IN_TURN: frozenset({Phase.IDLE, Phase.STOPPING, Phase.ASLEEP, Phase.BROKEN}),
    Phase.STOPPING: frozenset({Phase.ASLEEP, Phase.BROKEN}),
    Phase.BROKEN: frozenset({Phase.ASLEEP}),
}
NEEDED = frozenset({"interrupt_cancel_queued_v1", "msg_lifecycle_v1"})
FAILS_ALLOWED = 3
FATAL = frozenset({"no-login", "missing-capability"})
ALIVE = frozenset({Phase.STARTING, Phase.IDLE, Phase.IN_TURN})
OPEN_LIFECYCLE = frozenset({None, "queued", "started"})


def backoff(fails: int) -> float:
    """Seconds that a broken agent rests, after so many failures in a row."""
    return float(min(300, 2 ** max(1, fails)))


def timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    """(name, subject) of every deadline that this state asks for, in seconds from its first asking."""
    turn = agent.turn
    found: dict[tuple[str, str], float] = {}
    if agent.phase is Phase.BROKEN:
        found["backoff", str(agent.fails)] = backoff(agent.fails)
    if agent.phase is Phase.STARTING:
        found["start", agent.conversation] = times.start_deadline
    if turn is not None and not turn.started and turn.cancel is None:
        found["start", turn.id] = times.start_deadline
    if turn is not None and turn.written and turn.lifecycle is None:
        found["not-taken", turn.id] = times.not_taken
    if turn is not None and turn.timeout is not None and turn.cancel is None:
        found["timeout", turn.id] = turn.timeout
    cancelling = turn is not None and (turn.cancel is not None or not agent.leased)
    if agent.phase in ALIVE and (cancelling or (agent.busy and not agent.leased)):
        subject = turn.id if turn is not None else "busy"
        found["drain", subject] = times.drain_deadline
        found["again", subject] = times.drain_deadline / 2
    if agent.phase is Phase.IDLE and turn is None and not agent.busy:
        found["sleep", agent.conversation] = times.idle
    return found


class _Draft:
    """The one mutable thing here: the step while it is decided."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.out: list[st.Output] = []

    def set(self, **changes: Any) -> None:
        self.agent = replace(self.agent, **changes)

    def turn(self, **changes: Any) -> None:
        if self.agent.turn is not None:
            self.set(turn=replace(self.agent.turn, **changes))

    def go(self, phase: Phase, why: str = "") -> None:
        if phase not in MOVES[self.agent.phase]:
            raise ValueError(f"agent: {self.agent.phase.value} to {phase.value} ({why})")
        self.set(phase=phase, why=why)

    def note(self, event: str, **data: Any) -> None:
        self.out.append(st.Note(event, data))

    def ask(self, what: str, encode: Callable[[str], bytes]) -> None:
        """A control request; what was fenced before it no longer is."""
        rid = f"r{self.agent.count + 1}"
        self.set(count=self.agent.count + 1, requests={**self.agent.requests, rid: what}, fenced=False)
        self.out.append(st.Write(what, encode(rid)))


def decide(agent: Agent, event: st.Event) -> tuple[Agent, list[st.Output]]:
    """The step that `event` makes of `agent`: its next state, and what to do, in order.

    Raises ValueError for a move that the table does not have.
    """
    draft = _Draft(agent)
    _HANDLERS[type(event)](draft, event)
    _advance(draft)
    return draft.agent, draft.out


# ---- progress --------------------------------------------------------------------------------


def turn_over(agent: Agent) -> bool:
    """Nothing of the turn runs any more (docs/protocol.md, "The drain")."""
    turn = agent.turn
    if turn is None or not turn.written or turn.lifecycle in OPEN_LIFECYCLE:
        return False
    return (not turn.taken or turn.result is not None) and agent.said == "idle"


def _advance(d: _Draft) -> None:
    if d.agent.phase is Phase.ASLEEP and d.agent.turn is not None:
        d.go(Phase.STARTING)
        d.note("agent-starting", conversation=d.agent.conversation, resume=d.agent.known)
        d.out.append(st.Launch(d.agent.known))
    if d.agent.phase in (Phase.IDLE, Phase.IN_TURN):
        _stop_tasks(d)
        if _settled(d):
            _send(d)
    busy = d.agent.phase in ALIVE and bool(d.agent.tasks or d.agent.dirty)
    if busy != d.agent.busy:
        d.set(busy=busy)
        d.out.append(st.Busy(busy))


def _stop_tasks(d: _Draft) -> None:
    if d.agent.leased:
        return
    for task in sorted(d.agent.tasks - d.agent.stopped_tasks):
        d.set(stopped_tasks=d.agent.stopped_tasks | {task})
        d.ask("stop_task", lambda rid, task=task: wire.stop_task(rid, task))  # type: ignore[misc]


def _settled(d: _Draft) -> bool:
    """Fences what is over, closes it; True when nothing but a turn to send is left."""
    over = turn_over(d.agent)
    waiting = d.agent.turn is not None and d.agent.turn.written and not over
    if waiting or d.agent.said != "idle" or d.agent.requests:
        return False
    if not (over or d.agent.dirty):
        return True
    if not d.agent.leased and d.agent.tasks:
        return False
    if not d.agent.fenced:
        d.ask("fence", wire.cost)
        return False
    d.set(dirty=False, foreign=False)
    if over and d.agent.turn is not None:
        _close(d, d.agent.turn)
    return d.agent.phase is Phase.IDLE


def _send(d: _Draft) -> None:
    turn = d.agent.turn
    if turn is None or turn.written or turn.cancel is not None:
        return
    if d.agent.rules is not turn.kind:
        allow, deny = rules_for(turn.kind)
        d.ask(f"rules:{turn.kind.value}", lambda rid: wire.apply_rules(rid, allow, deny))
    elif d.agent.model != turn.model:
        d.ask(f"model:{turn.model}", lambda rid: wire.set_model(rid, turn.model))
    else:
        d.go(Phase.IN_TURN)
        d.turn(written=True)
        d.set(known=True, fenced=False)
        d.out.append(st.Write("user", wire.user(turn.uuid, turn.prompt, composed=turn.composed)))


def _close(d: _Draft, turn: Turn) -> None:
    outcome, reason = outcome_of(turn)
    result = turn.result
    cost = None
    if result is not None and result.cost_usd is not None:
        cost = max(0.0, result.cost_usd - d.agent.cost)
        d.set(cost=result.cost_usd)
    d.set(turn=None, fenced=False)
    if d.agent.phase is Phase.IN_TURN:
        d.go(Phase.IDLE)
    if outcome is Outcome.COMPLETED:
        d.set(fails=0)
    text = result.text if result is not None and outcome is Outcome.COMPLETED else ""
    usage = result.usage if result is not None else {}
    d.out.append(st.TurnOver(turn.id, outcome, text, reason, usage, cost))
    if result is not None and _no_login(result):
        _stop(d, st.Stop("no-login"))


def outcome_of(turn: Turn) -> tuple[Outcome, str | None]:
    """(outcome, reason) of a turn that is over, from its own result alone.

    Judged by `is_error` and `terminal_reason`, never by `subtype`. An empty result is no completion.
    """
    result = turn.result
    if result is None or (result.terminal_reason or "").startswith("aborted"):
        if turn.cancel == "timeout":
            return Outcome.FAILED, "timeout"
        return Outcome.CANCELLED, turn.cancel or "interrupted"
    if result.is_error:
        said = result.text or "; ".join(result.errors) or result.terminal_reason or "unknown error"
        return Outcome.FAILED, said[:500]
    if not result.text.strip():
        return Outcome.FAILED, "empty-result"
    return Outcome.COMPLETED, None


def _no_login(result: wire.Result) -> bool:
    said = result.text.lower()
    return result.is_error and (result.status == 401 or "not logged in" in said or "invalid api key" in said)


# ---- requests of the owner loop --------------------------------------------------------------


def _begin(d: _Draft, e: st.Begin) -> None:
    if d.agent.turn is not None:
        raise ValueError(f"one_turn_open: {d.agent.turn.id} is open")
    d.set(turn=e.turn)
    if d.agent.phase is Phase.BROKEN:
        _fail_turn(d, f"agent-broken: {d.agent.why}")


def _fail_turn(d: _Draft, reason: str, outcome: Outcome = Outcome.FAILED) -> None:
    turn = d.agent.turn
    if turn is not None:
        d.set(turn=None)
        d.out.append(st.TurnOver(turn.id, outcome, reason=reason))


def _cancel(d: _Draft, e: st.Cancel) -> None:
    turn = d.agent.turn
    if turn is None or turn.id != e.turn or turn.cancel is not None:
        return
    d.turn(cancel=e.why)
    if not turn.written:
        failed = e.why == "timeout"
        _fail_turn(d, e.why, Outcome.FAILED if failed else Outcome.CANCELLED)
    elif d.agent.phase is Phase.IN_TURN:
        d.note("interrupt", turn=turn.id, why=e.why)
        d.ask("interrupt", wire.interrupt)


def _lease_began(d: _Draft, _: st.LeaseBegan) -> None:
    # Rules are set again with each lease's first turn: nothing is inherited.
    d.set(leased=True, rules=None)


def _lease_ended(d: _Draft, e: st.LeaseEnded) -> None:
    d.set(leased=False)
    if d.agent.turn is not None:
        _cancel(d, st.Cancel(d.agent.turn.id, e.why))


def _stop(d: _Draft, e: st.Stop) -> None:
    if d.agent.phase in ALIVE:
        d.go(Phase.STOPPING, e.why)
        d.note("agent-stopping", why=e.why)
        d.out.append(st.Kill(e.why))
    elif d.agent.phase is Phase.BROKEN and e.why == "restart":
        d.set(fails=0)
        d.go(Phase.ASLEEP)


def _recover(d: _Draft, reason: str) -> None:
    if d.agent.phase in ALIVE:
        d.note("recovery", reason=reason)
        _stop(d, st.Stop(reason))


# ---- the process -----------------------------------------------------------------------------


def _spawned(d: _Draft, _: st.Spawned) -> None:
    if d.agent.phase is Phase.STARTING:
        d.set(model=d.agent.default_model)
        d.ask("initialize", wire.initialize)


def _exited(d: _Draft, e: st.Exited) -> None:
    """The tree is gone. A prompt that was written is never sent again; one that was not may still be."""
    phase, why, turn = d.agent.phase, d.agent.why, d.agent.turn
    expected = phase is Phase.STOPPING
    d.note("agent-reaped", exit=e.status, why=why if expected else "died", stderr=e.stderr[-300:])
    reason = why if expected else f"agent exited with {e.status}: {_last_line(e.stderr)}".rstrip(": ")
    failure = not expected or why in ("start-deadline", "not-taken", "initialize-refused")
    fails = d.agent.fails + 1 if failure or why in FATAL else d.agent.fails
    broken = why in FATAL or fails >= FAILS_ALLOWED
    d.set(
        said="idle", requests={}, tasks=frozenset(), stopped_tasks=frozenset(), foreign=False, dirty=False,
        fenced=False, model=None, rules=None, cost=0.0, fails=fails, busy=False,
    )  # fmt: skip
    d.go(Phase.BROKEN if broken else Phase.ASLEEP, reason if broken else "")
    if broken:
        d.note("agent-broken", why=reason, rest_seconds=backoff(fails))
    keep = turn is not None and not turn.written and not broken and why not in ("start-deadline", "shutdown")
    if keep:
        d.out.append(st.Busy(False))
        return
    if turn is not None:
        _reap_turn(d, turn, reason)
    d.out.append(st.Gone())


def _reap_turn(d: _Draft, turn: Turn, reason: str) -> None:
    if turn.result is not None:
        _close(d, turn)
    elif turn.written and turn.cancel == "preempted" and turn.kind is Kind.WORKER:
        _fail_turn(d, reason, Outcome.CANCELLED)
    elif turn.written and reason not in FATAL:
        _fail_turn(d, reason, Outcome.LOST)
    else:
        _fail_turn(d, reason)


def _last_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    return lines[-1][:200] if lines else ""


# ---- lines -----------------------------------------------------------------------------------


def _got(d: _Draft, e: st.Got) -> None:
    if d.agent.phase in ALIVE:
        _LINES.get(type(e.message), _other)(d, e.message)


def _forward(d: _Draft) -> None:
    turn = d.agent.turn
    if turn is not None and turn.taken and turn.result is None:
        d.out.append(st.Forward())


def _other(d: _Draft, _: Any) -> None:
    _forward(d)


def _state(d: _Draft, m: wire.StateChanged) -> None:
    d.set(said=m.state)
    if m.state == "idle":
        d.set(foreign=False)
        return
    d.set(fenced=False)
    turn = d.agent.turn
    if m.state == "running" and (turn is None or not turn.written) and not d.agent.foreign:
        # Nobody sent anything: a turn that claude began by itself. It is interrupted, and fenced.
        d.set(foreign=True, dirty=True)
        d.note("foreign", origin="unasked", state="running")
        d.ask("interrupt", wire.interrupt)


def _lifecycle(d: _Draft, m: wire.Lifecycle) -> None:
    turn = d.agent.turn
    if turn is None or turn.uuid != m.uuid:
        return
    d.turn(lifecycle=m.state, taken=turn.taken or m.state == "started")


def _init(d: _Draft, m: wire.Init) -> None:
    missing = NEEDED - m.capabilities
    if missing:
        d.note("fault", what="missing-capability", missing=sorted(missing), version=m.version)
        _stop(d, st.Stop("missing-capability"))
        return
    turn = d.agent.turn
    if turn is None or not turn.taken:
        d.set(dirty=True, foreign=True)
        return
    if m.session_id != d.agent.conversation:
        d.note("fault", what="session-id-changed", conversation=m.session_id)
        d.set(conversation=m.session_id)
        d.out.append(st.Renamed(m.session_id))
    if not turn.started:
        d.turn(started=True)
        d.out.append(st.TurnStarted(turn.id))
    _forward(d)


def _result(d: _Draft, m: wire.Result) -> None:
    turn = d.agent.turn
    unnamed = not m.uuids and m.origin is None and turn is not None and turn.taken
    if turn is None or not (turn.uuid in m.uuids or unnamed):
        d.set(dirty=True)
        d.note("foreign", origin=m.origin, state="result", text_chars=len(m.text), is_error=m.is_error)
    elif turn.result is not None:
        d.note("fault", what="second-result", turn=turn.id)
    else:
        _forward(d)
        d.turn(result=m, taken=True)


def _response(d: _Draft, m: wire.Response) -> None:
    what = d.agent.requests.get(m.request_id)
    if what is None:
        d.note("fault", what="unknown-response")
        return
    d.set(requests={k: v for k, v in d.agent.requests.items() if k != m.request_id})
    name, _, value = what.partition(":")
    if name == "initialize":
        _initialized(d, m)
    elif name == "fence":
        d.set(fenced=d.agent.said == "idle")
    elif name == "interrupt":
        d.out.append(st.Acked())
    elif name in ("rules", "model") and not m.ok:
        _fail_turn(d, f"{name}-refused: {m.error}")
        if name == "rules":
            # Never a turn under the last holder's rules: the process is not used any further.
            _recover(d, "rules-refused")
    elif name == "rules":
        d.set(rules=Kind(value))
    elif name == "model":
        d.set(model=value)


def _initialized(d: _Draft, m: wire.Response) -> None:
    if m.ok:
        d.go(Phase.IDLE)
    else:
        _recover(d, "initialize-refused")


def _question(d: _Draft, m: wire.Question) -> None:
    turn = d.agent.turn
    if turn is None or not turn.taken or turn.cancel is not None:
        why: str | None = "the turn is over"
    else:
        why = refusal(turn.kind, m.tool, m.input, d.agent.cwd)
    if why is None:
        d.out.append(st.Write("allow", wire.allow(m.request_id, m.input)))
    else:
        d.note("denied", tool=m.tool, why=why[:200])
        d.out.append(st.Write("deny", wire.deny(m.request_id, why)))


def _tasks(d: _Draft, m: wire.Tasks) -> None:
    d.set(tasks=m.ids)
    _forward(d)


_LINES: Mapping[type, Callable[[_Draft, Any], None]] = {
    wire.StateChanged: _state,
    wire.Lifecycle: _lifecycle,
    wire.Init: _init,
    wire.Result: _result,
    wire.Response: _response,
    wire.Question: _question,
    wire.Tasks: _tasks,
    wire.QuestionCancelled: lambda d, m: None,
}


# ---- timers ----------------------------------------------------------------------------------


def _due(d: _Draft, e: st.Due) -> None:
    turn = d.agent.turn
    if e.name == "backoff" and d.agent.phase is Phase.BROKEN:
        d.go(Phase.ASLEEP)
    elif e.name == "timeout" and turn is not None:
        _cancel(d, st.Cancel(turn.id, "timeout"))
    elif e.name == "again" and d.agent.phase is Phase.IN_TURN:
        d.ask("interrupt", wire.interrupt)
    elif e.name == "sleep" and d.agent.phase is Phase.IDLE and turn is None:
        _stop(d, st.Stop("sleep"))
    elif e.name == "start":
        _start_over(d)
    elif e.name in ("drain", "not-taken"):
        _recover(d, "drain-deadline" if e.name == "drain" else "not-taken")


def _start_over(d: _Draft) -> None:
    if d.agent.phase in ALIVE:
        _recover(d, "start-deadline")
    else:
        _fail_turn(d, "start-deadline")


def _garbage(d: _Draft, e: st.Garbage) -> None:
    """A broken line: what else is missing is unknown, so the process is not used any further."""
    d.note("fault", what="garbage", detail=e.detail[:200])
    _recover(d, "garbage")


_HANDLERS: Mapping[type, Callable[[_Draft, Any], None]] = {
    st.Begin: _begin,
    st.Cancel: _cancel,
    st.LeaseBegan: _lease_began,
    st.LeaseEnded: _lease_ended,
    st.Spawned: _spawned,
    st.Got: _got,
    st.Garbage: _garbage,
    st.Exited: _exited,
    st.Stop: _stop,
    st.Due: _due,
}
