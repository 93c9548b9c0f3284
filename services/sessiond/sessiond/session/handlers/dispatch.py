"""Passes each item of the inbox to its handler, and replies to each request."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import gevent

from sessiond.lock import events as ev
from sessiond.problems import Problem, away, not_owner, problem_of
from sessiond.session import commands as co
from sessiond.session.agent.items import AgentEvent, AgentItem, AgentLines
from sessiond.session.handlers import agent, leases, tickets, turns
from sessiond.session.inbox import AlreadyAnswered, Request
from sessiond.session.pipeline.commits import NotApplied
from sessiond.session.pipeline.runner import Pipeline
from sessiond.store.store import Deposed

R = TypeVar("R")
Handlers = Mapping[type, Callable[[Pipeline, Any], Any]]

HANDLERS: Final[Handlers] = {
    co.TakeTicket: tickets.take_ticket,
    co.WaitTicket: tickets.wait_ticket,
    co.LeaveTicket: tickets.leave_ticket,
    co.WithdrawTicket: tickets.withdraw_ticket,
    co.RenewLease: leases.renew_lease,
    co.ReleaseLease: leases.release_lease,
    co.ForceRelease: leases.force_release,
    co.StartTurn: turns.start_turn,
    co.CancelTurn: turns.cancel_turn,
    co.RestartAgent: agent.restart_agent,
    co.NewConversation: agent.new_conversation,
    co.SleepAgent: agent.sleep_agent,
    co.AnswerQuestion: agent.answer_question,
    AgentLines: agent.agent_lines,
    AgentEvent: agent.agent_event,
}
"""The handler of each command and of each item of the agent. It takes the pipeline and the item."""


class Dispatcher:
    """Serves the items of one session's inbox."""

    def __init__(self, pipeline: Pipeline, handlers: Handlers = HANDLERS) -> None:
        self.pipeline = pipeline
        self._handlers = handlers

    def handle_command(self, command: co.Command[R]) -> R:
        """Run the command's handler and return its reply."""
        answer: R = self._handlers[type(command)](self.pipeline, command)
        return answer

    def handle_agent(self, item: AgentItem) -> None:
        """Run the handler of an item of the agent."""
        self._handlers[type(item)](self.pipeline, item)

    def serve(self, item: Request[Any] | AgentItem) -> None:
        """Handle an item of the inbox; a request gets its reply.

        Raises:
            Deposed: another instance owns the session.
            Exception: the step is not allowed, which is a bug; the session must recover.
        """
        if isinstance(item, Request):
            self.pipeline.cause = item.arrived_at
            self._serve_request(item)
        else:
            self.pipeline.cause = time.monotonic()
            self.handle_agent(item)

    def _serve_request(self, request: Request[R]) -> None:
        inbox = self.pipeline.context.inbox
        inbox.serving = request
        try:
            answer = self.handle_command(request.command)
        except (AlreadyAnswered, NotApplied):
            request.refuse(inbox.closed or away())
        except Problem as problem:
            request.refuse(problem)
        except ev.Refused as refused:
            request.refuse(problem_of(refused))
        except Deposed as deposed:
            request.refuse(not_owner(deposed.url))
            raise
        except BaseException:
            request.refuse(Problem("internal", 500, "The owner loop refused the step"))
            raise
        else:
            # Let the waiter that this step answered run first.
            gevent.sleep(0)
            request.reply(answer)
        finally:
            inbox.serving = None
