"""The outcome of a turn that is over, derived from its own result alone. Pure."""

from sessiond.agent import protocol as wire
from sessiond.agent.state import AgentTurn, TurnOutcome

REASON_LIMIT = 500


def outcome_of(turn: AgentTurn) -> tuple[TurnOutcome, str | None]:
    """Return (outcome, reason).

    Uses the result's `is_error` and `terminal_reason`, never its `subtype`. An empty result is a failure.
    """
    result = turn.result
    if result is None or (result.terminal_reason or "").startswith("aborted"):
        if turn.cancel == "timeout":
            return TurnOutcome.FAILED, "timeout"
        return TurnOutcome.CANCELLED, turn.cancel or "interrupted"
    if result.is_error:
        said = result.text or "; ".join(result.errors) or result.terminal_reason or "unknown error"
        return TurnOutcome.FAILED, said[:REASON_LIMIT]
    if not result.text.strip():
        return TurnOutcome.FAILED, "empty-result"
    return TurnOutcome.COMPLETED, None


def says_no_login(result: wire.Result) -> bool:
    """Return whether the result says that there is no valid API key, so that every further turn would fail."""
    said = result.text.lower()
    return result.is_error and (result.status == 401 or "not logged in" in said or "invalid api key" in said)
