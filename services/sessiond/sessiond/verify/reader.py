"""Reads ledger entries in order, groups them into steps and checks each one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from sessiond.verify import leases, snapshots, tickets, turns
from sessiond.verify.report import Report
from sessiond.verify.state import LedgerStep, State
from sessiond.verify.steps import step_over

Entry = Mapping[str, Any]


class Unreadable(ValueError):
    """An entry is malformed: a field is missing or has an impossible value."""


class Reader:
    """Reads one session's ledger, entry by entry. Skips entries before the first epoch or snapshot."""

    def __init__(self) -> None:
        self._state = State()
        self._id: tuple[int, int] | None = None
        self._epoch: int = 0
        self._version: int | None = None

    @property
    def report(self) -> Report:
        """The counts and violations since the last `take`."""
        return self._state.report

    @property
    def known(self) -> bool:
        """Whether a snapshot was read. Nothing is checked before that."""
        return self._state.known

    def read(self, entry: Entry) -> None:
        """Read the next entry.

        Raises:
            Unreadable: the entry is malformed. This reader cannot be used any further.
        """
        try:
            self._read(entry)
        except KeyError as error:
            raise Unreadable(f"{_name(entry)} lacks {error.args[0]}") from error
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise Unreadable(f"{_name(entry)} cannot be read: {error}") from error

    def _read(self, entry: Entry) -> None:
        event = entry["event"]
        if self._version is None and event not in _BEGINS:
            return
        self._number(entry, event)
        self._state.report.entries += 1
        if self._state.known or event in _BEGINS:
            reader = _READERS.get(event)
            if reader is not None:
                reader(self._state, entry)

    def _number(self, entry: Entry, event: str) -> None:
        """Check the entry's id, epoch and version, and begin a new step if they change.

        All entries of a step have one version and one epoch, come from one writer, and are adjacent.
        """
        now = _id_of(entry["id"])
        epoch, version = int(entry["epoch"]), int(entry["version"])
        before, last = self._id, self._version
        new = (epoch, version) != (self._epoch, last)
        if new:
            self.step_over()
            self._state.step = LedgerStep()
        self._state.id = str(entry["id"])
        if before is not None and now <= before:
            self._state.wrong("single_writer", f"the entry's id is not above the previous id {before[0]}-{before[1]}")
        if new and last is not None:
            self._order(entry, event, epoch, version, last)
        self._id, self._epoch, self._version = now, epoch, version

    def _order(self, entry: Entry, event: str, epoch: int, version: int, last: int) -> None:
        wrong = self._state.wrong
        if version <= last:
            wrong("single_writer", f"version {version} follows {last}")
        elif version > last + 1 and event != "restored":
            wrong("single_writer", f"version {version} follows {last}: steps are missing")
        again = event == "epoch" and entry.get("predecessor") != "refused-step"
        if epoch < self._epoch or (epoch == self._epoch and again):
            wrong("single_writer", f"epoch {epoch} follows {self._epoch}")
        elif epoch > self._epoch and event not in ("epoch", "restored"):
            wrong("single_writer", f"epoch {epoch} follows {self._epoch} without an epoch entry")

    def step_over(self) -> None:
        """Check the end of the last step. Call it only at the end of the ledger, or of a page that is not full."""
        step_over(self._state)

    def take(self) -> Report:
        """Return what was found since the last call, and start a new report."""
        found, self._state.report = self._state.report, Report()
        return found


def verify(entries: Iterable[Entry]) -> Report:
    """Check a whole ledger.

    Raises:
        Unreadable: an entry is malformed.
    """
    reader = Reader()
    for entry in entries:
        reader.read(entry)
    reader.step_over()
    return reader.report


def _name(entry: object) -> str:
    found = entry.get("event") if isinstance(entry, Mapping) else None
    return found if isinstance(found, str) else "an entry"


def _id_of(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition("-")
    return int(milliseconds), int(number)


_BEGINS: Final = frozenset({"epoch", "restored", "snapshot"})
_READERS: Final[Mapping[str, Callable[[State, Entry], None]]] = {
    "taken": tickets.taken,
    "present": tickets.present,
    "absent": tickets.absent,
    "superseded": tickets.superseded,
    "passed-over": tickets.passed_over,
    "lapsed": tickets.lapsed,
    "back": tickets.back,
    "ticket-ended": tickets.ticket_ended,
    "granted": leases.granted,
    "claimed": leases.claimed,
    "ended": leases.ended,
    "draining": leases.draining,
    "drained": leases.drained,
    "force-release": leases.force_release,
    "turn-accepted": turns.accepted,
    "turn-started": turns.started,
    "interrupt": turns.interrupt,
    "turn-closed": turns.closed,
    "tasks": turns.tasks,
    "agent-starting": turns.agent_starting,
    "agent-started": turns.agent_started,
    "agent-stopping": turns.agent_stopping,
    "agent-killed": turns.agent_killed,
    "agent-reaped": turns.agent_reaped,
    "epoch": snapshots.epoch,
    "restored": snapshots.restored,
    "snapshot": snapshots.snapshot,
}
