"""What HTTP may ask of an owned session. Every change is a call into the owner loop.

All methods raise problems.Problem.
"""

import uuid
from dataclasses import dataclass
from typing import Any

from sessiond.agent import state as st
from sessiond.agent.termination import backoff
from sessiond.lock import events as ev
from sessiond.lock.rules import Kind, QueueFull, rank_of
from sessiond.lock.state import Lease
from sessiond.problems import Problem, away, no_lease, no_turn, superseded
from sessiond.service.queries import SessionLook
from sessiond.session import views
from sessiond.session.callers.turns import digest
from sessiond.session.callers.waiters import Parked, TurnStream
from sessiond.session.state import conversation_of
from sessiond.store import codec
from sessiond_common.clock import now_text
from sessiond_common.fault_points import hold_in


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One prompt. `timeout` in seconds, None for no limit of its own; `raw` hands it over uncomposed."""

    prompt: str
    model: str | None = None
    key: str | None = None
    timeout: float | None = None
    raw: bool = False


class SessionDoor(SessionLook):
    """The calls of one session's HTTP table: its looks, and its changes."""

    # ---- tickets -----------------------------------------------------------------------------

    def take(self, kind: Kind, priority: int, key: str | None) -> tuple[dict[str, Any], bool]:
        """A place in the queue: (ticket view, whether it is new)."""
        ticket = f"tk-{uuid.uuid4().hex}"
        rank = rank_of(kind, priority)
        answer: tuple[dict[str, Any], bool] = self._s.ask(lambda: self._take(ticket, kind, rank, key))
        return answer

    def _take(self, ticket: str, kind: Kind, rank: int, key: str | None) -> tuple[dict[str, Any], bool]:
        s = self._s
        for known in s.standing.lock.tickets.values():
            if key is not None and known.key == key and known.kind is kind:
                s.steps.step()  # nothing changes: it only makes sure that this is still ours to say
                return self._view(known.id), False
        s.standing.taken[ticket] = now_text()
        try:
            s.steps.step(ev.Take(ticket, kind, rank, key))
        except QueueFull as error:
            raise Problem("queue-full", 503, str(error)) from error
        finally:
            if ticket not in s.standing.lock.tickets:
                s.standing.taken.pop(ticket, None)
        if key is None and s.steps.told:
            # Redis was away meanwhile and the caller was told so: nobody knows this place.
            s.steps.step(ev.Withdraw(ticket))
            raise away()
        return self._view(ticket), True

    def park(self, ticket: str, holder: str) -> Parked:
        """Is present and waits."""
        return self._s.waits.park(ticket, holder)

    def withdraw(self, ticket: str, holder: str | None) -> None:
        """The demand is gone, or its current holder gives it up."""

        def work() -> None:
            self._s.waits.living(ticket)
            known = self._s.standing.lock.tickets[ticket]
            if holder is not None and holder in known.superseded:
                raise superseded()
            self._s.steps.step(ev.Withdraw(ticket, holder))

        self._s.ask(work)

    # ---- the lease ---------------------------------------------------------------------------

    def _past(self, secret: str) -> dict[str, Any]:
        past = self._s.turns.read(codec.past_suffix(secret))
        if past is None:
            raise no_lease()
        return past

    def _lost(self, secret: str) -> Problem:
        reason = str(self._past(secret)["reason"])
        return Problem("lease-lost", 409, f"The lease has ended: {reason}", reason=reason)

    def renew(self, secret: str) -> dict[str, Any]:
        """The lease gets its full ttl again."""

        def work() -> dict[str, Any]:
            lease = self._s.standing.lease_of(secret)
            if lease is None:
                raise self._lost(secret)
            self._s.steps.step(ev.Claim(lease.fence))
            self._s.lease_time.renewed()
            return {"expires_at": self._s.lease_time.expires_at()}

        answer: dict[str, Any] = self._s.ask(work)
        return answer

    def release(self, secret: str) -> None:
        """The holder is done; with a lost lease's secret the ticket ends unless another holder waits."""

        def work() -> None:
            lease = self._s.standing.lease_of(secret)
            if lease is not None:
                self._s.steps.step(ev.Release(lease.fence))
                return
            past = self._past(secret)
            if past["reason"] != "released":
                self._s.steps.step(ev.GiveUp(past["ticket"], past["holder"]))
                raise self._lost(secret)

        self._s.ask(work)

    # ---- turns -------------------------------------------------------------------------------

    def start_turn(self, secret: str, request: TurnRequest) -> TurnStream:
        """One turn of the lease's holder: its events. `turn` of what is returned is the turn's id."""
        hold_in(self._s.settings.hooks_dir, "before-turn")
        # Without a key it runs once more when it is asked for once more.
        stream: TurnStream = self._s.ask(lambda: self._start_turn(secret, request), patient=request.key is None)
        return stream

    def _start_turn(self, secret: str, request: TurnRequest) -> TurnStream:
        s = self._s
        lease = self._s.standing.lease_of(secret)
        if lease is None:
            raise self._lost(secret)
        attempt = 1
        before = s.turns.find_key(request.key) if request.key is not None else None
        if before is not None:
            stored = self._stored(before, request)
            if stored is not None:
                s.steps.step(ev.Claim(lease.fence))
                return stored
            attempt = int(before["attempt"]) + 1
        if s.standing.lock.turn is not None:
            raise Problem("turn-open", 409, "The lease's turn is still open", turn=s.standing.lock.turn)
        if s.standing.agent.phase is st.Phase.BROKEN:
            raise self._broken()
        return self._accept(lease, request, attempt)

    def _broken(self) -> Problem:
        agent = self._s.standing.agent
        left = self._s.deadlines.left(("agent", ("backoff", str(agent.fails))))
        return Problem(
            "agent-broken", 503, f"The agent cannot run: {agent.why}", reason=agent.why,
            retry_after=max(1.0, left if left is not None else backoff(agent.fails)),
        )  # fmt: skip

    def _stored(self, before: dict[str, Any], request: TurnRequest) -> TurnStream | None:
        if before["prompt_sha256"] != digest(request.prompt):
            raise Problem("key-reused", 409, "The key belongs to a turn with another prompt", turn=before["id"])
        if before["state"] != "closed":
            raise Problem("turn-open", 409, "The turn with this key is still open", turn=before["id"])
        if before["outcome"] != st.Outcome.COMPLETED.value:
            return None
        stream = TurnStream(before["id"])
        stream.finish(views.result_event(before))
        return stream

    def _accept(self, lease: Lease, request: TurnRequest, attempt: int) -> TurnStream:
        s = self._s
        turn = st.Turn(
            id=f"tu-{uuid.uuid4().hex}", uuid=str(uuid.uuid4()), prompt=request.prompt, kind=lease.kind,
            model=request.model or s.settings.model, composed=not request.raw, timeout=request.timeout,
        )  # fmt: skip
        book = {
            "id": turn.id, "turn": turn.id, "key": request.key, "attempt": attempt, "state": "accepted",
            "fence": lease.fence, "ticket": lease.ticket, "kind": lease.kind.value, "uuid": turn.uuid,
            "model": turn.model, "prompt_sha256": digest(request.prompt), "accepted_at": now_text(),
            "conversation": conversation_of(s.standing.agent),
        }  # fmt: skip
        entry = {n: book[n] for n in ("fence", "ticket", "kind", "key", "attempt")}
        commands = s.turns.accept(book)
        stream = s.turns.opening
        s.steps.step(
            ev.AcceptTurn(lease.fence, turn.id), st.Begin(turn),
            ledger=[("turn-accepted", {"turn": turn.id, **entry})], commands=commands,
        )  # fmt: skip
        return stream

    def cancel_turn(self, turn: str, secret: str | None) -> None:
        """Ends a turn, keeps the lease. A closed turn is left as it is. `secret` None: an operator."""

        def work() -> None:
            if secret is not None and self._s.standing.lease_of(secret) is None:
                raise self._lost(secret)
            if self._s.standing.lock.turn == turn:
                self._s.steps.step(st.Cancel(turn, "cancelled"))
            elif self._s.turns.find(turn) is None:
                raise no_turn()

        self._s.ask(work)

    # ---- operators ---------------------------------------------------------------------------

    def force_release(self, fence: int, reason: str, by: str) -> None:
        """Ends the lease with this fence, once; never the next holder's."""
        entry: ev.Entry = ("force-release", {"fence": fence, "why": reason, "by": by})
        self._s.ask(lambda: self._s.steps.step(ev.ForceRelease(fence), ledger=[entry]))

    def restart_agent(self, by: str) -> None:
        """Stops the agent; the next turn resumes the conversation. Ends `broken`."""
        self._s.ask(lambda: self._s.steps.step(st.Stop("restart"), ledger=[("agent-restart", {"by": by})]))

    def new_conversation(self, by: str) -> dict[str, Any]:
        """A fresh conversation, from the next turn on. 409 `turn-open` while one runs."""

        def work() -> dict[str, Any]:
            s = self._s
            if s.standing.lock.turn is not None:
                raise Problem("turn-open", 409, "A turn is still open", turn=s.standing.lock.turn)
            s.steps.step(st.Afresh(str(uuid.uuid4()), f"asked by {by}"), st.Stop("conversation"))
            return conversation_of(s.standing.agent)

        answer: dict[str, Any] = self._s.ask(work)
        return answer
