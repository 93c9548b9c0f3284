"""The last leases of a session, as read from its ledger."""

from typing import Any

from sessiond.http.board.lease_history import LIMIT, LeaseHistory


def granted(fence: int, ticket: str = "tk", at: str = "t1") -> dict[str, Any]:
    return {"event": "granted", "fence": fence, "kind": "handler", "ticket": ticket, "holder": "h", "at": at}


def ended(fence: int, reason: str = "released", at: str = "t2") -> dict[str, Any]:
    return {"event": "ended", "fence": fence, "reason": reason, "at": at}


def test_a_lease_has_its_key_its_times_and_the_reason_of_its_end() -> None:
    history = LeaseHistory()
    assert history.read([{"event": "taken", "ticket": "tk", "key": "k", "at": "t0"}, granted(1)]) == {1}
    lease = {"fence": 1, "kind": "handler", "ticket": "tk", "key": "k", "holder": "h", "begun": "t1"}
    assert history.leases() == [{**lease, "ended": None, "why": None}]
    assert history.read([ended(1, "preempted")]) == {1}
    assert history.leases() == [{**lease, "ended": "t2", "why": "preempted"}]


def test_a_lease_whose_end_is_not_recorded_ends_with_the_next_grant() -> None:
    history = LeaseHistory()
    assert history.read([granted(1), granted(2, at="t5")]) == {1, 2}
    assert [(v["fence"], v["ended"], v["why"]) for v in history.leases()] == [(1, "t5", "unknown"), (2, None, None)]


def test_a_snapshot_adds_a_living_lease_and_ends_the_others() -> None:
    history = LeaseHistory()
    history.add_keys({"tk-2": "older"})
    living = {"fence": 2, "kind": "worker", "ticket": "tk-2"}
    snapshot = {"event": "snapshot", "at": "t9", "lease": living, "tickets": [{"id": "tk-2", "holder": "w"}]}
    assert history.read([granted(1), snapshot]) == {1, 2}
    assert history.leases()[1] == {**living, "key": "older", "holder": "w", "begun": None, "ended": None, "why": None}
    assert history.read([snapshot]) == set()
    assert history.read([{"event": "snapshot", "at": "t10", "lease": None, "tickets": []}]) == {2}
    assert [v["why"] for v in history.leases()] == ["unknown", "unknown"]


def test_only_the_last_leases_are_kept() -> None:
    history = LeaseHistory()
    count = LIMIT + 5
    changed = history.read([entry for n in range(count) for entry in (granted(n), ended(n))])
    assert [v["fence"] for v in history.leases()] == list(range(5, count)) == sorted(changed)
    assert history.read([ended(0)]) == set()
