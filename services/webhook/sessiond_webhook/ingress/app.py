"""The HTTP interface for GitHub's deliveries. It reads each delivery, makes it durable, then answers it.

`POST /github` answers 202 only after everything that the delivery means is in Redis. It takes the ticket after that, in
the same request. If that fails, the answer is still 202.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson
import redis
import structlog
from flask import Flask, Response, request
from prometheus_client.registry import Collector
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from sessiond_common.fault_points import hold
from sessiond_common.problems import MEDIA_TYPE
from sessiond_webhook.deliveries import intents, signature
from sessiond_webhook.ingress import metrics
from sessiond_webhook.ingress.apply import DeliveryOutcome, DeliveryProcessor
from sessiond_webhook.ingress.delivery_reader import MAX_HEADER, DeliveryReader, RequestRecord
from sessiond_webhook.ingress.problems import Problem

log = structlog.get_logger("webhook.ingress")


class Ingress:
    """The ingress of one process. `ready` raises redis.RedisError while Redis is away."""

    def __init__(
        self, reader: DeliveryReader, processor: DeliveryProcessor, ready: Callable[[], object], gauges: Collector
    ) -> None:
        self._reader, self._processor, self._ready, self._gauges = reader, processor, ready, gauges

    def app(self) -> Flask:
        """Return the Flask application."""
        app = Flask("webhook", static_folder=None)
        app.url_map.strict_slashes = False
        for method, path, view in (
            ("POST", "/github", self._github),
            ("GET", "/healthz", self._healthz),
            ("GET", "/readyz", self._readyz),
            ("GET", "/metrics", self._metrics),
        ):
            app.add_url_rule(path, endpoint=path, view_func=view, methods=[method], provide_automatic_options=False)
        app.register_error_handler(Problem, _problem)
        app.register_error_handler(HTTPException, _http_error)
        app.register_error_handler(Exception, _unexpected)
        return app

    def _healthz(self) -> Response:
        return _json({"status": "alive"})

    def _readyz(self) -> Response:
        with _durably():
            self._ready()
        return _json({"status": "ready"})

    def _metrics(self) -> Response:
        return Response(metrics.exposition(self._gauges), mimetype="text/plain; version=0.0.4")

    # ---- a delivery --------------------------------------------------------------------------

    def _github(self) -> Response:
        record, began = RequestRecord(request.headers.get("X-GitHub-Event")), time.monotonic()
        try:
            return self._answer(record)
        except Problem as problem:
            record.outcome, record.reason = problem.type, problem.detail
            return _problem(problem)
        except Exception as error:
            record.reason = repr(error)
            return _unexpected(error)
        finally:
            _count(record, time.monotonic() - began)

    def _answer(self, record: RequestRecord) -> Response:
        delivery, intent = self._reader.read(request, record)
        match intent:
            case intents.Ping():
                record.outcome = "ping"
                return _json({"outcome": "ping"})
            case intents.Ignored(reason):
                record.outcome, record.reason = "ignored", reason
                return Response(status=204)
        with structlog.contextvars.bound_contextvars(delivery=delivery):
            hold("ingress-before-commit")
            with _durably():
                outcome = self._processor.commit(delivery, intent)
            hold("ingress-committed")
            outcome = self._processor.tickets(outcome)
            hold("ingress-ticketed")
        record.outcome, demand = outcome.name, outcome.demand
        if demand is not None:
            record.demand, record.session, record.ticket = demand.key, demand.session, demand.ticket
        return _json(_document(outcome), 202)


def _document(outcome: DeliveryOutcome) -> dict[str, object]:
    document: dict[str, object] = {"outcome": outcome.name}
    if outcome.demand is not None:
        demand = outcome.demand
        document |= {"demand": demand.key, "state": demand.state, "ticket": demand.ticket, "place": demand.place}
    if outcome.task is not None:
        document["task"] = outcome.task
    return document


@contextmanager
def _durably() -> Iterator[None]:
    """Convert every error in the block to a 503: nothing is certain to be durable, so GitHub must deliver again."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("cannot reach Redis; the delivery is answered with 503", error=repr(error))
        raise Problem("redis-away", "Redis cannot be reached; send it again") from error
    except Exception as error:
        log.exception("cannot store a delivery; it is answered with 503")
        raise Problem("not-stored", "The delivery could not be made durable; send it again") from error


def _count(record: RequestRecord, seconds: float) -> None:
    metrics.DELIVERIES.labels(event=metrics.event_label(record.event), outcome=record.outcome).inc()
    if record.outcome == "ignored":
        metrics.IGNORED.labels(reason=record.reason).inc()
    metrics.SECONDS.observe(seconds)
    log.info(
        "delivery", event_name=record.event and record.event[:MAX_HEADER], delivery=record.delivery,
        outcome=record.outcome, demand=record.demand, session=record.session, ticket=record.ticket,
        reason=record.reason, ms=round(seconds * 1000, 1),
    )  # fmt: skip


# ---- answers -------------------------------------------------------------------------------------


def _json(body: object, status: int = 200) -> Response:
    return Response(
        orjson.dumps(body), status=status, mimetype="application/json", headers={"Cache-Control": "no-store"}
    )


def _problem(problem: Problem) -> Response:
    headers = {"Cache-Control": "no-store", **problem.headers()}
    if problem.status == 401:
        headers["WWW-Authenticate"] = signature.HEADER
    return Response(orjson.dumps(problem.body()), status=problem.status, mimetype=MEDIA_TYPE, headers=headers)


def _http_error(error: HTTPException) -> Response:
    if isinstance(error, NotFound):
        return _problem(Problem("not-found", "There is nothing at this path"))
    if isinstance(error, MethodNotAllowed):
        answer = _problem(Problem("method-not-allowed", "The method is not allowed here"))
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return answer
    return _problem(Problem("bad-request", error.description or "The request is not valid"))


def _unexpected(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return _problem(Problem("internal", "The service failed; its log has the reason"))
