"""Reads a ledger and says whether the rules were kept. Pure, linear, and shares no code with the machines.

Works on the entries as HTTP gives them. A trimmed ledger is read from its first `snapshot` on. What
it counts as wrong is named as in the list of invariants in docs/architecture.md. A single entry is judged
when it is read (tickets.py, leases.py, turns.py, snapshots.py), the rest at the end of its step (steps.py).
"""

from sessiond.verify.reader import Reader, Unreadable, verify
from sessiond.verify.report import Report

__all__ = ["Reader", "Report", "Unreadable", "verify"]
