"""Outages of Redis: callers are refused, the agent goes on, and an owner in doubt ends its agent."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from sessiond.problems import away
from sessiond.session.context import SessionContext
from sessiond.session.inbox import AlreadyAnswered

log = structlog.get_logger("sessiond.outages")


class Outage:
    """One session's outages of Redis."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    @contextmanager
    def declared(self) -> Iterator[None]:
        """Refuse all waiters at once, and take no commands inside the block. Places and leases are kept."""
        inbox, began = self._context.inbox, time.monotonic()
        inbox.away = True
        log.warning("Redis is away", session=self._context.name)
        self._context.waiters.refuse_all(away())
        try:
            yield
        finally:
            inbox.away = False
        log.warning("Redis is back", session=self._context.name, seconds=round(time.monotonic() - began, 1))

    def check(self, unconfirmed: float) -> None:
        """Refuse the requests that arrived during the outage.

        If the ownership was not confirmed for `owner_doubt` seconds, another instance may own the session by now, so
        the agent is ended.

        Raises:
            AlreadyAnswered: the session must stop.
        """
        inbox, link = self._context.inbox, self._context.link
        inbox.refuse_requests(away())
        if inbox.closed is not None:
            raise AlreadyAnswered
        if unconfirmed > self._context.settings.times.owner_doubt and link.alive:
            log.error("owner in doubt: the agent is ended", session=self._context.name)
            link.end("owner-doubt")
