"""The sessions that this instance owns: claims them, keeps the claims alive, gives them up.

Nothing here knows "the" session: each has its own owner record, loop and agent, and another
instance may own others on the same Redis.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import gevent
import structlog
from gevent.lock import RLock
from gevent.pool import Pool

from sessiond.problems import Problem, away, no_lease, not_owner, stopping
from sessiond.service.commands import SessionDoor
from sessiond.service.queries import SessionLook, Unseen
from sessiond.session.agent.slots import Slots
from sessiond.session.audit import follow
from sessiond.session.loop import Session
from sessiond.settings import Settings
from sessiond.store.connection import Away, Broken
from sessiond.store.ownership import OtherOwner, Owners
from sessiond.store.store import Behind, Deposed, Store

log = structlog.get_logger("sessiond.sessions")

LOOK_SECONDS: Final = 1.0
RENEWALS: Final = 8
"""At once: each may wait for Redis as long as a call may."""


class Sessions:
    """Directory of sessions by name. Use from greenlets; `start` first, `stop` last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owned: dict[str, Session] = {}
        self._locks: dict[str, RLock] = {}
        self._away_at: dict[str, float] = {}
        self._slots = Slots(settings.max_agents)
        self._owners = Owners(
            settings.redis_url, settings.instance, settings.url, settings.state_dir, settings.host_name,
            settings.times.owner_ttl,
        )  # fmt: skip
        self._stopping = self._over = self._adopted = False
        self._ending = RLock()
        self._keepers: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Begins to claim every known session that is free, and to keep the claims.

        Each has its deadlines from its claim on, so that its callers must be heard from then on, not when all are had.
        """
        renew = self._settings.times.owner_renew
        often = min(LOOK_SECONDS, renew)
        # Each in its own greenlet: while Redis hangs, or one session's take-over waits for it, the others go on.
        self._keepers = [
            gevent.spawn(self._every, renew, self._renew_all),
            gevent.spawn(self._every, often, self._adopt, at_once=True),
            gevent.spawn(self._every, often, self._doubt_late),
            gevent.spawn(follow, self.running),
        ]

    def running(self) -> list[Session]:
        """The sessions that run here, for whoever measures them."""
        return [session for session in self._owned.values() if session.closed is None]

    def get(self, name: str) -> SessionDoor:
        """The session, claimed if it is free. Raises Problem: not-owner, redis-away, stopping."""
        if self._stopping:
            raise Problem("stopping", 503, "The service is stopping")
        session = self._owned.get(name)
        if session is None or session.closed is not None:
            session = self._claim(name)
        return SessionDoor(session)

    def held(self, name: str) -> SessionDoor:
        """The session, for a call that shows a lease's secret: nobody has one of a session that nobody ever used.

        Raises Problem: forbidden, and as `get`.
        """
        found = self._seen(name)
        if found is None:
            raise no_lease()
        return found

    def look(self, name: str) -> SessionLook | Unseen:
        """The session for a call that changes nothing: one that nobody ever used is not made by it.

        Raises Problem: not-owner, redis-away, stopping.
        """
        return self._seen(name) or Unseen(name, lambda: self._seen(name))

    def _seen(self, name: str) -> SessionDoor | None:
        try:
            seen = name in self._owned or self._stopping or self._owners.knows(name)
        except (Away, Broken) as error:
            raise away() from error
        return self.get(name) if seen else None

    def _claim(self, name: str) -> Session:
        asked = time.monotonic()
        with self._locks.setdefault(name, RLock()):
            session = self._owned.get(name)
            if session is not None and session.closed is None:
                return session
            if self._away_at.get(name, 0.0) > asked:  # one who asked before found no Redis: not each for himself
                raise away()
            try:
                return self._open(name)
            except OtherOwner as other:
                raise not_owner(other.url) from other
            except (Away, Broken) as error:
                self._away_at[name] = time.monotonic()
                raise away() from error

    def _open(self, name: str) -> Session:
        owned = self._owners.acquire(name)
        store = Store(self._settings.redis_url, name, self._settings.instance)
        session = Session(name, self._settings, store, owned.epoch, owned.version, self._slots)
        try:
            session.start(owned.predecessor)
        except Deposed as error:
            raise OtherOwner(error.instance, error.url) from error
        self._owned[name] = session
        if self._stopping:  # since it was asked for
            session.stop(stopping())
            self._release(session)
        log.info("session owned", session=name, epoch=owned.epoch, predecessor=owned.predecessor or None)
        return session

    # ---- keeping -----------------------------------------------------------------------------

    def _every(self, seconds: float, work: Callable[[], None], at_once: bool = False) -> None:
        while not self._stopping:
            gevent.sleep(0 if at_once else seconds)
            at_once = False
            try:
                work()
            except (Away, Broken):
                continue
            except Exception:
                log.exception("the claims could not be seen to", what=work.__name__)

    def _renew_all(self) -> None:
        Pool(RENEWALS).map(self._renew, list(self._owned.values()))

    def _doubt_late(self) -> None:
        """Whoever was not renewed in time looks for himself: he must know before another may own the session."""
        times = self._settings.times
        for session in self.running():
            if session.commits.unsure > (times.owner_renew + times.owner_doubt) / 2:
                session.doubt()

    def _renew(self, session: Session) -> None:
        if session.closed is not None:
            if self._owned.get(session.name) is session:  # it may have been claimed anew since
                del self._owned[session.name]
            return
        asked = time.monotonic()
        try:
            deposed = self._owners.renew(session.name, session.commits.epoch, session.commits.version)
        except (Away, Broken, Behind) as error:
            log.warning("owner record not renewed", session=session.name, error=str(error))
            session.doubt()
            return
        if deposed is None:
            session.commits.sure(asked)
            return
        log.error("deposed", session=session.name, by=deposed)
        gevent.spawn(session.stop, not_owner(deposed))

    def _adopt(self) -> None:
        """Sessions whose owner is gone must not wait for somebody to ask: their leases expire too."""
        for name in self._owners.known():
            if name in self._owned or self._stopping:
                continue
            with self._locks.setdefault(name, RLock()):
                if name not in self._owned:
                    try:
                        self._open(name)
                    except OtherOwner:
                        continue
                    except Away:
                        raise
                    except Exception:
                        # Its calls are told so; the others' claims must be kept alive all the same.
                        log.exception("the session cannot be taken over", session=name)
        self._adopted = True

    # ---- looking -----------------------------------------------------------------------------

    def all(self) -> list[dict[str, Any]]:
        """The view of every session owned here, by name."""
        return [SessionDoor(self._owned[name]).view() for name in sorted(self._owned)]

    def owned(self) -> list[SessionLook]:
        """Every session owned here, for looking at. Raises Problem stopping."""
        if self._stopping:
            raise Problem("stopping", 503, "The service is stopping")
        return [SessionLook(session) for session in self._owned.values() if session.closed is None]

    def ready(self) -> tuple[bool, str]:
        """Whether Redis answers and every owner loop runs; never an agent's state."""
        if self._stopping:
            return False, "stopping"
        try:
            self._owners.known()
        except (Away, Broken) as error:
            return False, f"Redis cannot be reached: {error}"
        if not self._adopted:
            return False, "the sessions are being taken over"
        stuck = [s.name for s in self._owned.values() if not s.running]
        return (not stuck), f"owner loops stopped: {', '.join(stuck)}" if stuck else "ready"

    def stop(self) -> None:
        """Answers everybody 503 `stopping`, ends the agents, gives the sessions up; asked again, waits for that."""
        self._stopping = True
        with self._ending:
            if not self._over:
                self._over = True
                self._give_up()

    def _release(self, session: Session) -> None:
        try:
            self._owners.release(session.name, session.commits.epoch)
        except (Away, Broken) as error:
            log.warning("owner record not released", session=session.name, error=str(error))

    def _give_up(self) -> None:
        problem = stopping()
        owned = list(self._owned.values())  # the keeper takes closed ones out
        gevent.joinall([gevent.spawn(s.stop, problem) for s in owned], timeout=9.0)
        for session in owned:
            self._release(session)
            session.store.close()
        self._owners.close()
        gevent.killall(self._keepers)
