"""Scenes of tickets, leases, turns and their deadlines."""

import http.client
import json
from typing import Any

import psutil

from support.goldens.exchanges import Reader
from support.goldens.mask import Mask
from support.goldens.sessiond_recorder import LONG_PROMPT, RecordedSessiond


def release_after_turns(service: RecordedSessiond) -> None:
    """Take a ticket, run turns, release the lease, and read everything afterwards."""
    s = service.scene("released")
    s.http("GET", "~")
    s.http("GET", "~/ledger")
    ticket = s.take_ticket("first")
    s.record_redis("queued")
    s.http("POST", "~/tickets", {"kind": "handler", "key": "first"})
    s.http("GET", f"~/tickets/{ticket}")
    assert s.wait(ticket, "h").body["state"] == "granted"
    s.record_redis("granted")
    s.call("POST", "~/lease/renew", "h")
    second = s.take_ticket("second", priority=0)
    worker = s.take_ticket("third", "worker")
    assert s.wait(second, "h-2", 0).body["state"] == "waiting"
    s.wait(worker, "w", 0)
    s.http("GET", "~")
    done = s.run_turn(
        "h", 'What is this?\n#tokens 2\n#cost 0.25\n#ask Read {"file_path": "/x"}', key="t", model="other"
    )
    turn = done.headers["Turn-Id"]
    s.http("GET", f"~/turns/{turn}")
    s.http("GET", "~/turns?key=t")
    s.run_turn("h", 'What is this?\n#tokens 2\n#cost 0.25\n#ask Read {"file_path": "/x"}', key="t", model="other")
    s.run_turn("h", "Another prompt", key="t")
    s.run_turn("h", "#say raw", raw=True)
    s.record_redis("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.call("DELETE", "~/lease", "h")
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.wait(ticket, "h", 0)
    s.http("DELETE", f"~/tickets/{second}")
    s.http("DELETE", f"~/tickets/{worker}", {"holder": "w"})
    s.record_redis("everything is over")
    entries = s.http.ask("GET", "~/ledger?count=5000").json()["entries"]
    s.http("GET", "~/ledger?count=2")
    s.http("GET", f"~/ledger?after={entries[-1]['id']}&wait=0.01")
    stream = s.http.ask("GET", f"~/ledger?after={entries[-3]['id']}", stream=True, Accept="text/event-stream")
    reader = Reader(stream, lambda events: len(events) == 2)
    reader.end()
    stream.read_data = reader.data
    s.http.record("GET", "~/ledger?after=<entry>", None, stream)
    s.write_facts()


def cancel_turns(service: RecordedSessiond) -> None:
    """The holder, a timeout and an operator each cancel a turn."""
    s = service.scene("cancelled")
    s.acquire("h")
    turn, record = s.start_turn("h", LONG_PROMPT, key="t")
    s.record_redis("in a turn")
    s.http("GET", "~")
    s.http("GET", f"~/turns/{turn}")
    s.run_turn("h", "#say two")
    s.run_turn("h", LONG_PROMPT, key="t")
    s.http("POST", "~/conversation", {})
    s.call("DELETE", f"~/turns/{turn}", "h")
    record()
    s.call("DELETE", f"~/turns/{turn}", "h")
    s.run_turn("h", LONG_PROMPT, key="t", timeout=2)
    turn, record = s.start_turn("h", LONG_PROMPT)
    s.http("DELETE", f"~/turns/{turn}")
    record()
    s.record_redis("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.write_facts()


def fail_turns(service: RecordedSessiond) -> None:
    """Turns fail, and sessiond replaces an agent process that sends garbage."""
    s = service.scene("failed")
    s.acquire("h")
    s.run_turn("h", "#say")
    s.run_turn("h", "#fail API Error: overloaded")
    s.run_turn("h", "#error")
    s.run_turn("h", "#at text raw=garbage\n#say two")
    s.wait_for_event("agent-reaped")
    s.run_turn("h", "#say well", key="after")
    s.record_redis("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.write_facts()


def preempt_worker(service: RecordedSessiond) -> None:
    """A handler's ticket preempts a worker during its turn."""
    s = service.scene("preempted")
    worker = s.acquire("w", "worker")
    _, record = s.start_turn("w", LONG_PROMPT, key="t")
    handler = s.take_ticket("h")
    record()
    s.wait_for_event("back")
    s.call("POST", "~/lease/renew", "w")
    s.wait(worker, "w", 0)
    s.wait(handler, "h")
    s.record_redis("the handler holds")
    s.http("GET", "~")
    s.call("DELETE", "~/lease", "h")
    s.wait(worker, "w")
    s.call("DELETE", "~/lease", "w")
    s.write_facts()


def force_release(service: RecordedSessiond) -> None:
    """An operator ends a lease while the agent ignores interrupts."""
    s = service.scene("forced")
    ticket = s.acquire("h")
    _, record = s.start_turn("h", f"#fault ignore-interrupt\n{LONG_PROMPT}")
    fence = s.view()["holder"]["fence"]
    s.http("POST", "~/force-release", {"fence": fence + 1, "reason": "stuck"})
    s.http("POST", "~/force-release", {"fence": fence, "reason": "stuck"})
    second = s.take_ticket("second")
    s.wait(second, "h-2", 0)
    s.http("GET", "~")
    s.record_redis("draining")
    s.http("POST", "~/force-release", {"fence": fence, "reason": "stuck still"})
    record()
    s.http("GET", f"~/tickets/{ticket}")
    s.call("POST", "~/lease/renew", "h")
    s.call("DELETE", "~/lease", "h")
    s.call("POST", "~/turns", "h", {"prompt": "too late"})
    s.wait(second, "h-2")
    s.call("DELETE", "~/lease", "h-2")
    s.write_facts()


def withdraw_tickets(service: RecordedSessiond) -> None:
    """Several holders use one ticket, and tickets are withdrawn."""
    s = service.scene("withdrawn")
    held, queued = s.acquire("a"), s.take_ticket("b")
    old = s.start_wait(queued, "old")
    s.wait(queued, "new", 0)
    old()
    s.wait(queued, "old", 0)
    s.http("DELETE", f"~/tickets/{queued}", {"holder": "old"})
    s.http("POST", "~/tickets", {"kind": "worker", "key": "b"})
    s.wait(held, "other", 0)
    s.record_redis("two holders")
    s.http("DELETE", f"~/tickets/{held}", {"holder": "other"})
    s.http("DELETE", f"~/tickets/{held}")
    s.call("POST", "~/lease/renew", "a")
    s.http("GET", f"~/tickets/{held}")
    s.wait(queued, "new")
    gone = s.take_ticket("c")
    s.http("DELETE", f"~/tickets/{gone}")
    s.http("GET", f"~/tickets/{gone}")
    s.call("DELETE", "~/lease", "new")
    s.write_facts()


def restart_agent(service: RecordedSessiond) -> None:
    """An operator restarts the agent during a turn and starts a new conversation.

    Also records the agent's command line, its environment and the lines that it reads.
    """
    s = service.scene("restarted")
    place = service.server.state / "work" / s.session
    place.mkdir(parents=True)
    (place / "heard").touch()
    s.acquire("h")
    s.run_turn("h", "#say one")
    s.run_turn("h", "#say two", model="other")
    agent = psutil.Process(s.view()["agent"]["pid"])
    argv, environ = agent.cmdline(), agent.environ()
    turn, record = s.start_turn("h", LONG_PROMPT)
    s.http("POST", "~/agent/restart", {})
    record()
    s.http("GET", f"~/turns/{turn}")
    s.http("POST", "~/conversation", {})
    s.run_turn("h", "#say afresh")
    s.record_redis("a fresh conversation")
    s.call("DELETE", "~/lease", "h")
    lines = [json.loads(line) for line in (place / "heard").read_text().splitlines()]
    first = argv.index("-p")
    service.golden.put(
        "agent.told",
        {
            "argv": [s.mask.value(word, "argv") for word in argv[first:]],
            "environ": sorted(environ),
            "lines": [masked_agent_line(s.mask, line) for line in lines],
        },
    )
    s.write_facts()


def masked_agent_line(mask: Mask, line: dict[str, Any]) -> Any:
    """Mask one input line of the agent. Of a prompt, only the directives (`#…`) stay."""
    if line.get("type") == "user":
        asked = [text for text in line["message"]["content"].splitlines() if text.startswith("#")]
        line = {**line, "message": {**line["message"], "content": f"<prompt with {' '.join(asked)}>"}}
    if "request_id" in line:
        line = {**line, "request_id": "<request>"}
    return mask.value(line)


def stop_background_task(service: RecordedSessiond) -> None:
    """The end of a lease stops its background task."""
    s = service.scene("tasks")
    s.acquire("h")
    s.run_turn("h", "#bg 600s\n#say begun")
    s.wait_for_event("tasks")
    s.record_redis("a task runs")
    s.wait_until(lambda: s.view()["agent"]["state"] == "idle")
    s.call("DELETE", "~/lease", "h")
    s.wait_for_event("drained")
    s.record_redis("it is stopped")
    s.write_facts()


def disconnect_waiter(service: RecordedSessiond) -> None:
    """A client disconnects during its wait."""
    s = service.scene("hung-up")
    s.acquire("z")
    ticket = s.take_ticket("a")
    link = http.client.HTTPConnection("127.0.0.1", service.server.port, timeout=60)
    headers = {"Authorization": f"Bearer {service.server.keys['handler']}", "Content-Type": "application/json"}
    body = json.dumps({"holder": "h", "wait": 60})
    link.request("POST", f"/v1/sessions/{s.session}/tickets/{ticket}/wait", body, headers)
    s.wait_for_event("present", 2)
    link.close()
    s.wait_for_event("absent")
    s.http("GET", f"~/tickets/{ticket}")
    s.http("DELETE", f"~/tickets/{ticket}")
    s.call("DELETE", "~/lease", "z")
    s.write_facts()


def expire_lease(service: RecordedSessiond) -> None:
    """A worker's lease expires because nobody renews it."""
    s = service.scene("expired")
    ticket = s.acquire("w", "worker")
    s.call("POST", "~/lease/renew", "w")
    s.wait_for_event("back")
    s.call("POST", "~/lease/renew", "w")
    s.http("GET", f"~/tickets/{ticket}")
    s.call("DELETE", "~/lease", "w")
    s.http("GET", f"~/tickets/{ticket}")
    s.write_facts()


def reach_hold_limit(service: RecordedSessiond) -> None:
    """A handler's lease reaches `max_hold` during a turn, while the agent ignores interrupts."""
    s = service.scene("hold-limit")
    ticket = s.acquire("h")
    _, record = s.start_turn("h", f"#fault ignore-interrupt\n{LONG_PROMPT}")
    record()
    s.wait_for_event("drained")
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.write_facts()


def lose_lease_three_times(service: RecordedSessiond) -> None:
    """The holder claims none of three leases, so the ticket ends."""
    s = service.scene("lost-thrice")
    ticket = s.take_ticket("a")
    for number in range(3):
        s.wait(ticket, "h")
        s.wait_for_event("ended", number + 1)
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.write_facts()


def pass_over_absent_head(service: RecordedSessiond) -> None:
    """The lock passes over an absent head after `head_wait`."""
    s = service.scene("passed-over")
    ahead, behind = s.take_ticket("a"), s.take_ticket("b")
    s.wait(behind, "h")
    s.http("GET", f"~/tickets/{ahead}")
    s.call("DELETE", "~/lease", "h")
    s.http("DELETE", f"~/tickets/{ahead}")
    s.write_facts()


def expire_tickets(service: RecordedSessiond) -> None:
    """Tickets without a wait become absent, lapse and end."""
    s, t = service.scene("too-old"), service.scene("absent")
    handler = s.take_ticket("a")
    s.wait_for_event("lapsed")
    s.http("GET", f"~/tickets/{handler}")
    t.acquire("z")
    waits = t.take_ticket("w", "worker")
    t.wait(waits, "w", 0)
    t.wait_for_event("absent")
    for scene, ticket in ((s, handler), (t, waits)):
        scene.wait_for_event("ticket-ended")
        scene.http("GET", f"~/tickets/{ticket}")
        scene.record_redis("the ticket has ended")
    t.call("DELETE", "~/lease", "z")
    s.write_facts()
    t.write_facts()
