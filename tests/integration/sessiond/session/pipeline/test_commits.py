"""Processes that are stopped for a while and resume: the only sessiond, a replaced owner, a holder, a waiter."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from sessiond.agent.state import Agent
from sessiond.client import Client, LeaseLost, SessiondError, TurnResult
from sessiond.lock.state import Lock
from sessiond.session.pipeline.commits import Commits
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.step import Step
from sessiond.store.codec import put
from sessiond.store.store import Store
from sessiond.verify import verify
from support.servers import Caller, Redis, Sessiond, alive, eventually, scripted_env
from support.session.calls import events, lease_call
from support.size import FULL
from support.summary import Row

SESSION = "octo/hello"
Start = Callable[..., Sessiond]
StartCaller = Callable[..., Caller]

STALL = 40.0 if FULL else 4.5
ALONE = {"absence": 20.0, "max_hold": 35.0} if FULL else {
    "lease_ttl": 3.0, "claim_window": 1.5, "absence": 2.0, "max_hold": 4.0, "owner_ttl": 3.0, "owner_renew": 0.5,
    "owner_doubt": 2.0,
}  # fmt: skip
"""Each time except owner_doubt is shorter than the stall, and longer than the test needs without a stall."""
PAIR = {} if FULL else {"owner_ttl": 2.0, "owner_renew": 0.5, "owner_doubt": 1.2, "lease_ttl": 8.0}
LEASE_TTL = 30.0 if FULL else 8.0


def ledger_of(client: Client, session: str = SESSION) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while entries := client.ledger(session, found[-1]["id"] if found else None):
        found += entries
    return found


def one_secret_each(entries: list[dict[str, Any]]) -> None:
    """Check that the ledger breaks no rule and that every fence was granted once."""
    assert verify(entries).violations == []
    fences = [e["fence"] for e in entries if e["event"] == "granted"]
    assert len(fences) == len(set(fences))


class LeaseThread(threading.Thread):
    """A lease with one turn in its own thread. `result` is the turn's result or the exception."""

    def __init__(self, client: Client, session: str, key: str, prompt: str | None = None, ttl: float = 30.0) -> None:
        super().__init__(daemon=True)
        self.client, self.session, self.key, self.prompt, self.ttl = client, session, key, prompt, ttl
        self.result: TurnResult | SessiondError | None = None
        self.fence = 0
        self.granted, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with self.client.lease(self.session, key=self.key, lease_ttl=self.ttl) as lease:
                self.fence = lease.fence
                self.granted.set()
                if self.prompt is not None:
                    self.result = lease.turn(self.prompt).result()
                self.leave.wait(120)
        except SessiondError as error:
            self.result = error


# ---- one instance ----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("where", ["between-steps", "within-a-step"])
def test_a_paused_sessiond_keeps_all_leases_and_places_when_it_resumes(
    sessiond: Start, redis_server: Redis, matrix: Row, where: str
) -> None:
    """Lease, absence and max_hold are shorter than the stall. Each gets its full time again after the stall."""
    service = sessiond(scripted_env(**ALONE))
    client = service.client()
    ttl = ALONE.get("lease_ttl", 30.0)
    holder = LeaseThread(service.client(), SESSION, "holder", "#tokens 250\n#pace 10ms\n#say through", ttl)
    eventually(lambda: any(e["event"] == "turn-started" for e in client.ledger(SESSION)))
    waiters = []
    for key in ("b", "c"):
        waiters.append(LeaseThread(service.client(), SESSION, key, None, ttl))
        eventually(lambda key=key: any(t["key"] == key and t["present"] for t in client.view(SESSION)["queue"]))
    client.take(SESSION, key="nobody-waits")
    before = client.view(SESSION)
    asked = threading.Thread(target=_try_to_take, args=(service.client(), "within"), daemon=True)
    if where == "within-a-step":
        redis_server.pause()
        asked.start()
        time.sleep(0.2)  # the step is on its way to Redis
    service.pause()
    redis_server.resume()
    time.sleep(STALL)
    service.resume()
    eventually(lambda: holder.result is not None, 30, service.log_text)
    result, now = holder.result, client.view(SESSION)
    assert isinstance(result, TurnResult) and result.outcome in ("completed", "lost"), result
    ended = [e for e in ledger_of(client) if e["event"] == "ended"]
    assert ended == []
    assert now["holder"]["fence"] == before["holder"]["fence"] == holder.fence
    assert [t["id"] for t in now["queue"]][: len(before["queue"])] == [t["id"] for t in before["queue"]]
    assert now["epoch"] == before["epoch"]
    for one in (holder, *waiters):
        assert one.granted.wait(30)
        one.leave.set()
        one.join(30)
    entries = ledger_of(client)
    one_secret_each(entries)
    assert [e["reason"] for e in entries if e["event"] == "ended"] == ["released"] * 3
    # A ticket without a waiter gets its full absence again, and lapses only afterwards.
    assert not [e for e in entries[: _index(entries, "ended")] if e["event"] == "lapsed"]
    assert where == "within-a-step" or (result.outcome, result.text) == ("completed", "through")
    matrix("stalls", stopped="the only sessiond", at=where, seconds=STALL, turn=result.outcome, leases="kept")


def _try_to_take(client: Client, key: str) -> None:
    try:
        client.take(SESSION, key=key, patience=60)
    except SessiondError:
        return


def _index(entries: list[dict[str, Any]], event: str) -> int:
    return next(i for i, e in enumerate(entries) if e["event"] == event)


def test_a_commit_confirms_the_ownership_at_the_time_it_was_sent(redis_server: Redis) -> None:
    """A commit confirms the ownership at the time when it was sent, because the process may have stopped since then."""
    store = Store(redis_server.url, SESSION, "one")
    commits = Commits(store, 1, 0, lambda: ([], []))
    commits.push(a_step(), lambda: None)
    assert commits.unconfirmed < 1
    redis_server.pause()
    threading.Timer(1.2, redis_server.resume).start()
    commits.push(a_step(), lambda: None)
    assert commits.unconfirmed >= 1
    store.close()


def a_step() -> Step:
    return Step(Plan(Lock(), Agent("c")), commands=[put("open", {})])


# ---- an owner that was replaced --------------------------------------------------------------

MOMENTS = {
    "idle": "",
    "in-turn": "[in-turn]\n#tokens 100000\n#pace 10ms",
    "question": '[question]\n#ask Read {"file_path": "x"}',
    "accepted": "[accepted]\n#say done",
    "starting": "[starting]\n#say done",
}
"""The state of the owner when it is stopped.

Its agent is idle, or its turn runs, or has asked for permission, or is committed but not written. In the last case the
agent is idle or asleep."""
ACCEPTED = ("accepted", "starting")


def session_of(moment: str) -> str:
    return f"octo/{moment}"


def hold_first_instance(first: Sessiond, hooks: Path) -> dict[str, LeaseThread]:
    """Bring the first instance to each moment, each in its own session."""
    client = first.client()
    for moment in ("idle", "accepted"):
        with client.lease(session_of(moment), key="before") as lease:
            assert lease.turn(f"before {moment}").result().completed
    found: dict[str, LeaseThread] = {}

    def hold(moment: str) -> None:
        found[moment] = LeaseThread(first.client(), session_of(moment), "k", MOMENTS[moment], LEASE_TTL)
        eventually(lambda: client.view(session_of(moment))["turn"])

    (hooks / "question.hold").touch()
    hold("in-turn")
    hold("question")
    eventually((hooks / "question.reached").exists)
    eventually(lambda: prompts_of(first, "in-turn") == 1)
    for moment in ACCEPTED:
        (hooks / session_of(moment)).mkdir(parents=True)
        (hooks / session_of(moment) / "committed.turn-accepted.hold").touch()
        hold(moment)
    return found


def prompts_of(service: Sessiond, moment: str) -> int:
    """Return how many user lines of this moment the agents of this instance ever received."""
    files = (service.state / "claude" / "projects" / "scripted").glob("*.jsonl")
    return sum(f"[{moment}]" in line for file in files for line in file.read_text().splitlines())


def ask(service: Sessiond, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Call this instance only. A 421 is not followed."""
    answer = service.client().transport._pool.request(
        method, f"{service.url}/v1/sessions/{path}", json=body, headers={"Authorization": "Bearer admin-key"},
        retries=False, timeout=20,
    )  # fmt: skip
    return answer.status, answer.json()


def epoch_of(service: Sessiond, moment: str) -> int:
    """Return the session's epoch if this instance owns it, else 0."""
    status, body = ask(service, "GET", session_of(moment))
    return int(body["epoch"]) if status == 200 else 0


def move_guards(redis_server: Redis) -> None:
    """Change the records as if the guards ran on another machine."""
    with redis_library.Redis.from_url(redis_server.url) as redis:
        for moment in MOMENTS:
            key = f"sessiond:{{{session_of(moment)}}}:agent"
            agent = json.loads(redis.get(key))
            if agent["guard"]:
                agent["guard"]["boot_id"] = "another-machine"
                redis.set(key, json.dumps(agent))


@pytest.mark.long
@pytest.mark.parametrize("guards", ["here", "elsewhere"])
def test_an_owner_that_was_replaced_while_paused_writes_nothing_when_it_resumes(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Row, guards: str
) -> None:
    """The replaced owner writes neither to Redis nor to its agents, not even a prompt that it has committed.

    The second instance stops the first one's agents before it starts its own. It cannot see agents on another machine
    (another boot id). In that case the first instance must write nothing when it resumes.
    """
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    first = sessiond(scripted_env(**PAIR) | {"SESSIOND_HOOKS_DIR": str(hooks)}, name="a")
    holders = hold_first_instance(first, hooks)
    first.pause()
    heard = [first.state / "work" / session_of(moment) / "heard" for moment in MOMENTS]
    for file in heard:
        file.touch()
    # Started only now, because on a slow machine it could take over from an owner that is only late.
    second = sessiond(scripted_env(**PAIR), name="b")
    other = second.client()
    agents = [one for one in first._seen.values() if one not in first._paused]
    if guards == "elsewhere":
        move_guards(redis_server)
    epochs = {m: eventually(lambda m=m: epoch_of(second, m), 60, second.log_text) for m in MOMENTS}
    if guards == "here":
        eventually(lambda: not [a for a in agents if alive(a)], 20, "the first one's agents are ended")
    with other.lease(session_of("idle"), key="goes-on") as lease:
        assert lease.turn("goes on").result().completed
    for moment in MOMENTS:
        eventually(lambda m=moment: not other.view(session_of(m))["turn"], 20, "the turn that was cut is lost")
    seen = {m: ledger_of(other, session_of(m))[-1]["id"] for m in MOMENTS}
    for point in ("question", *(f"{session_of(moment)}/committed.turn-accepted" for moment in ACCEPTED)):
        (hooks / f"{point}.hold").unlink()
    first.resume()
    for moment in MOMENTS:
        status, body = ask(first, "POST", f"{session_of(moment)}/tickets", {"kind": "handler", "key": "late"})
        assert (status, body["type"], body.get("owner_url")) == (421, "not-owner", second.url), moment
    eventually(lambda: not [a for a in agents if alive(a)], 20, "the first one's agents are ended")
    assert [file.read_text() for file in heard] == [""] * len(heard), "the replaced owner wrote to its agents"
    for moment, holder in holders.items():
        eventually(lambda h=holder: h.result is not None, 60, f"{moment}: {first.log_text()}")
        holder.leave.set()
        holder.join(30)
    for moment in MOMENTS:
        entries = ledger_of(other, session_of(moment))
        one_secret_each(entries)
        result = [e["epoch"] for e in entries]
        assert result == sorted(result), "an entry of the old epoch follows the first entry of the new one"
        assert {e["epoch"] for e in entries if after(e["id"], seen[moment])} <= {epochs[moment]}
    for moment, holder in holders.items():
        written = prompts_of(first, moment), prompts_of(second, moment)
        what = holder.result.outcome if isinstance(holder.result, TurnResult) else repr(holder.result)
        matrix(
            "stalls", stopped=f"an owner, its guard {guards}", at=moment, seconds="until replaced", turn=what,
            leases="kept", written=f"{written[0]} + {written[1]}",
        )  # fmt: skip
        begun = moment in ("in-turn", "question")
        assert written[0] == begun, "the replaced owner wrote a prompt"
        assert sum(written) <= 1, "a prompt was written twice"
        assert not begun or what == "lost"


def after(one: str, other: str) -> bool:
    """Return whether the ledger id comes after the other."""
    first, second = (tuple(map(int, name.split("-"))) for name in (one, other))
    return first > second


# ---- a holder, a waiter ----------------------------------------------------------------------


def test_a_holder_that_was_paused_too_long_loses_its_lease_and_keeps_its_place(
    sessiond: Start, caller: StartCaller, matrix: Row
) -> None:
    service = sessiond(scripted_env(lease_ttl=1.5, head_wait=0.3))
    client = service.client()
    still, other = caller(service), caller(service)
    still.do(key="still", hold=60, lease_ttl=1.5, abandon=True)
    first = still.wait_for("granted")
    other.do(key="other", lease_ttl=1.5)
    eventually(lambda: any(t["present"] for t in client.view(SESSION)["queue"]))
    still.pause()
    second = other.wait_for("granted")
    assert second["fence"] > first["fence"] and second["secret"] != first["secret"]
    for method, path, body in (("POST", "/lease/renew", None), ("POST", "/turns", {"prompt": "late"})):
        with pytest.raises(LeaseLost, match="expired"):
            client.transport.call(method, path, session=SESSION, body=body, secret=first["secret"])
    still.resume()
    assert still.wait_for("leaving")["lost"] == "expired"
    still.wait_for("done")
    other.wait_for("done")
    (place,) = client.view(SESSION)["queue"]
    assert (place["key"], place["present"]) == ("still", False)
    still.do(key="still", lease_ttl=1.5)
    assert still.wait_for("granted")["fence"] > second["fence"]
    still.wait_for("done")
    with pytest.raises(LeaseLost, match="expired"):
        lease_call(client, "DELETE", "/lease", first["secret"])
    entries = ledger_of(client)
    one_secret_each(entries)
    grants = [e["score"] for e in entries if e["event"] == "granted"]
    assert grants[0] == grants[2] == next(e["score"] for e in entries if e["event"] == "back")
    assert [e["reason"] for e in entries if e["event"] == "ended"] == ["expired", "released", "released"]
    matrix("stalls", stopped="a holder", at="holding", seconds="past lease_ttl", leases="lost: expired, place kept")


def test_a_paused_waiter_does_not_claim_its_grant_and_the_next_one_gets_it(
    sessiond: Start, caller: StartCaller, matrix: Row
) -> None:
    """The waiter is present while its connection is open. It keeps its place after each loss except the third one."""
    service = sessiond(scripted_env(claim_window=0.4, head_wait=0.3))
    client = service.client()
    still, behind = caller(service), caller(service)
    for loss in (1, 2, 3):
        with client.lease(SESSION, key=f"holder-{loss}", priority=0):
            for who, key in ((still, "still"), (behind, f"behind-{loss}")):
                who.do(key=key)
                eventually(lambda key=key: present(client, key))
            still.pause()
        behind.wait_for("done")
        assert [e["reason"] for e in events(client, "ended")][-2:] == ["unclaimed", "released"]
        left = [t["key"] for t in client.view(SESSION)["queue"]]
        assert left == (["still"] if loss < 3 else [])
        still.resume()
        assert still.wait_for("done")["lost"] == "unclaimed"
    still.do(key="still")  # a new ticket, because the old one has ended and its key is free
    still.wait_for("done")
    entries = ledger_of(client)
    one_secret_each(entries)
    assert [e["reason"] for e in entries if e["event"] == "ticket-ended"].count("lost-thrice") == 1
    assert len({e["score"] for e in entries if e["event"] == "back"}) == 1
    matrix("stalls", stopped="a waiter", at="parked", seconds="past claim_window", leases="unclaimed, place kept twice")


def present(client: Client, key: str) -> bool:
    return any(t["key"] == key and t["present"] for t in client.view(SESSION)["queue"])
