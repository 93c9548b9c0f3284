"""From a held lease to an answer: the turns of one demand, each asked once or told that it was asked before."""

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
LOOK_SECONDS: Final = 0.5


class NoAnswer(Exception):
    """There will be none; `reason` is the stable word that the person is told by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be posted, and what it promises."""

    text: str
    promise: prompts.Promise | None


@dataclass(frozen=True, slots=True)
class Turns:
    """Runs a demand's turns. Durations in seconds."""

    client: Client
    turn_timeout: float
    broken_patience: float

    def answer(self, lease: Lease, demand: Demand) -> Answer:
        """Understands, then answers. Raises NoAnswer, LeaseLost, Unavailable, ProblemError."""
        for step in prompts.STEPS:
            result = self._turn(lease, demand, step)
        text, promise = prompts.split(result.text)
        if not text:
            raise NoAnswer("turn-failed", "the answer was empty")
        return Answer(text, promise)

    def _turn(self, lease: Lease, demand: Demand, step: str) -> TurnResult:
        """The step's completed turn. A stored one is taken; one that was cut is asked again, and told so."""
        again: str | None = None
        result: TurnResult | None = None
        for attempt in range(1, ATTEMPTS + 1):
            key = f"{demand.key}/{demand.revision}/{step}/{attempt}"
            result = self._stored(lease, key) or self._run(lease, prompts.prompt(demand, step, again), key)
            if result.completed:
                return result
            log.warning("a turn without an answer", demand=demand.key, step=step, attempt=attempt,
                        outcome=result.outcome, reason=result.reason)  # fmt: skip
            lease.check()
            again = f"{result.outcome}: {result.reason or 'no reason given'}"
            if result.reason == "timeout":
                raise NoAnswer("timeout")
        outcome = result.outcome if result is not None else "lost"
        raise NoAnswer("turn-lost" if outcome == "lost" else "turn-failed", again or "")

    def _stored(self, lease: Lease, key: str) -> TurnResult | None:
        """What became of the turn with this key, if there was one; waits for one that is still open."""
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
            time.sleep(LOOK_SECONDS)

    def _run(self, lease: Lease, prompt: str, key: str) -> TurnResult:
        """One turn; while the agent is broken it is asked for again, within `broken_patience`."""
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
                log.warning("the agent is broken", reason=failure.reason, again_in=pause)
                if lease.lost.wait(pause):
                    raise LeaseLost(lease.lost_reason or "unknown") from failure


def _result(found: dict[str, Any]) -> TurnResult:
    return TurnResult(
        turn=str(found["id"]), outcome=str(found["outcome"]), text=str(found.get("text") or ""),
        reason=found.get("reason"), conversation=found.get("conversation") or {},
    )  # fmt: skip
