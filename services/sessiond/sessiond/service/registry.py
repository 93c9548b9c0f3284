"""The sessions that this instance owns. It acquires them, renews their ownership, and releases them.

Each session has its own owner record, loop and agent. Another instance may own other sessions on the same Redis.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import structlog
from gevent.lock import RLock
from gevent.pool import Pool

from sessiond.problems import away, no_lease, not_owner, stopping
from sessiond.service.commands import SessionCommands
from sessiond.service.queries import SessionQueries, UnusedSession
from sessiond.session.agent.slots import Slots
from sessiond.session.audit import follow
from sessiond.session.loop import Session
from sessiond.settings import Settings
from sessiond.store.connection import Broken, RedisUnavailable
from sessiond.store.ownership import Instance, OtherOwner, OwnershipStore
from sessiond.store.store import Behind, Deposed, Store

log = structlog.get_logger("sessiond.sessions")

CHECK_SECONDS: Final = 1.0
"""Seconds between two checks for sessions without an owner, and for owners in doubt."""
RENEWALS: Final = 8
"""How many owner records are renewed at once. Each renewal may wait for Redis as long as a call may."""
STOP_SECONDS: Final = 9.0


class SessionRegistry:
    """The sessions of this instance by name. Use it from greenlets; call `start` first and `stop` last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owned: dict[str, Session] = {}
        self._locks: dict[str, RLock] = {}
        self._away_at: dict[str, float] = {}
        self._slots = Slots(settings.max_agents)
        instance = Instance(settings.instance, settings.url, settings.state_dir, settings.host_name)
        self._owners = OwnershipStore(settings.redis_url, instance, settings.times.owner_ttl)
        self._stopping = self._stopped = self._adopted = False
        self._stop_lock = RLock()
        self._tasks: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Start to acquire every known session that is free, and to renew the ownership.

        A session's timers run from its acquisition on, so its commands are handled from then on.
        """
        renew = self._settings.times.owner_renew
        often = min(CHECK_SECONDS, renew)
        # Each in its own greenlet: while one waits for Redis, the others go on.
        self._tasks = [
            gevent.spawn(self._repeat, self._renew_all, renew, renew),
            gevent.spawn(self._repeat, self._adopt, often, 0.0),
            gevent.spawn(self._repeat, self._doubt_unconfirmed, often, often),
            gevent.spawn(follow, self.running),
        ]

    def running(self) -> list[Session]:
        """Return the sessions that run here, for metrics and the audit."""
        return [session for session in self._owned.values() if session.closed is None]

    # ---- finding a session -------------------------------------------------------------------

    def get(self, name: str) -> SessionCommands:
        """Return the session. Acquire it if it is free.

        Raises:
            Problem: `not-owner`, `redis-away`, `stopping`.
        """
        if self._stopping:
            raise stopping()
        session = self._owned.get(name)
        if session is None or session.closed is not None:
            session = self._acquire(name)
        return SessionCommands(session)

    def get_used(self, name: str) -> SessionCommands:
        """Return the session for a call with a lease's secret. An unused session has no leases and no secrets.

        Raises:
            Problem: `forbidden`, and as `get`.
        """
        found = self._used(name)
        if found is None:
            raise no_lease()
        return found

    def queries(self, name: str) -> SessionQueries | UnusedSession:
        """Return the session for a call that changes nothing. Such a call creates no session.

        Raises:
            Problem: `not-owner`, `redis-away`, `stopping`.
        """
        return self._used(name) or UnusedSession(name, lambda: self._used(name))

    def _used(self, name: str) -> SessionCommands | None:
        try:
            used = name in self._owned or self._stopping or self._owners.knows(name)
        except (RedisUnavailable, Broken) as error:
            raise away() from error
        return self.get(name) if used else None

    def _acquire(self, name: str) -> Session:
        asked = time.monotonic()
        with self._locks.setdefault(name, RLock()):
            session = self._owned.get(name)
            if session is not None and session.closed is None:
                return session
            if self._away_at.get(name, 0.0) > asked:  # an earlier call could not reach Redis; do not wait again
                raise away()
            try:
                return self._open(name)
            except OtherOwner as other:
                raise not_owner(other.url) from other
            except (RedisUnavailable, Broken) as error:
                self._away_at[name] = time.monotonic()
                raise away() from error

    def _open(self, name: str) -> Session:
        owned = self._owners.acquire(name)
        store = Store(self._settings.redis_url, name, self._settings.instance)
        session = Session(self._settings, store, owned, self._slots)
        try:
            session.start()
        except Deposed as error:
            raise OtherOwner(error.instance, error.url) from error
        self._owned[name] = session
        if self._stopping:  # `stop` was called during the start
            session.stop(stopping())
            self._release(session)
        log.info("session owned", session=name, epoch=owned.epoch, predecessor=owned.predecessor or None)
        return session

    # ---- renewing the ownership --------------------------------------------------------------

    def _repeat(self, work: Callable[[], None], seconds: float, first_pause: float) -> None:
        pause = first_pause
        while not self._stopping:
            gevent.sleep(pause)
            pause = seconds
            try:
                work()
            except (RedisUnavailable, Broken):
                continue
            except Exception:
                log.exception("a task of the registry failed; it runs again", what=work.__name__)

    def _renew_all(self) -> None:
        Pool(RENEWALS).map(self._renew, list(self._owned.values()))

    def _doubt_unconfirmed(self) -> None:
        """Make each session whose ownership was not renewed in time check Redis, before another may own it."""
        times = self._settings.times
        for session in self.running():
            if session.unconfirmed > (times.owner_renew + times.owner_doubt) / 2:
                session.doubt()

    def _renew(self, session: Session) -> None:
        if session.closed is not None:
            if self._owned.get(session.name) is session:  # it may have been acquired again
                del self._owned[session.name]
            return
        asked = time.monotonic()
        try:
            deposed = self._owners.renew(session.name, session.reader.epoch, session.reader.version)
        except (RedisUnavailable, Broken, Behind) as error:
            log.warning("owner record not renewed", session=session.name, error=str(error))
            session.doubt()
            return
        if deposed is None:
            session.confirm(asked)
            return
        log.error("deposed", session=session.name, by=deposed)
        gevent.spawn(session.stop, not_owner(deposed))

    def _adopt(self) -> None:
        """Acquire the sessions whose owner is gone, so that their leases expire even if nobody calls."""
        for name in self._owners.known():
            if name in self._owned or self._stopping:
                continue
            with self._locks.setdefault(name, RLock()):
                if name not in self._owned:
                    try:
                        self._open(name)
                    except OtherOwner:
                        continue
                    except RedisUnavailable:
                        raise
                    except Exception:
                        # Its callers are refused. The ownership of other sessions must still be renewed.
                        log.exception("the session cannot be taken over", session=name)
        self._adopted = True

    # ---- queries -----------------------------------------------------------------------------

    def all(self) -> list[dict[str, Any]]:
        """Return the view of every session owned here, by name."""
        return [SessionQueries(self._owned[name].reader).view() for name in sorted(self._owned)]

    def owned(self) -> list[SessionQueries]:
        """Return the queries of every session owned here.

        Raises:
            Problem: `stopping`.
        """
        if self._stopping:
            raise stopping()
        return [SessionQueries(session.reader) for session in self._owned.values() if session.closed is None]

    def ready(self) -> tuple[bool, str]:
        """Return whether Redis answers and every owner loop runs, and why not. No agent's state counts."""
        if self._stopping:
            return False, "stopping"
        try:
            self._owners.known()
        except (RedisUnavailable, Broken) as error:
            return False, f"Redis cannot be reached: {error}"
        if not self._adopted:
            return False, "the sessions are being taken over"
        stuck = [s.name for s in self._owned.values() if not s.running]
        return (not stuck), f"owner loops stopped: {', '.join(stuck)}" if stuck else "ready"

    # ---- the end -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Answer all callers 503 `stopping`, end the agents and release the sessions. A second call waits too."""
        self._stopping = True
        with self._stop_lock:
            if not self._stopped:
                self._stopped = True
                self._give_up()

    def _release(self, session: Session) -> None:
        try:
            self._owners.release(session.name, session.reader.epoch)
        except (RedisUnavailable, Broken) as error:
            log.warning("owner record not released", session=session.name, error=str(error))

    def _give_up(self) -> None:
        problem = stopping()
        owned = list(self._owned.values())  # `_renew` may remove closed sessions during the loop
        gevent.joinall([gevent.spawn(s.stop, problem) for s in owned], timeout=STOP_SECONDS)
        for session in owned:
            self._release(session)
            session.store.close()
        self._owners.close()
        gevent.killall(self._tasks)
