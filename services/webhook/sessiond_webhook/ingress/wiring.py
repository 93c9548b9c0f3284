"""Connects the parts of one ingress process. Import it only in the worker process, after gevent's patches."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import gevent
import redis

from sessiond.client import Client, SessiondError
from sessiond.client import connect as connect_sessiond
from sessiond_common.jobs.queue import DEMANDS, POSTS, TASKS, Jobs, connect
from sessiond_webhook.deliveries import intents, signature
from sessiond_webhook.demands.outbox_queue import sweep_posts
from sessiond_webhook.demands.runs import RunLeases
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.sweeper import Sweeper
from sessiond_webhook.demands.tickets import DeadlineExceeded, Tickets
from sessiond_webhook.ingress.app import Ingress
from sessiond_webhook.ingress.apply import DeliveryProcessor
from sessiond_webhook.ingress.body import BodyReader, ByteBudget
from sessiond_webhook.ingress.delivery_reader import DeliveryReader
from sessiond_webhook.ingress.gauges import Gauges
from sessiond_webhook.ingress.settings import IngressSettings
from sessiond_webhook.ingress.worker_tasks import WorkerTasks
from sessiond_worker.tasks.store import Tasks

REDIS_CONNECTIONS: Final = 64
REDIS_DEADLINE: Final = 2.0
"""Seconds for one call. GitHub ends a delivery after 10 s."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The ingress of one process and its sweep (see `demands.sweeper`). Call `warm` once."""

    ingress: Ingress
    sweep: Callable[[], object]
    warm: Callable[[], None]


def assemble(settings: IngressSettings) -> Parts:
    """Build the parts. This opens no connection, so it works while Redis or sessiond is away."""
    connection = connect(settings.redis_url, deadline=REDIS_DEADLINE, retries=1, connections=REDIS_CONNECTIONS)
    jobs = Jobs(connection)
    demands, tasks = Demands(connection, jobs), Tasks(connection, jobs)
    client = connect_sessiond(settings.sessiond_url, settings.sessiond_key)

    def time_limit() -> gevent.Timeout:
        # A new exception each time, because an exception that is raised again keeps all its tracebacks.
        return gevent.Timeout(
            settings.ticket_seconds, DeadlineExceeded(f"no answer within {settings.ticket_seconds:g} s")
        )

    tickets = Tickets(demands, client, time_limit=time_limit)
    bodies = BodyReader(ByteBudget(settings.bytes_in_flight), settings.arrival_seconds, gevent.Timeout)
    ingress = Ingress(
        DeliveryReader(settings.secrets, settings.rules, bodies),
        DeliveryProcessor(demands, tickets, WorkerTasks(tasks)),
        connection.ping,
        Gauges(demands, tasks),
    )
    runs = RunLeases(demands, settings.runs_per_session)
    sweeper = Sweeper(demands, runs, tickets, partial(sweep_posts, demands), settings.sweep_seconds)
    return Parts(
        ingress, sweeper.sweep, partial(_warm, settings, ingress, demands, partial(_ask_sessiond, client, time_limit))
    )


def _warm(settings: IngressSettings, ingress: Ingress, demands: Demands, ask_sessiond: Callable[[], None]) -> None:
    """Do what a process does only once (imports, connections, the server's version), so that no delivery waits for it.

    Two comments that reach two processes then keep their order more often. No rule depends on this.
    """
    ingress.app().test_client().get("/healthz")
    signature.valid(settings.secrets, None, b"")
    intents.read("ping", {}, settings.rules)
    with contextlib.suppress(redis.RedisError), demands.redis.pipeline() as never_executed:
        demands.get("")
        demands.transact(lambda pipe: pipe.multi(), "webhook:nobody")
        for queue in (DEMANDS, POSTS, TASKS):
            demands.jobs.enqueue(queue, "nobody", pipeline=never_executed)
    ask_sessiond()


def _ask_sessiond(client: Client, time_limit: Callable[[], gevent.Timeout]) -> None:
    """Open a connection to sessiond. A call that hangs must not block the start of the process."""
    with contextlib.suppress(SessiondError, DeadlineExceeded), time_limit():
        client.sessions()
