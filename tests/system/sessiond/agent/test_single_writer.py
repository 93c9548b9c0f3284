"""One writer: what a storm of tickets, cancels, model switches and force-releases puts into agents' stdin, by strace.

Threads are the kernel's here, and all greenlets share one. That the writing greenlet is the owner loop's shows in the
order: nothing is written whose step was not committed before, as the owner's own calls to Redis in the same trace tell.
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


# ---- the storm ---------------------------------------------------------------------------------


class Storm:
    """Callers on some sessions, and for each an operator who ends the turns and leases that he finds."""

    ENOUGH: Final = {"turn": 8, "big": 1, "cut": 2, "preempted": 1, "cancel": 1, "force": 1, "restart": 1, "look": 2}

    def __init__(self, service: Sessiond, sessions: list[str], big: int) -> None:
        self._service, self._sessions, self._big = service, sessions, big
        self._over = threading.Event()
        self._at_work = {session: threading.Event() for session in sessions}
        self.done: Counter[str] = Counter()
        """What was done: turns completed, big ones among them, others of those cut while they were being written,
        workers' turns preempted, each of the operator's acts;
        `look`: every process's open files were looked at, and only the owner and its agent had the agent's stdin."""

        self.others: list[Any] = []
        """Who else had an agent's stdin open when that was looked at last."""

    def run(self, seconds: float) -> None:
        """For so long, and until there was enough of everything."""
        doings = [(self._operator, s) for s in self._sessions] + [(self._worker, s) for s in self._sessions]
        doings += [(self._handler, s) for s in self._sessions for _ in range(2)]
        threads = [threading.Thread(target=do, args=(s, random.Random(n))) for n, (do, s) in enumerate(doings)]
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
            time.sleep(dice.uniform(0.0, 0.3))  # the random moment is what is tried
            try:
                if dice.random() < 0.6:
                    next(doing)(client, session, view)
            except SessiondError:  # it was over by then
                continue

    def _cancel(self, client: Client, session: str, view: dict[str, Any]) -> None:
        client._transport.call("DELETE", f"/turns/{view['turn']}", session=session)
        self.done["cancel"] += 1

    def _force(self, client: Client, session: str, view: dict[str, Any]) -> None:
        client.force_release(session, (view["holder"] or view["draining"])["fence"], "the storm's")
        self.done["force"] += 1

    def _force_twice(self, client: Client, session: str, view: dict[str, Any]) -> None:
        self._force(client, session, view)
        self._force(client, session, view)

    def _restart(self, client: Client, session: str, _: dict[str, Any]) -> None:
        client.restart_agent(session)
        self.done["restart"] += 1

    def _look(self, session: str) -> None:
        """Who has the stdin of the agent that runs now; a guard lets go of it just after the agent's start."""
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
    """Who on this machine has this pipe open: (pid, reads or writes), writers first."""
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
        except OSError:  # it ended, or closed the file meanwhile
            continue
    return sorted(found, key=lambda one: one[1], reverse=True)


# ---- what the trace says ------------------------------------------------------------------------


@dataclass(slots=True)
class Line:
    """A line that was written to an agent."""

    at: int
    """The trace's place of its first byte."""
    pipe: str
    value: dict[str, Any]


@dataclass(slots=True)
class Step:
    """A step that the owner committed."""

    at: int
    """The trace's place at which Redis's answer had come back."""
    session: str
    ledger: list[tuple[str, dict[str, Any]]]
    turns: list[dict[str, Any]]
    """The records of turns that it wrote."""


@dataclass(slots=True)
class Pipe:
    """An agent's stdin."""

    data: bytearray = field(default_factory=bytearray)
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(offset in `data`, place in the trace) of each write."""
    threads: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    writes: int = 0
    partial: int = 0
    shown: bool = True
    """Whether the trace has all that was written."""

    def lines(self, name: str) -> Iterator[Line]:
        """The lines; one that the agent's end cut off is none."""
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
    """Every pipe that begins as an agent's stdin does, with all that anybody wrote into it."""
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
    assert all(pipe.shown for pipe in found.values()), "strace shows all that was written"
    return found


def steps(calls: Iterable[Call], owner: int) -> Iterator[Step]:
    """The steps that were answered `APPLIED`, from what went over the owner's connections to Redis."""
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
    """The words of one command on the wire."""
    head, _, rest = data.partition(b"\r\n")
    for _ in range(int(head[1:])):
        size, _, rest = rest.partition(b"\r\n")
        yield rest[: int(size[1:])]
        rest = rest[int(size[1:]) + 2 :]


class Reader:
    """Steps and lines of all sessions in their order: each line must have its committed cause."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        """By session, the turn that is open."""
        self.turns: dict[str, tuple[str, str]] = {}
        """By uuid, (session, turn) of what was accepted."""
        self.sessions: dict[str, str] = {}
        """By pipe."""
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
            assert value["uuid"] in self.turns, "its turn-accepted is committed"
            session, turn = self.turns[value["uuid"]]
            assert self.open.get(session) == turn, "it is the open turn's, and the one before was closed"
            assert value["uuid"] not in self.written, "each uuid is fresh"
            assert self.sessions.setdefault(line.pipe, session) == session, "a pipe is one session's"
            self.written.add(value["uuid"])
        elif value["type"] == "control_request":
            self.kinds[value["request"]["subtype"]] += 1
            if value["request"]["subtype"] == "interrupt":
                session = self.sessions[line.pipe]
                assert value["request"]["cancel_queued"] is True
                assert {session, self.open.get(session)} & self.caused, (
                    "its `interrupt` is committed, and its turn open"
                )


def storm(
    sessiond: Start, env: dict[str, str], place: Path, sessions: int, seconds: float, big: int, figures: Figures
) -> None:
    """A storm on a traced service; then what its ledgers and the trace say."""
    trace, names = Strace(place / "trace"), [f"octo/s{n}" for n in range(sessions)]
    service = sessiond(env, under=trace.under)
    tracer = psutil.Process(trace.follows(service.pid))
    (owner,) = psutil.Process(service.pid).children()
    done = Storm(service, names, big)
    done.run(seconds)
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
    """What the trace of a storm shows, in a line; asserts what must hold."""
    pipes, reader = stdins(calls), Reader()
    assert {thread for pipe in pipes.values() for thread in pipe.threads} == {owner}, "one thread writes, the owner's"
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
    storm(sessiond, scripted_env(), tmp_path, 3 if FULL else 2, 10.0 if FULL else 3.0, 1_900_000, figures)


@traced
@pytest.mark.skipif(not FULL, reason="of the full form")
def test_one_thread_writes_to_the_real_claude(sessiond: Start, model: Model, tmp_path: Path, figures: Figures) -> None:
    storm(sessiond, claude_env(model), tmp_path, 2, 60.0, 300_000, figures)


# ---- one line after the other -------------------------------------------------------------------


def test_a_line_waits_for_the_rest_of_the_one_before() -> None:
    """Also when the pipe has room again: the agent reads a part of the first line, and stands still."""
    heard: list[bytes] = []
    command, ended = ["sh", "-c", "head -c 20000; kill -STOP $$; exec cat"], Event()
    env = {"PATH": os.environ["PATH"]}
    process = AgentProcess.spawn(command, Path("/"), env, heard.extend, lambda *_: ended.set())
    try:
        long, short = b"x" * 10**6, b"interrupt"
        process.write(long + b"\n")
        agent = psutil.Process(process.guard.agent_pid)
        # Not gevent's to wait: nothing else may be written meanwhile.
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


# ---- and in the code ----------------------------------------------------------------------------


def test_only_the_steps_acts_write_to_the_agent() -> None:
    """The chain from a committed step to the pipe has no other beginning."""
    found = set()
    package = SERVICES / "sessiond" / "sessiond"
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and re.search(
                r"(link|process|_input)\.write$|_acts\.act$|\bnb_write$|os\.write$", ast.unparse(node.func)
            ):
                found.add((str(file.relative_to(package)), ast.unparse(node.func)))
    assert found == {
        ("session/pipeline/steps.py", "self._acts.act"),
        ("session/pipeline/effects.py", "self._link.write"),
        ("session/agent/link.py", "self._process.write"),
        ("agent/process/agent_process.py", "self._input.write"),
        ("agent/process/agent_process.py", "os.write"),
        ("agent/process/agent_process.py", "nb_write"),
        ("agent/process/guard.py", "os.write"),  # its report to the owner
    }
