"""The owner loop's line to its agent's process: starting, writing, ending, and what comes back into the inbox.

It decides nothing. Each process has a number, its life; what an earlier life still says is dropped.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import gevent
import structlog

from sessiond.agent import state as st
from sessiond.agent.machine import KILLED_AFTER
from sessiond.agent.process.agent_process import AgentProcess, InputFull
from sessiond.agent.process.guard_registry import AGAIN, GuardId, GuardNote, end_guard
from sessiond.session.agent.launch import conversation_known, launch
from sessiond.session.agent.slots import Sleeper, Slots
from sessiond.settings import Settings

log = structlog.get_logger("sessiond.agent")

UNREAD_LIMIT: Final = 8 * 2**20
"""Bytes of lines in the inbox; beyond them the agent is not read, and will wait on its stdout."""
LINE_WEIGHT: Final = 2 * 2**10
"""What a line counts for besides its bytes: callers stand behind it in the inbox, however short it is."""


@dataclass(slots=True)
class FromAgent:
    """Lines, the start, a fault, or the end of the process of this life. Below 0: of what a predecessor left."""

    life: int
    lines: list[bytes] | None = None
    event: st.Event | None = None


def _weight(lines: list[bytes]) -> int:
    return sum(map(len, lines)) + LINE_WEIGHT * len(lines)


class AgentLink:
    """One session's agent process, at most one at a time."""

    def __init__(
        self, name: str, settings: Settings, slots: Slots, owner: Sleeper, put: Callable[[FromAgent], None]
    ) -> None:
        self._name, self._settings, self._slots, self._owner, self._put = name, settings, slots, owner, put
        self._process: AgentProcess | None = None
        self._life = 0
        self._condemned = 0
        self._waits = 0
        self._why = ""
        self._unread = 0
        self.guard: dict[str, Any] | None = None
        """The living guard, as it is stored; None when the tree is gone."""
        self._note = GuardNote(settings.state_dir / "guards" / f"{name}.json")

    @property
    def alive(self) -> bool:
        """Whether a process of ours runs."""
        return self._process is not None

    def start(self, conversation: str, resume: bool) -> None:
        """Starts the next life, in its own greenlet; Spawned or Exited follows in the inbox."""
        self._life += 1
        self._why = ""
        gevent.spawn(self._start, self._life, conversation, resume)

    def _start(self, life: int, conversation: str, resume: bool) -> None:
        def lines(batch: list[bytes]) -> None:
            self._unread += _weight(batch)
            if self._unread > UNREAD_LIMIT and self._process is not None:
                self._process.pause()
            self._put(FromAgent(life, lines=batch))

        def gone(status: int | None, stderr: str) -> None:
            self._slots.give(self._owner)
            self._put(FromAgent(life, event=st.Exited(status, stderr, self._why)))

        slot = self._slots.take(self._owner)
        if slot and self._over(life):
            self._slots.give(self._owner)
            slot = False
        if not slot:
            self._put(FromAgent(life, event=st.Exited(None, "", self._why, tried=False)))
            return
        try:
            known = resume or conversation_known(self._settings, conversation)
            process = launch(self._settings, self._name, conversation, known, lines, gone)
        except Exception as error:
            gone(None, str(error))
            return
        if self._over(life):
            process.stop()
        if life == self._life:
            self._process = process
            self._put(FromAgent(life, event=st.Spawned()))

    def _over(self, life: int) -> bool:
        return life != self._life or life <= self._condemned

    def write(self, data: bytes) -> None:
        """A whole line to stdin; to a dead process nothing. If too much is unread there, Fault follows in the inbox."""
        if self._process is None:
            return
        try:
            self._process.write(data)
        except InputFull as error:
            self._put(FromAgent(self._life, event=st.Fault("stdin-full", str(error))))

    @property
    def strays(self) -> bool:
        """Whether anything but the agent itself lives in its tree."""
        return self._process is not None and self._process.strays

    def end(self, why: str = "") -> None:
        """Ends this life, also one that is only about to start. Exited follows; it says `why` if no step could."""
        self._condemned = self._life
        self._why = why
        self._slots.forgo(self._owner)
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Last resort, when `end` did not help."""
        if self._process is not None:
            self._process.kill()

    def disown(self) -> None:
        """Ends this life and hears no more of it."""
        self.end()
        self._life += 1
        self._process = None

    def accepts(self, item: FromAgent) -> bool:
        """Takes an item out of the inbox: keeps the accounts, says whether it is of the present life."""
        if item.lines is not None:
            self._unread -= _weight(item.lines)
        if item.life not in (self._life, -self._waits):  # only the last wait for predecessors counts
            return False
        if isinstance(item.event, st.Spawned) and self._process is not None:
            self._known(self._process.guard)
        elif isinstance(item.event, st.Exited):
            self._gone()
        return True

    def _known(self, guard: GuardId) -> None:
        try:
            self._note.write(guard)
        except OSError as error:  # a full disk: the step that follows stores it in Redis
            log.warning("the guard is not noted on this machine", session=self._name, error=str(error))
        self.guard = asdict(guard)

    def _gone(self) -> None:
        if self.guard is not None:
            try:
                self._note.remove(GuardId(**self.guard))
            except OSError as error:  # it names one that is gone: whoever reads it finds that out
                log.warning("the guard's note stays on this machine", session=self._name, error=str(error))
        self._process, self.guard = None, None

    def flow(self) -> None:
        """Reads on, once the inbox is emptier."""
        if self._process is not None and self._unread < UNREAD_LIMIT // 2:
            self._process.resume()

    def predecessors(self, recorded: dict[str, Any] | None) -> list[GuardId]:
        """The guards that may still live: the one that Redis knows of, and the one that this machine does."""
        found = [GuardId(**recorded)] if recorded is not None else []
        noted = self._note.read()
        return found if noted is None or noted in found else [*found, noted]

    def found(self, guards: list[GuardId]) -> None:
        """These may still live; the last of them is recorded further on."""
        self.guard = asdict(guards[-1]) if guards else None

    def await_predecessors(self, guards: list[GuardId]) -> None:
        """Ends these guards. An Exited follows once they are gone: nobody starts an agent before."""
        self._waits += 1
        gevent.spawn(self._await_predecessors, guards, -self._waits)

    def _await_predecessors(self, guards: list[GuardId], life: int) -> None:
        for identity in guards:
            while not self._ended(identity):
                log.warning("the predecessor's guard still runs", session=self._name, guard=identity.pid)
                gevent.sleep(AGAIN)
        self._put(FromAgent(life, event=st.Exited(None)))

    def _ended(self, guard: GuardId) -> bool:
        try:
            return end_guard(guard, KILLED_AFTER, self._settings.agent_user)
        except Exception:
            # Whoever waits for this must go on waiting: nothing may start beside what cannot be seen.
            log.exception("the predecessor's guard cannot be ended", session=self._name, guard=guard.pid)
            return False
