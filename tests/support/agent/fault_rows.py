"""The fault table: faults of the agent, and the expected results. Prompts control the scripted agent."""

from dataclasses import dataclass
from typing import Any

PREEMPT, ITSELF, RELEASE, CANCEL, FORCE = "preempted", "itself", "released", "cancelled", "forced"
TIMEOUT = "timeout"
LONG = "#tokens 100000\n#pace 5ms"


@dataclass(frozen=True)
class Row:
    """One fault. A deadline may expire only in rows with `deadlines`, even on a slow machine."""

    fault: str
    when: str
    prompt: str
    """The prompt of the first turn."""
    outcome: str
    reason: str | None = None
    """A pattern for the beginning of the first turn's reason."""
    end: str = ITSELF
    """What ends the first turn: the turn itself, or this action at `moment`."""
    moment: str = "turn-started"
    """A ledger event; `NAME.mark` (the agent has reached NAME); or `in_turn` or `tasks` in the session's view."""
    recovery: str | None = None
    why: tuple[dict[str, Any], ...] = ()
    """Entries that the ledger must have, given by some of their fields."""
    faults: tuple[str, ...] = ()
    """The faults of the first process, the second process, and so on. Each starts with its process."""
    release_at: str | None = None
    """The moment that the holder waits for before it releases."""
    broken: str | None = None
    """Why the next turn is refused until an operator restarts the agent."""
    ends_by_backoff: bool = False
    """Whether the refusal ends by backoff instead of a restart."""
    text: str = "mine"
    generation: int = 1
    """The conversation's generation in the first turn's result."""
    worker: bool = True
    deadlines: bool = False
    times: int = 1
    """The number of such recoveries."""


def at(*lines: str, say: str = "#say mine") -> str:
    return "\n".join([*(f"#at {line}" for line in lines), say])


def fault(*names: str, say: str = "#say mine") -> str:
    return "\n".join([f"#fault {' '.join(names)}", say])


def died(code: int) -> dict[str, Any]:
    return {"event": "agent-reaped", "why": "died", "exit": code}


FOREIGN = {"event": "foreign"}
DRAIN = {"event": "agent-stopping", "why": "drain-deadline"}


ACKS = (
    Row("ack after the result and after idle", "50 ms late", fault("late-ack=50", say=LONG), "cancelled", "preempted",
        PREEMPT, why=({"event": "turn-closed", "ack_after_result": True},)),
    Row("slow ack", "1 s", at("interrupt sleep=1000", say=LONG), "cancelled", "preempted", PREEMPT),
    Row("interrupt races the natural end", "before idle", at("completed wait"), "completed", None, PREEMPT,
        "completed.mark", why=({"event": "turn-closed", "ack_after_result": True},)),
    Row("interrupt races the natural end", "before the result", at("text wait"), "completed", None, PREEMPT,
        "text.mark"),
    Row("cancelled before it started", "preempted", at("queued wait"), "cancelled", "preempted", PREEMPT,
        "queued.mark"),
    Row("cancelled before it started", "by its holder", at("queued wait"), "cancelled", "cancelled", CANCEL,
        "queued.mark", worker=False),
    Row("endless stream", "preempted", fault("endless"), "cancelled", "preempted", PREEMPT),
    Row("retries without progress", "preempted", fault("retries"), "cancelled", "preempted", PREEMPT),
    Row("retries without progress", "its own timeout", fault("retries"), "failed", "timeout", TIMEOUT,
        worker=False),
    Row("question that nobody takes back", "preempted", at("asked silent", say='#ask Read {"file_path": "a"}'),
        "cancelled", "drain-deadline", PREEMPT, "asked.mark", "drain-deadline", (DRAIN,), deadlines=True),
    Row("ack missing", "result comes", fault("no-ack", say=LONG), "cancelled", "preempted", PREEMPT,
        recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("ack missing", "the turn completed", "#fault no-ack\n" + at("completed wait"), "completed", None, PREEMPT,
        "completed.mark", "drain-deadline", (DRAIN,), deadlines=True),
    Row("ack without result", "worker", fault("ack-only", say=LONG), "cancelled", "drain-deadline", PREEMPT,
        recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("ack without result", "handler", fault("ack-only", say=LONG), "lost", "drain-deadline", FORCE,
        recovery="drain-deadline", why=(DRAIN,), worker=False, deadlines=True),
    Row("interrupt ignored", "worker", fault("ignore-interrupt", say=LONG), "cancelled", "drain-deadline", PREEMPT,
        recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("interrupt ignored", "cancelled by its holder", fault("ignore-interrupt", say=LONG), "lost", "drain-deadline",
        CANCEL, recovery="drain-deadline", why=(DRAIN,), worker=False, deadlines=True),
)  # fmt: skip

BOUNDARIES = (
    Row("no lifecycle after a send", "in turn", fault("no-lifecycle"), "lost", "not-taken", recovery="not-taken",
        deadlines=True),
    Row("queued and no more", "in turn", at("queued silent"), "lost", "start-deadline", recovery="start-deadline",
        deadlines=True),
    Row("rules not answered", "starting", "#say mine", "completed", recovery="no-answer",
        faults=("mute=apply_flag_settings",), deadlines=True),
    Row("rules not answered", "preempted", "#say mine", "cancelled", "preempted", PREEMPT, "initialized.mark",
        recovery="no-answer", faults=("at initialized fault=mute=apply_flag_settings",), deadlines=True),
    Row("silent once idle", "the next turn", at("fenced silent"), "completed", recovery="no-answer", deadlines=True),
    Row("no end after the text", "released", at("text silent"), "lost", "drain-deadline", RELEASE, "text.mark",
        "drain-deadline", (DRAIN,), worker=False, deadlines=True),
    Row("no lifecycle after the result", "released", at("result state=idle silent"), "completed", None, RELEASE,
        "result.mark", "drain-deadline", (DRAIN,), worker=False, deadlines=True),
    Row("never idle again", "released", at("completed silent"), "completed", None, RELEASE, "completed.mark",
        "drain-deadline", (DRAIN,), worker=False, deadlines=True),
    Row("fence not answered", "released", at("idle silent"), "completed", None, RELEASE, "idle.mark",
        "drain-deadline", (DRAIN,), worker=False, deadlines=True),
    Row("no lifecycle after the result", "in turn", at("result state=idle silent"), "completed",
        recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("never idle again", "in turn", at("completed silent"), "completed", recovery="drain-deadline", why=(DRAIN,),
        deadlines=True),
    Row("fence not answered", "in turn", at("idle silent"), "completed", recovery="drain-deadline", why=(DRAIN,),
        deadlines=True),
    Row("lifecycle and idle, no result", "in turn", at("text life=completed state=idle silent"), "lost",
        "drain-deadline", recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("background task does not stop", "after the turn", "#fault mute=stop_task\n" + at("fenced task"), "completed",
        release_at="tasks", recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("background task", "after the turn", at("fenced task"), "completed", why=({"event": "drained"},),
        release_at="tasks"),
    Row("background task", "before idle", at("completed task"), "completed", why=({"event": "drained"},)),
    Row("two results", "in turn", fault("two-results"), "completed",
        why=({"event": "fault", "what": "second-result"},)),
    Row("result of ours and another", "in turn", at("text also"), "completed"),
    Row("result without a name", "in turn", at("text result=unnamed"), "completed", why=(FOREIGN,)),
    Row("result of another turn", "in turn", at("text result=other"), "completed", why=(FOREIGN,)),
    Row("foreign result", "idle", at("fenced foreign"), "completed", why=(FOREIGN,), release_at="foreign"),
    Row("foreign result", "racing the prompt", fault("foreign-first"), "completed", why=(FOREIGN,)),
    Row("foreign result", "first after resume", at("fenced exit=0"), "completed", why=(FOREIGN, died(0)),
        faults=("", "foreign-first"), release_at="agent-reaped"),
    Row("idle", "before the lifecycle", at("result state=idle sleep=100"), "completed"),
    Row("lifecycle and idle", "before the result", at("text life=completed state=idle sleep=100"), "completed"),
    Row("init twice", "in turn", at("init init"), "completed"),
    Row("question", "after the result", at("result ask=Bash"), "completed", why=({"event": "denied"},)),
    Row("question", "idle", at("fenced ask=Bash state=idle"), "completed", why=({"event": "denied"},),
        release_at="denied"),
    Row("answer that nobody asked for", "in turn", at("text respond"), "completed",
        why=({"event": "fault", "what": "unknown-response"},)),
    Row("initialize answered twice", "starting", "#say mine", "completed", faults=("at initialize again",),
        why=({"event": "fault", "what": "unknown-response"},)),
    Row("session id changed", "in turn", fault("renamed"), "completed",
        why=({"event": "fault", "what": "session-id-changed"},), generation=2),
)  # fmt: skip

BYTES = (
    Row("garbage", "a line", fault("garbage"), "lost", "garbage", recovery="garbage"),
    Row("garbage", "no UTF-8", at("text raw=bytes"), "lost", "garbage", recovery="garbage"),
    Row("garbage", "JSON, no object", at("text raw=array"), "lost", "garbage", recovery="garbage"),
    Row("garbage", "broken fields", at("text raw=broken"), "lost", "garbage", recovery="garbage"),
    Row("garbage", "2000 lines", at("text raw=dump"), "lost", "garbage", recovery="garbage"),
    Row("garbage", "at the start of each process", "#say mine", "failed", "garbage", recovery="garbage", times=3,
        faults=("at start raw=garbage",) * 3, broken="garbage", why=({"event": "agent-broken", "why": "garbage"},)),
    Row("results that nobody asked for", "3000, idle", at("fenced raw=results"), "completed", recovery="garbage",
        why=(FOREIGN,), release_at="agent-reaped"),
    Row("garbage", "idle", at("fenced raw=garbage"), "completed", recovery="garbage", release_at="agent-reaped"),
    Row("half a line, then silence", "preempted", fault("half-line"), "cancelled", "drain-deadline", PREEMPT,
        recovery="drain-deadline", why=(DRAIN,), deadlines=True),
    Row("half a line, then its end", "in turn", at("text raw=half exit=1"), "lost", "agent exited with 1",
        why=(died(1),)),
    Row("carriage returns, empty lines", "in turn", at("text raw=crlf"), "completed"),
    Row("5 MB line", "in turn", fault("long-line"), "completed"),
    Row("5 MB result", "in turn", "#big 5000000", "completed", text="x" * 5_000_000),
    Row("split UTF-8", "in turn", fault("split-utf8", say="#say üöä€😀"), "completed", text="üöä€😀"),
    Row("half a surrogate pair", "in turn", at("text raw=half-pair"), "completed"),
    Row("nested deeply", "a line", at("text raw=deep"), "completed"),
    Row("nested more deeply", "a line", at("text raw=deeper"), "completed"),
    Row("nested deeply", "a question", "#ask Bash " + '{"a":' * 300 + "1" + "}" * 300, "completed",
        why=({"event": "denied", "why": "its input is nested too deeply"},),
        text='{"behavior": "deny", "message": "its input is nested too deeply"}'),
    Row("question that nobody knows", "in turn", at("text raw=request"), "completed",
        why=({"event": "fault", "what": "unknown-request", "subtype": "request_user_dialog"},)),
    Row("stderr flood", "in turn", fault("stderr-flood"), "completed"),
    Row("stdin not read", "from the start", "#say mine", "failed", "start-deadline", recovery="start-deadline",
        faults=("deaf=0",), deadlines=True),
    Row("stdin not read", "4 MB prompt", "#say mine\n" + "\U0001f600" * 900_000, "lost", "not-taken",
        recovery="not-taken", faults=("deaf=2",), deadlines=True),
    Row("stdin not read", "4 MB prompt, preempted", "#say mine\n" + "\U0001f600" * 900_000, "cancelled",
        "drain-deadline", PREEMPT, "in_turn", "drain-deadline", (DRAIN,), faults=("deaf=2",), deadlines=True),
    Row("stdin not read", "in turn, preempted", LONG, "cancelled", "drain-deadline", PREEMPT,
        recovery="drain-deadline", why=(DRAIN,), faults=("deaf=3",), deadlines=True),
    Row("stdin not read", "20 MB of answers", at("text raw=requests silent"), "lost", "stdin-full",
        recovery="stdin-full", why=({"event": "fault", "what": "stdin-full"},), faults=("deaf=3",)),
    Row("stdout closed", "in turn", at("text close-stdout"), "lost", "agent exited with 143: sessiond: ",
        why=(died(143),)),
    Row("capability missing", "in turn", fault("no-capability"), "failed", "missing-capability",
        broken="missing-capability",
        why=({"event": "fault", "what": "missing-capability"}, {"event": "agent-broken", "why": "missing-capability"})),
    Row("rules refused", "idle", "#say mine", "failed", "rules-refused", recovery="rules-refused",
        faults=("refuse=apply_flag_settings",)),
    Row("initialize refused", "starting", "#say mine", "completed", recovery="initialize-refused",
        faults=("refuse=initialize",)),
    Row("start takes too long", "starting", "#say mine", "failed", "start-deadline", recovery="start-deadline",
        faults=("slow-start=60000",), deadlines=True),
    Row("start takes too long", "preempted", "#say mine", "cancelled", "preempted", PREEMPT, "agent-started",
        recovery="start-deadline", faults=("slow-start=60000",), deadlines=True),
    Row("crash loop", "starting", "#say mine", "failed", "agent exited with 1", faults=("exit-start=1",) * 3,
        broken="agent exited with 1", why=({"event": "agent-broken"},)),
    Row("crash loop", "starting, rests", "#say mine", "failed", "agent exited with 137", faults=("exit-start=137",) * 3,
        broken="agent exited with 137", ends_by_backoff=True, why=({"event": "agent-broken", "rest_seconds": 8},)),
    Row("crash loop", "once started", "#say mine", "failed", "agent exited with 0",
        faults=("at initialized exit=0",) * 3, broken="agent exited with 0", why=({"event": "agent-broken"},)),
)  # fmt: skip


HISTORY_LOST = {"event": "agent-reaped", "why": "history-lost"}
"""The killed agent had not saved its conversation. Discovering that does not count as a failure."""


def exits(code: int) -> tuple[Row, ...]:
    """Return rows in which the agent exits with this code, in every state."""
    name, why, said = f"exit {code}", (died(code),), f"agent exited with {code}"
    return (
        Row(name, "starting", "#say mine", "completed", why=why, faults=(f"at initialize exit={code}",)),
        Row(name, "in turn, before init", at(f"queued exit={code}"), "lost", said, why=(*why, HISTORY_LOST)),
        Row(name, "in turn, after init", at(f"text exit={code}"), "lost", said, why=why),
        Row(name, "draining, worker", at(f"interrupt exit={code}", say=LONG), "cancelled", said, PREEMPT, why=why),
        Row(name, "draining, handler", at(f"interrupt exit={code}", say=LONG), "lost", said, FORCE, why=why,
            worker=False),
        Row(name, "between result and lifecycle", at(f"result exit={code}"), "completed", why=why),
        Row(name, "between lifecycle and idle", at(f"completed exit={code}"), "completed", why=why),
        Row(name, "draining, a task is to stop", at("fenced task", f"stopping exit={code}"), "completed", why=why,
            release_at="tasks"),
        Row(name, "in a question", at(f"asked exit={code}", say='#ask Read {"file_path": "a"}'), "lost", said, why=why),
        Row(name, "idle", at(f"fenced exit={code}"), "completed", why=why, release_at="agent-reaped"),
    )  # fmt: skip


EXITS = tuple(row for code in (0, 1, 137) for row in exits(code))
HUGE = Row("66 MB without a line end", "in turn", at("text raw=huge silent"), "lost",
           r"agent exited with \d+: sessiond: its output", why=({"event": "agent-reaped", "why": "died"},))  # fmt: skip
