"""An agent in memory. It usually writes what claude would write, and sometimes something invalid."""

from collections.abc import Sequence

import orjson

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.messages import NEEDED

Option = tuple[int, str, st.Event]
"""(weight, name, event)."""


class FakeAgent:
    """The agent of one session.

    The test passes the outputs of each step to `receive`. It picks one of `options` and reports it with `choose`.
    """

    def __init__(self) -> None:
        self.launched = self.alive = self.dying = self.interrupted = False
        self.replies: list[st.Event] = []
        self.script: list[st.Event] = []
        self.tasks: frozenset[str] = frozenset()
        self.conversation, self.uuid = "", ""

    def receive(self, outputs: Sequence[st.Output], agent: st.Agent) -> None:
        """Process the outputs of a committed step."""
        for output in outputs:
            match output:
                case st.Launch():
                    self.__init__()  # type: ignore[misc]
                    self.launched, self.conversation = True, agent.conversation
                case st.Kill():
                    self.dying = True
                case st.Write(what=what, data=data) if self.alive:
                    self._written(what.partition(":")[0], orjson.loads(data))

    def _written(self, what: str, line: dict[str, object]) -> None:
        if what == "user":
            self.uuid = str(line["uuid"])
            self.script += [st.Got(m) for m in self._turn()]
        elif "request_id" in line:
            self.replies.append(st.Got(wire.Response(str(line["request_id"]), True, {})))
            self.interrupted |= what == "interrupt"
            if what == "stop_task":
                self.script.append(st.Got(wire.Tasks(frozenset())))

    def _turn(self) -> list[wire.Message]:
        return [
            wire.Lifecycle(self.uuid, "queued"), wire.StateChanged("running"), wire.Lifecycle(self.uuid, "started"),
            wire.Init(self.conversation, "m", NEEDED, "1"), wire.Result((self.uuid,), None, False, "completed", "done"),
            wire.Lifecycle(self.uuid, "completed"), wire.StateChanged("idle"),
        ]  # fmt: skip

    def options(self) -> list[Option]:
        """Return the events that may come next. Without a process there are none."""
        if not (self.launched or self.alive):
            return []
        if self.dying:
            return [(4, "gone", st.Exited(0 if self.alive else None)), *self._spawning(1)]
        if not self.alive:
            return [*self._spawning(8), (1, "gone", st.Exited(None, "cannot start"))]
        return [*self._usual(), *self._odd()]

    def _spawning(self, weight: int) -> list[Option]:
        return [] if self.alive else [(weight, "spawned", st.Spawned())]

    def _usual(self) -> list[Option]:
        found: list[Option] = []
        if self.replies:
            found.append((20, "reply", self.replies[0]))
        if self.script:
            found.append((20, "line", self.script[0]))
            if self.interrupted:
                found.append((20, "obeys", st.Got(wire.Lifecycle(self.uuid, "cancelled"))))
        return found

    def _odd(self) -> list[Option]:
        tasks = frozenset() if self.tasks else frozenset({"b1"})
        found: list[Option] = [
            (1, "gone", st.Exited(1, "died")), (1, "garbage", st.Fault("garbage", "no JSON")),
            (4 if self.tasks else 1, "tasks", st.Got(wire.Tasks(tasks))),
        ]  # fmt: skip
        if self.replies:
            found.append((1, "no", self._refusal()))
        if not self.script:
            found.append((1, "by itself", st.Got(wire.StateChanged("running"))))
        return found

    def _refusal(self) -> st.Event:
        asked = self.replies[0]
        assert isinstance(asked, st.Got) and isinstance(asked.message, wire.Response)
        return st.Got(wire.Response(asked.message.request_id, False, {}, "no"))

    def choose(self, what: str, event: st.Event) -> None:
        """Record that the agent choose this one of its `options`."""
        match what, event:
            case "spawned", _:
                self.alive, self.launched = True, False
            case "gone", _:
                self.__init__()  # type: ignore[misc]
            case (("reply" | "no"), _):
                self.replies.pop(0)
            case "line", _:
                self.script.pop(0)
            case "by itself", _:
                foreign = wire.Result((), "task-notification", False, "completed", "by itself")
                self.script = [st.Got(foreign), st.Got(wire.StateChanged("idle"))]
            case "obeys", _:
                self._obey()
        if isinstance(event, st.Got) and isinstance(event.message, wire.Tasks):
            self.tasks = event.message.ids

    def _obey(self) -> None:
        """End the turn after an interrupt. A turn that has started gets an aborted result."""
        rest = [e.message for e in self.script if isinstance(e, st.Got)]
        started = not any(isinstance(m, wire.Lifecycle) and m.state == "started" for m in rest)
        over = any(isinstance(m, wire.Result) for m in rest)
        self.interrupted = False
        tail: list[wire.Message] = [m for m in rest if isinstance(m, wire.Tasks)]
        if started and over:
            tail.append(wire.Result((self.uuid,), None, True, "aborted_tools", ""))
        self.script = [st.Got(m) for m in (*tail, wire.StateChanged("idle"))]
