"""Runs the turns of one demand under a lease. The prompt of a repeated turn says that it is repeated."""

import time
from dataclasses import dataclass
from typing import Any, Final

import structlog

from sessiond.client import Client, Lease, LeaseLost, ProblemError, TurnResult, Unavailable
from sessiond_webhook import job_metrics
from sessiond_webhook.demands.machine import Demand
from sessiond_webhook.handler import prompts

log = structlog.get_logger("webhook.answering")

ATTEMPTS: Final = 3
POLL_SECONDS: Final = 0.5


class NoAnswer(Exception):
    """The demand gets no answer. `reason` is a stable word, see `poster.notes.REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """The text to post, and the promise in it."""

    text: str
    promise: prompts.Promise | None


@dataclass(frozen=True, slots=True)
class Turns:
    """Runs a demand's turns. Durations in seconds."""

    client: Client
    turn_timeout: float
    broken_patience: float

    def answer(self, lease: Lease, demand: Demand) -> Answer:
        """Run both turns: understand the question, then answer it.

        Raises:
            NoAnswer: the demand gets no answer.
            LeaseLost, Unavailable, ProblemError: there is no answer yet; the caller decides whether to try again.
        """
        for step in prompts.STEPS:
            result = self._turn(lease, demand, step)
        text, promise = prompts.split(result.text)
        if not text:
            raise NoAnswer("turn-failed", "the answer was empty")
        return Answer(text, promise)

    def _turn(self, lease: Lease, demand: Demand, step: str) -> TurnResult:
        """Return the completed turn of this step, stored or run now. A turn that was cut off is run again."""
        again: str | None = None
        result: TurnResult | None = None
        for attempt in range(1, ATTEMPTS + 1):
            key = f"{demand.key}/{demand.revision}/{step}/{attempt}"
            result = self._stored(lease, key) or self._run(lease, prompts.prompt(demand, step, again), key)
            if result.completed:
                return result
            log.warning("a turn ended without an answer", demand=demand.key, step=step, attempt=attempt,
                        outcome=result.outcome, reason=result.reason)  # fmt: skip
            lease.check()
            again = f"{result.outcome}: {result.reason or 'no reason given'}"
            if result.reason == "timeout":
                raise NoAnswer("timeout")
        outcome = result.outcome if result is not None else "lost"
        raise NoAnswer("turn-lost" if outcome == "lost" else "turn-failed", again or "")

    def _stored(self, lease: Lease, key: str) -> TurnResult | None:
        """Return the result of an earlier turn with this key, or None. Waits while that turn is open."""
        while True:
            try:
                found = self.client.turn_by_key(lease.session, key)
            except ProblemError as problem:
                if problem.type == "not-found":
                    return None
                raise
            if found["state"] == "closed":
                return _result(found)
            lease.check()
            time.sleep(POLL_SECONDS)

    def _run(self, lease: Lease, prompt: str, key: str) -> TurnResult:
        """Run one turn. While the agent is broken, try again for at most `broken_patience` seconds."""
        ends = time.monotonic() + self.broken_patience
        while True:
            try:
                result = lease.turn(prompt, key=key, timeout=self.turn_timeout).result()
                job_metrics.TURNS.add(outcome=result.outcome)
                return result
            except Unavailable as failure:
                if failure.type != "agent-broken":
                    raise
                pause = failure.retry_after or 1.0
                if time.monotonic() + pause > ends:
                    raise NoAnswer("agent-broken", failure.reason) from failure
                log.warning("the agent is broken; trying again", reason=failure.reason, again_in=pause)
                if lease.lost.wait(pause):
                    raise LeaseLost(lease.lost_reason or "unknown") from failure


def _result(found: dict[str, Any]) -> TurnResult:
    return TurnResult(
        turn=str(found["id"]), outcome=str(found["outcome"]), text=str(found.get("text") or ""),
        reason=found.get("reason"), conversation=found.get("conversation") or {},
    )  # fmt: skip
