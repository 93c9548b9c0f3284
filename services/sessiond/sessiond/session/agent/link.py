"""The link between an owner loop and its agent's process: it starts, writes to and ends the process.

The process's output goes into the inbox. The link decides nothing. Each process has a number, so that items of an
earlier process are dropped.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import gevent
import structlog

from sessiond.agent import state as st
from sessiond.agent.machine import KILLED_AFTER
from sessiond.agent.process.agent_process import AgentProcess, InputFull
from sessiond.agent.process.guard_registry import RETRY_SECONDS, GuardId, GuardNote, end_guard
from sessiond.session.agent.items import AgentEvent, AgentItem, AgentLines
from sessiond.session.agent.launch import AgentStart, conversation_known, launch
from sessiond.session.agent.slots import Sleeper, Slots
from sessiond.settings import Settings

log = structlog.get_logger("sessiond.agent")

UNREAD_LIMIT: Final = 8 * 2**20
"""Bytes of lines in the inbox. Beyond that the agent is not read, and blocks on its stdout."""
LINE_WEIGHT: Final = 2 * 2**10
"""Added to the bytes of each line, because callers in the inbox must wait even for a short line."""


def _weight(lines: list[bytes]) -> int:
    return sum(map(len, lines)) + LINE_WEIGHT * len(lines)


class AgentLink:
    """One session's agent process, at most one at a time."""

    def __init__(
        self, name: str, settings: Settings, slots: Slots, owner: Sleeper, put: Callable[[AgentItem], None]
    ) -> None:
        """`put` adds an item to the inbox; it must not block."""
        self._name, self._settings, self._slots, self._owner, self._put = name, settings, slots, owner, put
        self._process: AgentProcess | None = None
        self._number = 0
        """The current process's number."""
        self._last_ended = 0
        """`end` was called for the processes up to this number."""
        self._predecessor_waits = 0
        self._end_reason = ""
        self._unread = 0
        self.guard: dict[str, Any] | None = None
        """The guard of the current tree, as it is stored; None when the tree is gone."""
        self._note = GuardNote(settings.state_dir / "guards" / f"{name}.json")

    @property
    def alive(self) -> bool:
        """Whether a process of this session runs."""
        return self._process is not None

    def start(self, conversation: str, resume: bool) -> None:
        """Start the next process, in its own greenlet. The inbox then gets Spawned or Exited."""
        self._number += 1
        self._end_reason = ""
        gevent.spawn(self._start, self._number, conversation, resume)

    def _start(self, number: int, conversation: str, resume: bool) -> None:
        def on_lines(batch: list[bytes]) -> None:
            self._unread += _weight(batch)
            if self._unread > UNREAD_LIMIT and self._process is not None:
                self._process.pause()
            self._put(AgentLines(number, batch))

        def on_exit(status: int | None, stderr: str) -> None:
            self._slots.give(self._owner)
            self._put(AgentEvent(number, st.Exited(status, stderr, self._end_reason)))

        slot = self._slots.take(self._owner)
        if slot and self._ended(number):
            self._slots.give(self._owner)
            slot = False
        if not slot:
            self._put(AgentEvent(number, st.Exited(None, "", self._end_reason, tried=False)))
            return
        try:
            known = resume or conversation_known(self._settings, conversation)
            process = launch(AgentStart(self._settings, self._name, conversation, known), on_lines, on_exit)
        except Exception as error:
            on_exit(None, str(error))
            return
        if self._ended(number):
            process.stop()
        if number == self._number:
            self._process = process
            self._put(AgentEvent(number, st.Spawned()))

    def _ended(self, number: int) -> bool:
        return number != self._number or number <= self._last_ended

    def write(self, data: bytes) -> None:
        """Write a whole line to stdin; a dead process gets nothing. If too much is unread, the inbox gets Fault."""
        if self._process is None:
            return
        try:
            self._process.write(data)
        except InputFull as error:
            self._put(AgentEvent(self._number, st.Fault("stdin-full", str(error))))

    @property
    def strays(self) -> bool:
        """Whether a process other than the agent runs in its tree."""
        return self._process is not None and self._process.strays

    def end(self, why: str = "") -> None:
        """End the current process, even one that is about to start. The inbox then gets Exited.

        Exited names `why` if no step could record the reason.
        """
        self._last_ended = self._number
        self._end_reason = why
        self._slots.cancel_wait(self._owner)
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Kill the process that did not react to `end`."""
        if self._process is not None:
            self._process.kill()

    def disown(self) -> None:
        """End the current process and ignore its later output."""
        self.end()
        self._number += 1
        self._process = None

    def accepts(self, item: AgentItem) -> bool:
        """Account for an item that left the inbox. Returns whether it comes from the current process."""
        if isinstance(item, AgentLines):
            self._unread -= _weight(item.lines)
        # Of several waits for predecessors only the last one counts.
        if item.process not in (self._number, -self._predecessor_waits):
            return False
        if isinstance(item, AgentEvent):
            if isinstance(item.event, st.Spawned) and self._process is not None:
                self._record_guard(self._process.guard)
            elif isinstance(item.event, st.Exited):
                self._forget_guard()
        return True

    def _record_guard(self, guard: GuardId) -> None:
        try:
            self._note.write(guard)
        except OSError as error:  # a full disk: the step that follows stores it in Redis
            log.warning("the guard is not noted on this machine", session=self._name, error=str(error))
        self.guard = asdict(guard)

    def _forget_guard(self) -> None:
        if self.guard is not None:
            try:
                self._note.remove(GuardId(**self.guard))
            except OSError as error:  # the note names a dead guard; its reader checks that
                log.warning("the guard's note stays on this machine", session=self._name, error=str(error))
        self._process, self.guard = None, None

    def resume_reading(self) -> None:
        """Read the agent again if the inbox is empty enough."""
        if self._process is not None and self._unread < UNREAD_LIMIT // 2:
            self._process.resume()

    # ---- what a predecessor left -------------------------------------------------------------

    def predecessors(self, recorded: dict[str, Any] | None) -> list[GuardId]:
        """Return the guards that may still run: the one recorded in Redis, and the one recorded on this machine."""
        found = [GuardId(**recorded)] if recorded is not None else []
        noted = self._note.read()
        return found if noted is None or noted in found else [*found, noted]

    def found(self, guards: list[GuardId]) -> None:
        """Keep the last of these guards in the record, because it may still run."""
        self.guard = asdict(guards[-1]) if guards else None

    def await_predecessors(self, guards: list[GuardId]) -> None:
        """End these guards. The inbox gets Exited when they are gone; no agent starts before that."""
        self._predecessor_waits += 1
        gevent.spawn(self._await_predecessors, guards, -self._predecessor_waits)

    def _await_predecessors(self, guards: list[GuardId], number: int) -> None:
        for identity in guards:
            while not self._end_guard(identity):
                log.warning("the predecessor's guard still runs", session=self._name, guard=identity.pid)
                gevent.sleep(RETRY_SECONDS)
        self._put(AgentEvent(number, st.Exited(None)))

    def _end_guard(self, guard: GuardId) -> bool:
        try:
            return end_guard(guard, KILLED_AFTER, self._settings.agent_user)
        except Exception:
            # Keep waiting: no agent may start beside one that cannot be seen.
            log.exception("the predecessor's guard cannot be ended", session=self._name, guard=guard.pid)
            return False
