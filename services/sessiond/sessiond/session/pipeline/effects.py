"""The act stage: after the commit, it writes lines to the agent and answers callers. It decides nothing."""

from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.problems import ended, superseded
from sessiond.session.context import SessionContext
from sessiond.session.pipeline.step import Step
from sessiond.session.state import conversation_of


class Effects:
    """The effects of one session's steps."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    def act(self, step: Step) -> None:
        """Register the step's waiter, write to the agent, then answer callers, so that an interrupt is not delayed."""
        if step.waiter is not None:
            self._context.ticket_waits.register(step.waiter)
        for output in step.plan.outputs:
            self._drive_agent(step, output)
        for effect in step.plan.effects:
            self._answer(effect)
        self._context.turns.publish()

    def _drive_agent(self, step: Step, output: st.Output) -> None:
        link, agent = self._context.link, step.plan.agent
        match output:
            case st.Write(what=what, data=data):
                # Without a written turn the interrupt is for a turn that claude began by itself.
                if what == "interrupt" and agent.turn is not None and agent.turn.written:
                    self._context.turns.interrupt.written(step.cause)
                link.write(data)
            case st.Launch(resume=resume):
                link.start(agent.conversation, resume)
            case st.Kill(hard=hard):
                link.kill() if hard else link.end()
            case st.Acked():
                self._context.turns.interrupt.acked(agent.turn is not None and agent.turn.result is not None)

    def _answer(self, effect: ev.Effect) -> None:
        waiters = self._context.waiters
        match effect:
            case ev.Granted(ticket=ticket):
                waiters.reply(ticket, self._granted(ticket))
            case ev.TicketOver(ticket=ticket, reason=reason):
                self._context.state.taken.pop(ticket, None)
                waiters.refuse(ticket, ended(reason.value))
            case ev.Displaced(ticket=ticket):
                waiters.refuse(ticket, superseded())

    def _granted(self, ticket: str) -> dict[str, Any]:
        state = self._context.state
        lease, extras = state.lock.lease, state.lease_extras
        if lease is None or extras is None or lease.ticket != ticket:
            raise ev.InvariantBroken("one_holder_per_lease", f"{ticket} was granted and has no lease")
        body = {
            "fence": lease.fence, "secret": extras.secret, "expires_at": self._context.lease_time.expires_at(),
            "conversation": conversation_of(state.agent),
        }  # fmt: skip
        return {"state": "granted", "lease": body}
