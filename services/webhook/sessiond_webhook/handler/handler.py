"""The handler: it answers the first unanswered demand of a session under one lease. An rq job starts each run.

    python -m sessiond_webhook.handler

The ingress took the ticket when the comment arrived; if that failed, the handler takes it now, with the same key. It
stores the answer before it releases the lease. Without an answer it lets the lease expire, so that the demand keeps its
place. If this process dies, the sweeper wakes another handler, which continues from the demand's record.
"""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, TypeVar

import redis
import structlog

from sessiond import client as sessiond
from sessiond_common.clock import now_text
from sessiond_common.env import SettingsError
from sessiond_common.fault_points import hold
from sessiond_common.jobs.queue import DEMANDS, Jobs, connect
from sessiond_common.jobs.worker import Stopped, fail, interruptible, serve
from sessiond_webhook import job_metrics
from sessiond_webhook.demands import machine
from sessiond_webhook.demands.machine import Demand
from sessiond_webhook.demands.runs import RunLeases
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.tickets import Tickets
from sessiond_webhook.handler.answer_store import AnswerStore
from sessiond_webhook.handler.settings import HandlerSettings, from_env
from sessiond_webhook.handler.turns import NoAnswer, Turns
from sessiond_worker.tasks.store import Tasks

log = structlog.get_logger("webhook.handler")
_T = TypeVar("_T")

EDITS: Final = 5
"""How often one run starts again because the comment was edited during the answer."""
DURABLE_PATIENCE: Final = 120.0
"""A write is retried for this many seconds while Redis is away."""
RESTART_PATIENCE: Final = 60.0
"""A call is retried for this many seconds while sessiond is away."""
FINAL: Final = frozenset({"forced", "hold-limit", "lost-thrice", "too-old"})
"""Reasons for the end of a ticket or lease after which no run tries again. The note gives the reason."""


class HandlerRun:
    """One run: it answers at most one demand."""

    def __init__(
        self, settings: HandlerSettings, client: sessiond.Client, demands: Demands, answers: AnswerStore
    ) -> None:
        self._settings, self._client, self._demands, self._answers = settings, client, demands, answers
        self._tickets = Tickets(demands, client)
        self._runs = RunLeases(demands, settings.runs_per_session, settings.run_ttl)
        self._turns = Turns(client, settings.turn_timeout, settings.broken_patience)
        self.holder = sessiond.new_holder()

    def run(self, session: str) -> None:
        """Answer the first demand that waits for a run, if its session may have another run."""
        demand = self._acquire(session)
        if demand is None:
            return
        session = demand.session
        hold("handler-claimed")
        with structlog.contextvars.bound_contextvars(session=session, demand=demand.key, holder=self.holder):
            log.info("taken up", run=demand.runs)
            with self._runs.held(session, self.holder):
                self._answer_demand(demand)
            self._durably(partial(self._runs.release, session, self.holder))

    def _acquire(self, session: str) -> Demand | None:
        """Take a demand of this session. If the session has all its runs already, take one of another session.

        Otherwise this job would do nothing while a demand waits behind many jobs of a busy session.
        """
        others = [name for name in self._demands.sessions() if name != session]
        for name in (session, *random.sample(others, len(others))):
            demand = self._runs.acquire(name, self.holder)
            if demand is not None:
                return demand
        return None

    def _answer_demand(self, demand: Demand) -> None:
        try:
            self._take_tickets(demand)
            self._check_ticket(demand)
            while not self._under_lease(demand):
                self._check_ticket(demand)
        except NoAnswer as reason:
            self._record_no_answer(demand, reason)
        except (machine.NotHolder, machine.MoveRefused, KeyError, sessiond.Superseded) as error:
            log.info("the demand does not belong to this run any more", why=str(error))
        except Stopped:
            log.info("the demand is left to another run: this process stops")
            self._put_back(demand)
        except sessiond.SessiondError as error:
            log.warning("the demand is left to another run: sessiond failed", error=str(error))
            self._put_back(demand, wake=False)

    def _take_tickets(self, demand: Demand) -> None:
        """Take the tickets that could not be taken when this demand and earlier ones arrived, in order."""
        if demand.ticket is None:
            for one in (*self._demands.without_ticket_before(demand), demand):
                self._tickets.take(one)

    def _check_ticket(self, demand: Demand) -> None:
        """Raise NoAnswer if the ticket has ended for good, because its key must not take another ticket."""
        known = self._demands.get(demand.key)
        if known is None or known.ticket is None:
            return
        try:
            with interruptible():
                self._with_patience(partial(self._client.ticket, demand.session, known.ticket))
        except sessiond.TicketEnded as ended:
            if ended.reason in FINAL or ended.reason == "withdrawn":
                raise NoAnswer(ended.reason) from ended
        except sessiond.ProblemError as problem:
            if problem.type != "not-found":
                raise

    @staticmethod
    def _with_patience(call: Callable[[], object]) -> None:
        """Call sessiond, and try again while it restarts. Raises what the call raises."""
        ends = time.monotonic() + RESTART_PATIENCE
        while True:
            try:
                call()
                return
            except sessiond.Unavailable as failure:
                if time.monotonic() > ends:
                    raise
                time.sleep(min(5.0, failure.retry_after or 0.5))

    def _under_lease(self, demand: Demand) -> bool:
        """Answer under one lease. Returns False if the lease was lost and the demand kept its place."""
        with ExitStack() as stack:
            with interruptible():
                lease = stack.enter_context(self._client.lease(
                    demand.session, kind="handler", key=demand.key, holder=self.holder,
                    lease_ttl=self._settings.lease_ttl,
                ))  # fmt: skip
            structlog.contextvars.bind_contextvars(ticket=lease.ticket, fence=lease.fence)
            hold("handler-leased")
            done = False
            try:
                self._answer(lease, demand)
                done = True
            except sessiond.LeaseLost as lost:
                log.warning("the lease is lost", reason=lost.reason, fence=lease.fence)
                if lost.reason in FINAL or lost.reason == "withdrawn":
                    raise NoAnswer(lost.reason) from lost
            except machine.MoveRefused:
                done = True  # the demand was withdrawn, so nobody needs the lease
                raise
            finally:
                if not done:
                    lease.abandon()
        hold("handler-released")
        return done

    def _answer(self, lease: sessiond.Lease, demand: Demand) -> None:
        key = demand.key
        held = partial(machine.held, holder=self.holder, ticket=lease.ticket, fence=lease.fence, now=now_text())
        now = self._durably(partial(self._demands.change, key, held))
        log.info("answering", fence=lease.fence, ticket=lease.ticket)
        for _ in range(EDITS):
            try:
                answer = self._turns.answer(lease, now)
            except NoAnswer as reason:
                self._record_no_answer(now, reason)
                return
            hold("handler-answered")
            try:
                self._durably(partial(self._answers.store, now, self.holder, answer))
                job_metrics.ANSWERS.add(outcome="answered")
                hold("handler-stored")
                log.info("answered", fence=lease.fence)
                return
            except machine.CommentChanged:
                log.info("the comment was edited; answering it again", fence=lease.fence)
                now = self._demands.get(key) or now
        self._record_no_answer(now, NoAnswer("edited-too-often"))

    def _record_no_answer(self, demand: Demand, reason: NoAnswer) -> None:
        log.warning("the demand gets no answer", reason=str(reason))
        move = partial(machine.failed, reason=reason.reason, now=now_text(), holder=self.holder)
        try:
            self._durably(partial(self._demands.change, demand.key, move, self._demands.stage_post))
            job_metrics.ANSWERS.add(outcome=reason.reason)
        except (machine.MoveRefused, machine.NotHolder, KeyError) as error:
            log.info("the demand has already ended", why=str(error))

    def _put_back(self, demand: Demand, *, wake: bool = True) -> None:
        def move(known: Demand) -> Demand:
            return machine.put_back(known, self.holder, now_text())

        try:
            self._durably(partial(self._demands.change, demand.key, move))
            if wake:
                self._durably(partial(self._demands.wake, demand.key))
        except (machine.MoveRefused, machine.NotHolder, KeyError) as error:
            log.info("the demand has already ended", why=str(error))

    def _durably(self, work: Callable[[], _T]) -> _T:
        """Run `work`, and retry it for `DURABLE_PATIENCE` seconds while Redis is away. It may take effect twice."""
        ends = time.monotonic() + DURABLE_PATIENCE
        while True:
            try:
                return work()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if time.monotonic() > ends:
                    raise
                log.warning("cannot reach Redis; trying again", error=str(error))
                time.sleep(0.5)


def run(session: str, key: str) -> None:
    """Run one rq job. `key` is the demand for which it was enqueued; `RunLeases` chooses the demand to answer."""
    settings = from_env()
    connection = connect(settings.redis_url)
    jobs = Jobs(connection)
    demands = Demands(connection, jobs)
    client = sessiond.connect(settings.sessiond_url, settings.sessiond_key)
    try:
        HandlerRun(settings, client, demands, AnswerStore(demands, Tasks(connection, jobs))).run(session)
    finally:
        client.close()
        connection.close()


def main() -> int:
    """Take jobs until SIGTERM. Returns the exit status: 2 if a setting is not valid."""
    try:
        settings = from_env()
    except SettingsError as error:
        return fail("handler", error)
    return serve(DEMANDS, settings.redis_url, log_format=settings.log_format, metrics=settings.metrics)
