"""GitHub's deliveries over HTTP: judged, made durable, then answered.

`POST /github` checks in this order: size, content type, signature, form. 202 is said only after everything that the
delivery means is in Redis; the ticket comes after that, in the same request, and never costs the 202.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import orjson
import redis
import structlog
from flask import Flask, Request, Response, request
from prometheus_client.registry import Collector
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from sessiond_common.fault_points import hold
from sessiond_common.problems import MEDIA_TYPE
from sessiond_webhook.deliveries import intents, signature
from sessiond_webhook.deliveries.payload import BadPayload
from sessiond_webhook.ingress import metrics
from sessiond_webhook.ingress.apply import Delivering, Outcome
from sessiond_webhook.ingress.body import Arrival, check_declared
from sessiond_webhook.ingress.problems import Problem

log = structlog.get_logger("webhook.ingress")

JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"
_VISIBLE: Final = frozenset(map(chr, range(0x21, 0x7F)))
_WORD: Final = 200


@dataclass(slots=True)
class Answered:
    """What is counted and logged of one request."""

    event: str | None = None
    delivery: str | None = None
    outcome: str = "internal"
    reason: str | None = None
    demand: str | None = None
    session: str | None = None
    ticket: str | None = None


class Ingress:
    """One process's ingress. `ready` raises redis.RedisError while Redis is away."""

    def __init__(
        self,
        secrets: tuple[str, ...],
        rules: intents.Rules,
        arrival: Arrival,
        delivering: Delivering,
        ready: Callable[[], object],
        gauges: Collector,
    ) -> None:
        self._secrets, self._rules, self._arrival = secrets, rules, arrival
        self._delivering, self._ready, self._gauges = delivering, ready, gauges

    def app(self) -> Flask:
        """The application."""
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
        seen, began = Answered(request.headers.get("X-GitHub-Event")), time.monotonic()
        try:
            return self._answer(request, seen)
        except Problem as problem:
            seen.outcome, seen.reason = problem.type, problem.detail
            return _problem(problem)
        except Exception as error:
            seen.reason = repr(error)
            return _unexpected(error)
        finally:
            _count(seen, time.monotonic() - began)

    def _answer(self, asked: Request, seen: Answered) -> Response:
        environ, header = asked.environ, asked.headers.get(signature.HEADER)
        check_declared(environ)
        if asked.mimetype not in (JSON, FORM):
            raise Problem("unsupported-media-type", f"The body must be {JSON} or {FORM}")
        with self._arrival.body(environ, keep=signature.well_formed(header)) as body:
            if not signature.valid(self._secrets, header, body):
                raise Problem("unauthorized", f"{signature.HEADER} must be the body's HMAC-SHA-256 with our secret")
            event, seen.delivery = _name(asked, "X-GitHub-Event"), _name(asked, "X-GitHub-Delivery")
            payload = _form(body) if asked.mimetype == FORM else _parsed(body)
        try:
            intent = intents.read(event, payload, self._rules)
        except BadPayload as error:
            raise Problem("bad-payload", str(error)) from error
        match intent:
            case intents.Ping():
                seen.outcome = "ping"
                return _json({"outcome": "ping"})
            case intents.Ignored(reason):
                seen.outcome, seen.reason = "ignored", reason
                return Response(status=204)
        with structlog.contextvars.bound_contextvars(delivery=seen.delivery):
            hold("ingress-before-commit")
            with _durably():
                outcome = self._delivering.commit(seen.delivery, intent)
            hold("ingress-committed")
            outcome = self._delivering.tickets(outcome)
            hold("ingress-ticketed")
        seen.outcome, demand = outcome.word, outcome.demand
        if demand is not None:
            seen.demand, seen.session, seen.ticket = demand.key, demand.session, demand.ticket
        return _json(_told(outcome), 202)


def _told(outcome: Outcome) -> dict[str, object]:
    told: dict[str, object] = {"outcome": outcome.word}
    if outcome.demand is not None:
        demand = outcome.demand
        told |= {"demand": demand.key, "state": demand.state, "ticket": demand.ticket, "place": demand.place}
    if outcome.task is not None:
        told["task"] = outcome.task
    return told


def _name(asked: Request, header: str) -> str:
    """A header's one word. Raises Problem."""
    found = asked.headers.get(header, "")
    if not 0 < len(found) <= _WORD or not _VISIBLE.issuperset(found):
        raise Problem("bad-request", f"{header} must be there, as 1 to {_WORD} visible characters")
    return found


def _form(body: bytes) -> object:
    """The field `payload` of a form. Raises Problem."""
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError as error:
        raise Problem("bad-request", "The body is not a form") from error
    found = [value for name, value in fields if name == "payload"]
    if len(found) != 1:
        raise Problem("bad-request", "The form must have one field named payload")
    return _parsed(found[0])


def _parsed(text: bytes | str) -> object:
    try:
        found: object = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise Problem("bad-request", f"The payload is not JSON: {error}") from error
    return found


@contextmanager
def _durably() -> Iterator[None]:
    """Whatever fails inside is not known to be durable: 503, so that it is delivered again."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("Redis is away", error=repr(error))
        raise Problem("redis-away", "Redis cannot be reached; send it again") from error
    except Exception as error:
        log.exception("not stored")
        raise Problem("not-stored", "The delivery could not be made durable; send it again") from error


def _count(seen: Answered, seconds: float) -> None:
    metrics.DELIVERIES.labels(event=metrics.event_label(seen.event), outcome=seen.outcome).inc()
    if seen.outcome == "ignored":
        metrics.IGNORED.labels(reason=seen.reason).inc()
    metrics.SECONDS.observe(seconds)
    log.info(
        "delivery", event_name=seen.event and seen.event[:_WORD], delivery=seen.delivery, outcome=seen.outcome,
        demand=seen.demand, session=seen.session, ticket=seen.ticket, reason=seen.reason, ms=round(seconds * 1000, 1),
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
    log.error("request failed", exc_info=error)
    return _problem(Problem("internal", "The service failed; it is in the log"))
