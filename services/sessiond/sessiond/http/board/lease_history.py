"""The last leases of a session, derived from its ledger. Pure: entries in, leases out."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

LIMIT: Final = 100


class LeaseHistory:
    """At most the last `LIMIT` leases, oldest first. Feed it the entries in their order.

    A lease is `{fence, kind, ticket, key, holder, begun, ended, why}`. `ended` and `why` are None until it ends.
    `begun` is None if its grant is older than the first entry read. `why` is `unknown` if the ledger lost its end.
    """

    def __init__(self) -> None:
        self._leases: dict[int, dict[str, Any]] = {}
        self._keys: dict[str, str | None] = {}

    def leases(self) -> list[dict[str, Any]]:
        """The leases, oldest first."""
        return list(self._leases.values())

    def add_keys(self, keys: Mapping[str, str | None]) -> None:
        """Add the keys of tickets whose `taken` entry may be older than the first entry read."""
        self._keys.update(keys)

    def read(self, entries: Iterable[Mapping[str, Any]]) -> set[int]:
        """Apply these entries. Returns the fences of the leases that changed."""
        changed: set[int] = set()
        for entry in entries:
            changed |= self._apply(entry)
        for fence in list(self._leases)[:-LIMIT]:
            del self._leases[fence]
        return changed & self._leases.keys()

    def _apply(self, e: Mapping[str, Any]) -> set[int]:
        match e["event"]:
            case "taken":
                self._keys[e["ticket"]] = e.get("key")
            case "ticket-ended":
                self._keys.pop(e["ticket"], None)
            case "granted":
                return self._begin(e, e["at"], e["at"])
            case "ended" if (lease := self._leases.get(e["fence"])) is not None:
                lease["ended"], lease["why"] = e["at"], e["reason"]
                return {e["fence"]}
            case "snapshot":
                living = e.get("lease") or {"fence": None}
                if living["fence"] is None or living["fence"] in self._leases:
                    return self._end_unrecorded(e["at"], living=living["fence"])
                holders = {t["id"]: t.get("holder") for t in e["tickets"]}
                return self._begin({**living, "holder": holders.get(living["ticket"])}, None, e["at"])
        return set()

    def _begin(self, e: Mapping[str, Any], begun: str | None, now: str) -> set[int]:
        changed = self._end_unrecorded(now)
        self._leases[e["fence"]] = {
            "fence": e["fence"], "kind": e["kind"], "ticket": e["ticket"], "key": self._keys.get(e["ticket"]),
            "holder": e.get("holder"), "begun": begun, "ended": None, "why": None,
        }  # fmt: skip
        return changed | {e["fence"]}

    def _end_unrecorded(self, now: str, living: int | None = None) -> set[int]:
        """End every lease but `living`. A later entry shows that they are over, but their ends are not recorded."""
        found = {f for f, lease in self._leases.items() if lease["ended"] is None and f != living}
        for fence in found:
            self._leases[fence]["ended"], self._leases[fence]["why"] = now, "unknown"
        return found
