"""The report about a ledger."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Report:
    """Counts and violations. `violations` are (invariant, entry id, text)."""

    entries: int = 0
    handoffs: int = 0
    inversions: int = 0
    """Grants to the worker while a handler's ticket that had not lapsed was queued."""
    misorders: int = 0
    """Grants ahead of a lower score that was neither passed over nor lapsed."""
    preemptions: int = 0
    order: list[str] = field(default_factory=list)
    """The granted tickets, in order."""
    violations: list[tuple[str, str, str]] = field(default_factory=list)
