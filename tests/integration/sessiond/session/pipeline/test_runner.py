"""Random histories have the same result on the pure machines and in a real session on a real Redis (histories.py)."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_library
import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.store.store import Behind
from support.servers import Redis
from support.session.histories import Histories
from support.session.owned import Fault, Owner, RawRedis
from support.size import FULL

H = Kind.HANDLER
NUMBERS = range(1, 3) if FULL else range(1, 2)
EXAMPLES = 12 if FULL else 10
STEPS = 100
PARTS = 4
OFTEN = {
    "histories": 10, "granted": 30, "granted skipping": 5, "handoffs": 10, "back": 10, "superseded": 5, "lapsed": 5,
    "passed-over": 2, "draining": 10, "drained closed": 5, "drained reaped": 2, "late timers": 10,
    "ended preempted": 3, "ended expired": 4, "ended unclaimed": 4, "ended hold-limit": 2, "ended released": 5,
    "ended forced": 1, "ticket-ended too-old": 5, "ticket-ended withdrawn": 5, "turns completed": 1,
    "turns cancelled": 2, "refused: NoTicket": 10, "refused: NotHeld": 20, "refused: Superseded": 1, "crashes": 2,
    "handovers": 1, "takeovers": 1, "reaped after a restart": 2, "restored": 4, "repeated": 1, "script forgotten": 1,
    "invalid steps": 4, "does not fit: NotHead": 1, **{f"fault: {fault.value}": 1 for fault in Fault},
}  # fmt: skip
"""The minimum number of times that each event must happen in a test. Otherwise it is not tested."""
AT_ALL = (
    "ended withdrawn", "ticket-ended lost-thrice", "turns lost", "turns failed", "refused: KindMismatch",
    "refused: TurnOpen", "does not fit: Ahead", "does not fit: Behind",
)  # fmt: skip
"""Rare events, for the longer tests only."""


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    made = Redis()
    with structlog.testing.capture_logs():
        yield made
    made.close()


def run(number: int, server: Redis, place: Path, counts: Counter[str]) -> None:
    histories = seed(number)(type("Histories", (Histories,), {"server": server, "place": place, "counts": counts}))
    run_state_machine_as_test(
        histories,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("number", NUMBERS)
def test_any_history_has_the_same_result_in_redis_as_on_the_pure_machines(
    number: int, server: Redis, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """The seeds are fixed, so that a failure repeats. More histories follow until each wanted event has happened."""
    wanted = OFTEN | dict.fromkeys(AT_ALL, 1) if FULL else OFTEN
    counts: Counter[str] = Counter()
    missing: dict[str, int] = {}
    for part in range(PARTS):
        run(number * PARTS + part, server, tmp_path, counts)
        missing = {what: counts[what] for what, times in wanted.items() if counts[what] < times}
        if not missing:
            break
    figures(", ".join(f"{what} {counts[what]}" for what in sorted(counts)))
    assert missing == {}


# ---- faults that the random histories have found ---------------------------------------------


@pytest.fixture
def owners(server: Redis, tmp_path: Path) -> Iterator[Callable[[str], Owner]]:
    """Start instances on one session, all with one state directory."""
    server_side = redis_library.Redis.from_url(server.url)
    made: list[Owner] = []

    def start(instance: str) -> Owner:
        made.append(Owner(server, "octo/one", instance, tmp_path))
        made[-1].claim()
        return made[-1]

    yield start
    for owner in made:
        owner.die()
    server_side.flushdb()
    server_side.close()


def step(owner: Owner, *events: ev.Event) -> None:
    for event in events:
        owner.ask(lambda event=event: owner.session.pipeline.step(event))


def test_an_owner_writes_its_claim_back_after_redis_lost_it(server: Redis, owners: Callable[[str], Owner]) -> None:
    raw, first = RawRedis(server.url, "octo/one"), owners("first")
    step(first, ev.Take("tk-1", H, 5))
    lost = raw.dump()
    first.die()
    second = owners("second")
    raw.restore(lost)
    step(second, ev.Take("tk-2", H, 5))
    assert (second.session.closed, set(raw.read_keys().queue)) == (None, {"tk-1", "tk-2"})
    assert (raw.read_keys().meta["instance"], raw.read_keys().meta["url"]) == ("second", "http://second")
    raw.close()


def test_an_owner_that_only_renews_claims_again_after_redis_lost_its_claim(
    server: Redis, owners: Callable[[str], Owner]
) -> None:
    raw, first = RawRedis(server.url, "octo/one"), owners("first")
    lost = raw.dump()
    first.die()
    second = owners("second")
    for dump in (lost, {}):
        raw.restore(dump)
        with pytest.raises(Behind):
            second.owners.renew("octo/one", second.session.reader.epoch, second.session.reader.version)
        second.session.doubt()
        second.settle()
        claimed = raw.read_keys().meta
        assert (claimed["instance"], int(claimed["epoch"])) == ("second", second.session.reader.epoch)
    raw.close()


def test_when_redis_is_back_no_ticket_is_marked_as_passed_over(owners: Callable[[str], Owner]) -> None:
    owner = owners("first")
    step(owner, ev.Take("tk-1", H, 5), ev.Take("tk-2", H, 5), ev.Wait("tk-2", "two"))
    step(owner, ev.Due(ev.Timer("head-wait", "tk-1")))
    lock = owner.session.reader.lock
    assert lock.tickets["tk-1"].passed and lock.lease is not None and lock.lease.ticket == "tk-2"
    owner.store.fault = Fault.LOST_ANSWER
    step(owner, ev.ConfirmGrant(lock.lease.fence))
    owner.settle()
    assert not owner.session.reader.lock.tickets["tk-1"].passed


def test_the_set_in_redis_decides_the_grant(server: Redis, owners: Callable[[str], Owner]) -> None:
    """The set has a member ahead of the owner's head that the owner does not know. No ticket is granted."""
    raw, owner = RawRedis(server.url, "octo/one"), owners("first")
    step(owner, ev.Take("tk-1", H, 5))
    raw.redis.zadd(f"{raw.base}queue", {"tk-unknown": 1})
    step(owner, ev.Wait("tk-1", "one"))
    owner.settle()
    assert raw.read_keys().text("lease") is None and set(raw.read_keys().queue) == {"tk-1", "tk-unknown"}
    assert [(e["event"], e["invariant"]) for e in raw.entries()[-1:]] == [("refused", "handler_fifo")]
    assert owner.session.closed is not None
    raw.close()


def test_a_turn_that_ends_in_its_first_step_is_stored_as_closed(server: Redis, owners: Callable[[str], Owner]) -> None:
    raw, owner = RawRedis(server.url, "octo/one"), owners("first")
    session = owner.session
    step(owner, ev.Take("tk-1", H, 5), ev.Wait("tk-1", "one"))
    lease = session.reader.lock.lease
    assert lease is not None

    def accept(turn: str) -> None:
        record = TurnRecord(id=turn, fence=lease.fence, ticket="tk-1", kind=H, conversation={})
        begin = st.Begin(st.AgentTurn(turn, f"u-{turn}", "do it", H, "m"))
        _, commands = session.pipeline.context.turns.accept(record)
        session.pipeline.step(ev.AcceptTurn(lease.fence, turn), begin, commands=commands)

    owner.ask(lambda: accept("tu-1"))
    unfit = st.Got(wire.Init(session.reader.agent.conversation, "m", frozenset(), "1"))
    owner.ask(lambda: session.pipeline.step(st.Spawned(), unfit, st.Exited(0)))
    assert session.reader.agent.phase is st.Phase.BROKEN
    owner.ask(lambda: accept("tu-2"))
    look = raw.read_keys()
    assert [look.text(f"turn:{turn}")["state"] for turn in ("tu-1", "tu-2")] == ["closed", "closed"]
    raw.close()
