"""The parts of one ingress process, put together. Imported in the worker only, after gevent has patched."""

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
from sessiond_webhook.demands.runs import Runs
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.sweeper import Sweeper
from sessiond_webhook.demands.tickets import Tickets, TookTooLong
from sessiond_webhook.ingress.app import Ingress
from sessiond_webhook.ingress.apply import Delivering
from sessiond_webhook.ingress.body import Arrival, Budget
from sessiond_webhook.ingress.gauges import Gauges
from sessiond_webhook.ingress.settings import IngressSettings
from sessiond_webhook.ingress.worker_tasks import WorkerTasks
from sessiond_worker.tasks.store import Tasks

REDIS_CONNECTIONS: Final = 64
REDIS_DEADLINE: Final = 2.0
"""Seconds for one call: GitHub gives a delivery up after 10, and asks again only for what was refused in time."""


@dataclass(frozen=True, slots=True)
class Parts:
    """One process's ingress, its sweep (see webhook.sweeper), and `warm`."""

    ingress: Ingress
    sweep: Callable[[], object]
    warm: Callable[[], None]


def assemble(settings: IngressSettings) -> Parts:
    """Connects nothing yet; raises nothing while Redis or sessiond is away."""
    connection = connect(settings.redis_url, deadline=REDIS_DEADLINE, retries=1, connections=REDIS_CONNECTIONS)
    jobs = Jobs(connection)
    demands, tasks = Demands(connection, jobs), Tasks(connection, jobs)
    client = connect_sessiond(settings.sessiond_url, settings.sessiond_key)

    def bound() -> gevent.Timeout:
        # A new exception each time: one that is raised again and again keeps every traceback it ever had.
        return gevent.Timeout(settings.ticket_seconds, TookTooLong(f"no answer within {settings.ticket_seconds:g} s"))

    tickets = Tickets(demands, client, bound=bound)
    ingress = Ingress(
        settings.secrets,
        settings.rules,
        Arrival(Budget(settings.bytes_in_flight), settings.arrival_seconds, gevent.Timeout),
        Delivering(demands, tickets, WorkerTasks(tasks)),
        connection.ping,
        Gauges(demands, tasks),
    )
    runs = Runs(demands, settings.runs_per_session)
    sweeper = Sweeper(demands, runs, tickets, partial(sweep_posts, demands), settings.sweep_seconds)
    return Parts(ingress, sweeper.sweep, partial(_warm, settings, ingress, demands, client, bound))


def _warm(
    settings: IngressSettings, ingress: Ingress, demands: Demands, client: Client, bound: Callable[[], gevent.Timeout]
) -> None:
    """What a process does once (imports, connections, the server's version) is not for the first delivery to wait
    for: two comments at two processes keep their order better. Nothing depends on it, nothing is changed, and a
    sessiond that hangs must not keep the process from its start."""
    ingress.app().test_client().get("/healthz")
    signature.valid(settings.secrets, None, b"")
    intents.read("ping", {}, settings.rules)
    with contextlib.suppress(redis.RedisError), demands.redis.pipeline() as never_executed:
        demands.get("")
        demands.transact(lambda pipe: pipe.multi(), "webhook:nobody")
        for queue in (DEMANDS, POSTS, TASKS):
            demands.jobs.enqueue(queue, "nobody", pipeline=never_executed)
    with contextlib.suppress(SessiondError, TookTooLong), bound():
        client.sessions()
