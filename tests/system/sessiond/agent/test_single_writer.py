"""One writer: strace shows what a load of tickets, cancels, model switches and force-releases writes to agents.

strace sees kernel threads, and all greenlets share one thread. The order shows that the owner loop's greenlet writes:
each line follows the commit of its step, which the same trace shows as a call to Redis.
"""

import ast
import json
import os
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import gevent
import psutil
import pytest
from gevent.event import Event

from sessiond.agent.process.agent_process import AgentProcess
from sessiond.client import Client, SessiondError
from sessiond.verify import verify
from support.agent import strace
from support.agent.strace import Call, Strace
from support.servers import SERVICES, Model, Sessiond, alive, claude_env, eventually, scripted_env
from support.size import FULL

Start = Callable[..., Sessiond]
Figures = Callable[[str], None]
MODELS = ("claude-model-a", "claude-model-b", None)
traced = pytest.mark.skipif(strace.why_not() is not None, reason=strace.why_not() or "")


# ---- the load ----------------------------------------------------------------------------------


class Load:
    """Callers of several sessions. In each session an operator ends random turns and leases."""

    ENOUGH: Final = {"turn": 8, "big": 1, "cut": 2, "preempted": 1, "cancel": 1, "force": 1, "restart": 1, "look": 2}

    def __init__(self, service: Sessiond, sessions: list[str], big: int) -> None:
        self._service, self._sessions, self._big = service, sessions, big
        self._over = threading.Event()
        self._at_work = {session: threading.Event() for session in sessions}
        self.done: Counter[str] = Counter()
        """Counts of turns and of the operator's actions.

        `big` counts completed big turns, and `cut` big turns that were cancelled while they were written. `look` counts
        scans of all open files in which only the owner and its agent had the agent's stdin open.
        """

        self.others: list[Any] = []
        """Other processes that had an agent's stdin open at the last scan."""

    def run(self, seconds: float) -> None:
        """Run for `seconds`, and until every count is high enough."""
        jobs = [(self._operator, s) for s in self._sessions] + [(self._worker, s) for s in self._sessions]
        jobs += [(self._handler, s) for s in self._sessions for _ in range(2)]
        threads = [threading.Thread(target=do, args=(s, random.Random(n))) for n, (do, s) in enumerate(jobs)]
        for thread in threads:
            thread.start()
        try:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends or any(self.done[what] < n for what, n in self.ENOUGH.items()):
                assert time.monotonic() < ends + 60, f"not enough: {self.done}, {self.others}"
                for session in self._sessions:
                    self._look(session)
        finally:
            self._over.set()
            for event in self._at_work.values():
                event.set()
            for thread in threads:
                thread.join(60)
        assert not [t for t in threads if t.is_alive()]

    def _worker(self, session: str, dice: random.Random) -> None:
        while not self._over.is_set():
            self._lease(session, dice, "worker", ["#tokens 1000\n#pace 5ms"] * 3, key="w")

    def _handler(self, session: str, dice: random.Random) -> None:
        kinds = cycle([[], ["#tokens 300\n#pace 5ms"], ["#say one", "#say two"], ["#say three"]])
        while not self._over.wait(dice.uniform(0.0, 0.3)):
            if dice.random() < 0.5:
                self._at_work[session].wait(20)
            big = "#say big\n" + "xü-" * (dice.randrange(self._big // 2, self._big) // 4)
            prompts = next(kinds) or [big, big]
            self._lease(session, dice, "handler", prompts, priority=dice.randrange(10))

    def _lease(self, session: str, dice: random.Random, kind: str, prompts: list[str], **more: Any) -> None:
        try:
            with self._service.client().lease(session, kind=kind, timeout=60, **more) as lease:
                if kind == "worker":
                    self._at_work[session].set()
                for prompt in prompts:
                    if self._over.is_set():
                        return
                    turn = lease.turn(prompt, model=dice.choice(MODELS))
                    if len(prompt) > 2**16 and dice.random() < 0.5:
                        eventually(lambda turn=turn: self._begun(session, turn.id), 60)
                        lease.cancel_turn(turn.id)
                        self.done["cut"] += 1
                    result = turn.result()
                    self.done["turn"] += result.completed
                    self.done["big"] += result.completed and len(prompt) > 2**16
                    self.done["preempted"] += result.reason == "preempted"
        except SessiondError:
            return
        finally:
            if kind == "worker" and not self._over.is_set():
                self._at_work[session].clear()

    def _begun(self, session: str, turn: str) -> bool:
        view = self._service.client().view(session)
        return view["turn"] != turn or view["agent"]["state"] == "in_turn"

    def _operator(self, session: str, dice: random.Random) -> None:
        client, ended = self._service.client(), None
        acts = [self._cancel, self._force, self._restart, self._cancel, self._force_twice, self._force]
        dice.shuffle(acts)
        doing = cycle(acts)
        while not self._over.wait(0.02):
            view = client.view(session)
            if view["agent"]["state"] != "in_turn" or view["turn"] in (ended, None):
                continue
            ended = view["turn"]
            time.sleep(dice.uniform(0.0, 0.3))  # act at a random moment
            try:
                if dice.random() < 0.6:
                    next(doing)(client, session, view)
            except SessiondError:  # the turn or lease had already ended
                continue

    def _cancel(self, client: Client, session: str, view: dict[str, Any]) -> None:
        client.transport.call("DELETE", f"/turns/{view['turn']}", session=session)
        self.done["cancel"] += 1

    def _force(self, client: Client, session: str, view: dict[str, Any]) -> None:
        client.force_release(session, (view["holder"] or view["draining"])["fence"], "a test")
        self.done["force"] += 1

    def _force_twice(self, client: Client, session: str, view: dict[str, Any]) -> None:
        self._force(client, session, view)
        self._force(client, session, view)

    def _restart(self, client: Client, session: str, _: dict[str, Any]) -> None:
        client.restart_agent(session)
        self.done["restart"] += 1

    def _look(self, session: str) -> None:
        """Check which processes have the current agent's stdin open. A guard closes it just after the agent's start."""
        agent = self._service.client().view(session)["agent"]["pid"]
        (worker,) = psutil.Process(self._service.pid).children()
        try:
            pipe = str(Path(f"/proc/{agent}/fd/0").readlink())
        except OSError:
            return
        expected, seen = [(worker.pid, "writes"), (agent, "reads")], list[Any]()

        def so() -> bool:
            seen[:] = holders(pipe)
            self.others = [one for one in seen if one not in expected]
            return seen == expected or (agent, "reads") not in seen

        eventually(so, 20, lambda: f"{seen} have the stdin of {agent}, whose owner is {worker.pid}")
        self.done["look"] += seen == expected


def holders(target: str) -> list[tuple[int, str]]:
    """Return the processes of this machine that have this pipe open: (pid, reads or writes), writers first."""
    found: list[tuple[int, str]] = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        try:
            for end in (place / "fd").iterdir():
                if str(end.readlink()) == target:
                    info = (place / "fdinfo" / end.name).read_text()
                    flags = int(re.search(r"flags:\s+(\d+)", info)[1], 8)  # type: ignore[index]
                    found.append((int(place.name), "reads" if flags & os.O_ACCMODE == os.O_RDONLY else "writes"))
        except OSError:  # the process ended or closed the file meanwhile
            continue
    return sorted(found, key=lambda one: one[1], reverse=True)


# ---- the trace ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Line:
    """A line that was written to an agent."""

    at: int
    """The position of its first byte in the trace."""
    pipe: str
    value: dict[str, Any]


@dataclass(slots=True)
class Step:
    """A step that the owner committed."""

    at: int
    """The position of Redis's answer in the trace."""
    session: str
    ledger: list[tuple[str, dict[str, Any]]]
    turns: list[dict[str, Any]]
    """The turn records that it wrote."""


@dataclass(slots=True)
class Pipe:
    """An agent's stdin."""

    data: bytearray = field(default_factory=bytearray)
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(offset in `data`, position in the trace) of each write."""
    threads: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    writes: int = 0
    partial: int = 0
    shown: bool = True
    """Whether the trace shows all written bytes."""

    def lines(self, name: str) -> Iterator[Line]:
        """Yield the whole lines. A line that the agent's end cut off is left out."""
        whole, offset, at = bytes(self.data), 0, iter([*self.starts, (len(self.data) + 1, 0)])
        place, (after, upcoming) = 0, next(at)
        *texts, self.rest = whole.split(b"\n")
        for text in texts:
            while after <= offset:
                place, (after, upcoming) = upcoming, next(at)
            yield Line(place, name, json.loads(text))
            offset += len(text) + 1

    rest: bytes = b""


def stdins(calls: Iterable[Call]) -> dict[str, Pipe]:
    """Return every pipe whose data begins like an agent's stdin, with all bytes that any thread wrote."""
    pipes: dict[str, Pipe] = defaultdict(Pipe)
    for call in calls:
        if not call.target.startswith("pipe:") or call.name == strace.READS:
            continue
        pipe = pipes[call.target]
        pipe.threads.add(call.tid)
        pipe.names.add(call.name)
        if call.done > 0:
            pipe.shown &= len(call.data) == call.done
            pipe.writes += 1
            pipe.partial += call.done < call.asked
            pipe.starts.append((len(pipe.data), call.at))
            pipe.data += call.data
    found = {name: pipe for name, pipe in pipes.items() if b'"initialize"' in pipe.data.partition(b"\n")[0]}
    assert all(pipe.shown for pipe in found.values()), "the trace must show all written bytes"
    return found


def steps(calls: Iterable[Call], owner: int) -> Iterator[Step]:
    """Yield the steps that Redis answered with `APPLIED`, from the traffic of the owner's connections."""
    asked: dict[tuple[int, str], bytes] = defaultdict(bytes)
    for call in calls:
        connection = (call.fd, call.target.partition("->")[0].rstrip("]"))
        if call.tid != owner or not call.target.startswith(("UNIX", "TCP")) or call.done <= 0:
            continue
        if call.name != strace.READS:
            asked[connection] += call.data
        elif (sent := asked.pop(connection, b"")) and b"APPLIED" in call.data:
            words = list(redis_words(sent))
            base, body = words[3].decode(), json.loads(words[-1])
            ledger = [(event, json.loads(data)) for event, data in body["ledger"]]
            records = [json.loads(c[-1]) for c in body["commands"] if c[0] == "SETEX" and c[1].startswith("turn:")]
            yield Step(call.at, base, ledger, records)


def redis_words(data: bytes) -> Iterator[bytes]:
    """Yield the words of one Redis command on the wire."""
    head, _, rest = data.partition(b"\r\n")
    for _ in range(int(head[1:])):
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size[1:])]
        rest = rest[int(size[1:]) + 2 :]


class Reader:
    """Reads the steps and lines of all sessions in order. Each line must have a committed cause."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        """The open turn of each session."""
        self.turns: dict[str, tuple[str, str]] = {}
        """(session, turn) of accepted turns by uuid."""
        self.sessions: dict[str, str] = {}
        """The session of each pipe."""
        self.written: set[str] = set()
        self.caused: set[str] = set()
        """Turns with a committed interrupt; sessions with a committed foreign turn."""
        self.kinds: dict[str, int] = defaultdict(int)

    def step(self, step: Step) -> None:
        for record in step.turns:
            self.turns[record["uuid"]] = (step.session, record["id"])
        for event, data in step.ledger:
            if event == "turn-accepted":
                assert step.session not in self.open, f"{data}: {self.open} is open"
                self.open[step.session] = data["turn"]
            elif event == "turn-closed":
                assert self.open.pop(step.session) == data["turn"]
            elif event == "interrupt":
                self.caused.add(data["turn"])
            elif event == "foreign":
                self.caused.add(step.session)

    def line(self, line: Line) -> None:
        value = line.value
        if value["type"] == "user":
            self.kinds["user"] += 1
            assert value["uuid"] in self.turns, "turn-accepted must be committed before the prompt"
            session, turn = self.turns[value["uuid"]]
            assert self.open.get(session) == turn, (
                "the prompt must belong to the open turn, and the previous turn must be closed"
            )
            assert value["uuid"] not in self.written, "each uuid must be new"
            assert self.sessions.setdefault(line.pipe, session) == session, "a pipe must belong to one session"
            self.written.add(value["uuid"])
        elif value["type"] == "control_request":
            self.kinds[value["request"]["subtype"]] += 1
            if value["request"]["subtype"] == "interrupt":
                session = self.sessions[line.pipe]
                assert value["request"]["cancel_queued"] is True
                assert {session, self.open.get(session)} & self.caused, (
                    "`interrupt` must be committed, and its turn must be open"
                )


@dataclass(frozen=True)
class Size:
    """How many sessions the load has, for how many seconds it runs, and the size of its big prompts."""

    sessions: int
    seconds: float
    big: int


def run_load(sessiond: Start, env: dict[str, str], place: Path, size: Size, figures: Figures) -> None:
    """Run the load on a traced service, then check its ledgers and the trace."""
    trace, names = Strace(place / "trace"), [f"octo/s{n}" for n in range(size.sessions)]
    service = sessiond(env, under=trace.under)
    tracer = psutil.Process(trace.follows(service.pid))
    (owner,) = psutil.Process(service.pid).children()
    done = Load(service, names, size.big)
    done.run(size.seconds)
    assert alive(owner), "the same owner all the time"
    happened: Counter[str] = Counter()
    for name in names:
        entries = service.client().ledger(name)
        happened.update(e["event"] for e in entries)
        assert verify(entries).violations == []
    assert happened["refused"] == 0 and happened["force-release"] > 0
    service.terminate()
    eventually(lambda: not alive(tracer), 30)
    figures(f"{judge(list(trace.calls()), owner.pid, happened)}; done: {dict(done.done)}")


def judge(calls: list[Call], owner: int, happened: Counter[str]) -> str:
    """Check the trace and return its figures in one line."""
    pipes, reader = stdins(calls), Reader()
    assert {thread for pipe in pipes.values() for thread in pipe.threads} == {owner}, (
        "only the owner's thread may write"
    )
    assert {name for pipe in pipes.values() for name in pipe.names} == {"write"}
    lines = [line for name, pipe in pipes.items() for line in pipe.lines(name)]
    for one in sorted([*lines, *steps(calls, owner)], key=lambda one: one.at):
        reader.step(one) if isinstance(one, Step) else reader.line(one)
    writes, partial = (sum(getattr(p, what) for p in pipes.values()) for what in ("writes", "partial"))
    cut = sum(bool(pipe.rest) for pipe in pipes.values())
    assert 1 < len(pipes) <= happened["agent-started"]
    assert partial > 0 and reader.kinds["set_model"] > 0 and reader.kinds["interrupt"] > 0
    assert 0 < len(reader.written) <= happened["turn-accepted"]
    return (
        f"{len(pipes)} pipes, {writes} writes ({partial} partial) by 1 thread, {len(lines)} whole lines, {cut} cut by "
        f"an agent's end: {dict(reader.kinds)}"
    )


@traced
def test_one_thread_writes_whole_lines_each_after_its_step(sessiond: Start, tmp_path: Path, figures: Figures) -> None:
    size = Size(3, 10.0, 1_900_000) if FULL else Size(2, 3.0, 1_900_000)
    run_load(sessiond, scripted_env(), tmp_path, size, figures)


@traced
@pytest.mark.skipif(not FULL, reason="of the full form")
def test_one_thread_writes_to_the_real_claude(sessiond: Start, model: Model, tmp_path: Path, figures: Figures) -> None:
    run_load(sessiond, claude_env(model), tmp_path, Size(2, 60.0, 300_000), figures)


# ---- the order of lines -------------------------------------------------------------------------


def test_a_line_waits_for_the_rest_of_the_previous_line() -> None:
    """The order also holds when the pipe has room again: the agent reads a part of the first line, then stops."""
    heard: list[bytes] = []
    command, ended = ["sh", "-c", "head -c 20000; kill -STOP $$; exec cat"], Event()
    env = {"PATH": os.environ["PATH"]}
    process = AgentProcess.spawn(command, Path("/"), env, heard.extend, lambda *_: ended.set())
    try:
        long, short = b"x" * 10**6, b"interrupt"
        process.write(long + b"\n")
        agent = psutil.Process(process.guard.agent_pid)
        # Do not wait with gevent: it must not write anything meanwhile.
        eventually(lambda: agent.status() == psutil.STATUS_STOPPED, 20)
        process.write(short + b"\n")
        agent.resume()
        with gevent.Timeout(20):
            while len(heard) < 2:
                gevent.sleep(0.01)
        assert heard == [long, short]
    finally:
        process.stop()
        assert ended.wait(20)


# ---- the code -----------------------------------------------------------------------------------


def test_only_the_effects_of_a_step_write_to_the_agent() -> None:
    """Check in the code that only the effects of a committed step write into the pipe."""
    found = set()
    package = SERVICES / "sessiond" / "sessiond"
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and re.search(
                r"(link|process|_input)\.write$|_effects\.act$|\bnb_write$|os\.write$", ast.unparse(node.func)
            ):
                found.add((str(file.relative_to(package)), ast.unparse(node.func)))
    assert found == {
        ("session/pipeline/runner.py", "self._effects.act"),
        ("session/pipeline/effects.py", "link.write"),
        ("session/agent/link.py", "self._process.write"),
        ("agent/process/agent_process.py", "self._input.write"),
        ("agent/process/agent_process.py", "os.write"),
        ("agent/process/agent_process.py", "nb_write"),
        ("agent/process/guard.py", "os.write"),  # the guard's report to the owner
    }
