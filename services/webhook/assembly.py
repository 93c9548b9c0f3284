"""The parts of one ingress process, put together. Imported in the worker only, after gevent has patched."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import gevent
import redis

from base.jobs import DEMANDS, POSTS, TASKS, Jobs, connect
from sessiond.client import Client, SessiondError
from sessiond.client import connect as connect_sessiond
from webhook import events, signature
from webhook.arrival import Arrival, Budget
from webhook.delivering import Delivering
from webhook.demands import Demands
from webhook.gauges import Gauges
from webhook.ingress import Ingress
from webhook.posts import sweep_posts
from webhook.runs import Runs
from webhook.settings import IngressSettings
from webhook.sweeper import Sweeper
from webhook.tickets import Tickets, TookTooLong
from webhook.workertasks import WorkerTasks
from worker.tasks import Tasks

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
    events.read("ping", {}, settings.rules)
    with contextlib.suppress(redis.RedisError), demands.redis.pipeline() as never_executed:
        demands.get("")
        demands.transact(lambda pipe: pipe.multi(), "webhook:nobody")
        for queue in (DEMANDS, POSTS, TASKS):
            demands.jobs.enqueue(queue, "nobody", pipeline=never_executed)
    with contextlib.suppress(SessiondError, TookTooLong), bound():
        client.sessions()
