"""The ledger checker: reads a ledger and reports broken invariants. Pure, and linear in the number of entries.

It shares no code with the machines that write the ledger. It reads entries as HTTP returns them. A trimmed
ledger is checked from its first `snapshot` on. Violations have the names of the invariants in
docs/concepts/invariants.md. Each entry is checked when it is read (`tickets`, `leases`, `turns`, `snapshots`), each
step when all of its entries are read (`steps`).
"""

from sessiond.verify.reader import Reader, Unreadable, verify
from sessiond.verify.report import Report

__all__ = ["Reader", "Report", "Unreadable", "verify"]
