"""The handler: an rq job wakes it, it takes up the session's first unanswered demand, and answers it under one lease.

    python -m sessiond_webhook.handler

The ticket was taken at the comment's arrival (or is taken now, under the same key). The answer is durable before the
lease is released; a lease that is left without one is left to expire, so that the demand keeps its place. Whatever
kills this process, the demand's record says where it stood, and the sweep wakes another.
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
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.machine import Demand
from sessiond_webhook.demands.runs import Runs
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.tickets import Tickets
from sessiond_webhook.handler.answer_store import Answers
from sessiond_webhook.handler.settings import HandlerSettings, from_env
from sessiond_webhook.handler.turns import NoAnswer, Turns
from sessiond_worker.tasks.store import Tasks

log = structlog.get_logger("webhook.handler")
_T = TypeVar("_T")

EDITS: Final = 5
"""How often one run begins anew because the comment was edited under its hands."""
DURABLE_PATIENCE: Final = 120.0
RESTART_PATIENCE: Final = 60.0
FINAL: Final = frozenset({"forced", "hold-limit", "lost-thrice", "too-old"})
"""Ends of a ticket or lease after which nobody tries again: the person is told."""


class Run:
    """One run: at most one demand, from claim to answer."""

    def __init__(self, settings: HandlerSettings, client: sessiond.Client, demands: Demands, answers: Answers) -> None:
        self._settings, self._client, self._demands, self._answers = settings, client, demands, answers
        self._tickets = Tickets(demands, client)
        self._runs = Runs(demands, settings.runs_per_session, settings.run_ttl)
        self._turns = Turns(client, settings.turn_timeout, settings.broken_patience)
        self.holder = sessiond.new_holder()

    def go(self, session: str) -> None:
        """Takes up the first demand that waits for a run, if its session may have another run."""
        demand = self._claimed(session)
        if demand is None:
            return
        session = demand.session
        hold("handler-claimed")
        with structlog.contextvars.bound_contextvars(session=session, demand=demand.key, holder=self.holder):
            log.info("taken up", run=demand.runs)
            with self._runs.beating(session, self.holder):
                self._one(demand)
            self._durably(partial(self._runs.finish, session, self.holder))

    def _claimed(self, session: str) -> Demand | None:
        """The session's demand; where it has its runs already, another session's, so that no wake is spent in vain
        while somebody waits behind a flurry of wakes."""
        others = [name for name in self._demands.sessions() if name != session]
        for name in (session, *random.sample(others, len(others))):
            demand = self._runs.claim(name, self.holder)
            if demand is not None:
                return demand
        return None

    def _one(self, demand: Demand) -> None:
        try:
            self._tickets_in_order(demand)
            self._check_ticket(demand)
            while not self._under_lease(demand):
                self._check_ticket(demand)
        except NoAnswer as reason:
            self._no_answer(demand, reason)
        except (d.NotHolder, d.NotNow, KeyError, sessiond.Superseded) as error:
            log.info("no longer this run's", why=str(error))
        except Stopped:
            log.info("left for another: this process stops")
            self._put_back(demand)
        except sessiond.SessiondError as error:
            log.warning("left for another run", error=str(error))
            self._put_back(demand, wake=False)

    def _tickets_in_order(self, demand: Demand) -> None:
        """Comments that came while sessiond was down have no tickets yet: theirs are taken in the comments' order."""
        if demand.ticket is None:
            for one in (*self._demands.without_ticket_before(demand), demand):
                self._tickets.take(one)

    def _check_ticket(self, demand: Demand) -> None:
        """A ticket that ended for good must not be taken anew under its key. Raises NoAnswer."""
        known = self._demands.get(demand.key)
        if known is None or known.ticket is None:
            return
        try:
            with interruptible():
                self._patiently(partial(self._client.ticket, demand.session, known.ticket))
        except sessiond.TicketEnded as ended:
            if ended.reason in FINAL or ended.reason == "withdrawn":
                raise NoAnswer(ended.reason) from ended
        except sessiond.ProblemError as problem:
            if problem.type != "not-found":
                raise

    @staticmethod
    def _patiently(call: Callable[[], object]) -> None:
        """Asks sessiond, also while it is being restarted. Raises what it says."""
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
        """One lease. True when the demand is answered; False when the lease was lost and the place stands."""
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
                log.warning("lease lost", reason=lost.reason, fence=lease.fence)
                if lost.reason in FINAL or lost.reason == "withdrawn":
                    raise NoAnswer(lost.reason) from lost
            except d.NotNow:
                done = True  # withdrawn meanwhile: nobody needs the lease any more
                raise
            finally:
                if not done:
                    lease.abandon()
        hold("handler-released")
        return done

    def _answer(self, lease: sessiond.Lease, demand: Demand) -> None:
        key = demand.key
        held = partial(d.held, holder=self.holder, ticket=lease.ticket, fence=lease.fence, now=now_text())
        now = self._durably(partial(self._demands.change, key, held))
        log.info("answering", fence=lease.fence, ticket=lease.ticket)
        for _ in range(EDITS):
            try:
                answer = self._turns.answer(lease, now)
            except NoAnswer as reason:
                self._no_answer(now, reason)
                return
            hold("handler-answered")
            try:
                self._durably(partial(self._answers.store, now, self.holder, answer))
                job_metrics.ANSWERS.add(outcome="answered")
                hold("handler-stored")
                log.info("answered", fence=lease.fence)
                return
            except d.Edited:
                log.info("edited meanwhile", fence=lease.fence)
                now = self._demands.get(key) or now
        self._no_answer(now, NoAnswer("edited-too-often"))

    def _no_answer(self, demand: Demand, reason: NoAnswer) -> None:
        log.warning("no answer", reason=str(reason))
        move = partial(d.failed, reason=reason.reason, now=now_text(), holder=self.holder)
        try:
            self._durably(partial(self._demands.change, demand.key, move, self._demands.stage_post))
            job_metrics.ANSWERS.add(outcome=reason.reason)
        except (d.NotNow, d.NotHolder, KeyError) as error:
            log.info("it has ended otherwise", why=str(error))

    def _put_back(self, demand: Demand, *, wake: bool = True) -> None:
        def move(known: Demand) -> Demand:
            return d.put_back(known, self.holder, now_text())

        try:
            self._durably(partial(self._demands.change, demand.key, move))
            if wake:
                self._durably(partial(self._demands.wake, demand.key))
        except (d.NotNow, d.NotHolder, KeyError) as error:
            log.info("it has ended otherwise", why=str(error))

    def _durably(self, work: Callable[[], _T]) -> _T:
        """Does it, however often Redis goes away, for `DURABLE_PATIENCE` seconds. `work` may run twice."""
        ends = time.monotonic() + DURABLE_PATIENCE
        while True:
            try:
                return work()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if time.monotonic() > ends:
                    raise
                log.warning("Redis is away", error=str(error))
                time.sleep(0.5)


def run(session: str, key: str) -> None:
    """The rq job: `key` is the demand that it was enqueued for, in the log only; see runs.py for which is taken up."""
    settings = from_env()
    connection = connect(settings.redis_url)
    jobs = Jobs(connection)
    demands = Demands(connection, jobs)
    client = sessiond.connect(settings.sessiond_url, settings.sessiond_key)
    try:
        Run(settings, client, demands, Answers(demands, Tasks(connection, jobs))).go(session)
    finally:
        client.close()
        connection.close()


def main() -> int:
    """Takes jobs until SIGTERM. Exit 2, with one line, for bad settings."""
    try:
        settings = from_env()
    except SettingsError as error:
        return fail("handler", error)
    return serve(DEMANDS, settings.redis_url, log_format=settings.log_format, metrics=settings.metrics)
