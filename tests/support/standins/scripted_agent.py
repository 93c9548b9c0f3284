"""An agent that speaks claude's stream-json protocol, with faults on command. Standard library only.

    python -I -S scripted_agent.py [--fault NAME[=ARG]]... <claude's own flags>

Lines of a prompt control its turn: #tokens N, #pace 20ms, #say TEXT, #lines A|B, #big N (letters), #history, #ask TOOL
{json}, #bg 2s, #cmd TEXT, #fail TEXT (an API error), #error N (API errors, N times), #cost USD, #spawn COMMAND (a shell
command that continues in a session of its own). `#script FILE` reads them from a line of the file (`say=x;tokens=5`):
the first line, and after each completed turn the next one. The last line repeats. A prompt without such lines uses the
conversation's last script.
$CLAUDE_CONFIG_DIR stores the conversation, so that a resumed conversation knows its prompts.
scripted_faults.py describes the faults of --fault, #fault and #at.
"""

import json
import os
import queue
import sys
import threading
import time
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from scripted_faults import Faults

CAPABILITIES = ["interrupt_cancel_queued_v1", "msg_lifecycle_v1"]
KNOWN = ("initialize", "set_model", "apply_flag_settings", "get_session_cost", "stop_task")
"""Control requests that are answered with success."""
AFTER = {"initialize": "initialized", "get_session_cost": "fenced"}
"""Moments after the response to a control request."""


class Agent(Faults):
    """One process: a reader thread fills the inbox, the main thread runs turns."""

    def __init__(self, argv):
        flags = {}
        self.begin([word.removeprefix("--fault=") for word in argv if word.startswith("--fault=")])
        words = iter(argv)
        for word in words:
            if word in ("--session-id", "--resume", "--model"):
                flags[word] = next(words)
        self.session = flags.get("--resume") or flags.get("--session-id") or str(uuid.uuid4())
        self.model = flags.get("--model", "scripted")
        place = os.path.join(os.environ.get("CLAUDE_CONFIG_DIR", "."), "projects", "scripted")
        os.makedirs(place, exist_ok=True)
        self.file = os.path.join(place, f"{self.session}.jsonl")
        if "--resume" in flags and not os.path.exists(self.file):
            print(f"No conversation found with session ID: {self.session}", file=sys.stderr)
            sys.exit(1)
        self.inbox = queue.Queue()
        self.later = []
        self.lock = threading.Lock()
        self.tasks = {}
        self.cost = 0.0
        self.script = None

    def out(self, **line):
        if "split-utf8" in self.faults:
            self.bytewise({**line, "session_id": self.session})
            return
        with self.lock:
            sys.stdout.write(json.dumps({**line, "session_id": self.session}) + "\n")
            sys.stdout.flush()

    def raw(self, data):
        with self.lock:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def state(self, state):
        self.out(type="system", subtype="session_state_changed", state=state)

    def life(self, uid, state):
        if "no-lifecycle" not in self.faults:
            self.out(type="command_lifecycle", command_uuid=uid, state=state)

    def init(self):
        capabilities = [] if "no-capability" in self.faults else CAPABILITIES
        if "renamed" in self.faults:
            self.session = str(uuid.uuid4())
            self.file = os.path.join(os.path.dirname(self.file), f"{self.session}.jsonl")
        with self.lock:
            line = {
                "type": "system", "subtype": "init", "session_id": self.session, "model": self.model,
                "capabilities": capabilities, "claude_code_version": "scripted",
            }  # fmt: skip
            print(json.dumps(line), flush=True)

    def result(self, uid, text, reason="completed", error=False, origin=None, cost=0.001):
        self.cost += cost
        self.out(
            type="result", subtype="success", is_error=error, terminal_reason=reason, result=text,
            user_message_uuids=[uid, *self.also] if uid else None, origin=origin and {"kind": origin}, num_turns=1,
            total_cost_usd=self.cost, usage={"output_tokens": 1},
        )  # fmt: skip

    def respond(self, rid, ok=True, **body):
        kind = {"subtype": "success", "response": body} if ok else {"subtype": "error", "error": "unknown request"}
        self.out(type="control_response", response={"request_id": rid, **kind})

    # ---- reading

    def read(self):
        # Read line by line, because an agent with the fault `deaf` must leave the rest in the pipe.
        left = int(self.faults.get("deaf", -1))
        while left != 0 and (text := sys.stdin.readline()):
            left -= 1
            if os.path.exists("heard"):
                with open("heard", "a") as file:
                    file.write(text)
            if text.strip():
                try:
                    self.inbox.put(json.loads(text))
                except ValueError:
                    print("Error parsing streaming input line", file=sys.stderr)
                    os._exit(1)
        if left == 0:
            time.sleep(3600)
        self.inbox.put(None)

    def next(self, timeout=None):
        """Return the next line. Answer control requests that need no turn."""
        while True:
            line = self.inbox.get(timeout=timeout)
            if line is None or line["type"] != "control_request":
                return line
            request, rid = line["request"], line["request_id"]
            kind = request["subtype"]
            if kind == "interrupt":
                return line
            mute = kind == self.faults.get("mute")
            if kind == "set_model":
                self.model = request["model"]
            if kind == "stop_task":
                self.stop_task(request["task_id"], mute)
            self.asked = rid
            if kind == "initialize":
                self.at("initialize")
            if not mute:
                self.respond(rid, ok=kind in KNOWN and kind != self.faults.get("refuse"), pid=os.getpid())
            if kind in AFTER:
                self.at(AFTER[kind])

    def stop_task(self, task, mute):
        self.at("stopping")
        if not mute:
            self.tasks.pop(task, None)
            self.changed()

    # ---- background tasks and foreign turns

    def changed(self):
        self.out(type="system", subtype="background_tasks_changed", tasks=[{"task_id": t} for t in self.tasks])

    def background(self, seconds):
        task = uuid.uuid4().hex[:8]
        self.tasks[task] = True
        self.changed()

        def end():
            time.sleep(seconds)
            if self.tasks.pop(task, None):
                self.changed()
                self.inbox.put({"type": "foreign"})

        threading.Thread(target=end, daemon=True).start()

    def foreign(self, origin="task-notification"):
        self.state("running")
        self.init()
        self.out(type="assistant", message={"content": [{"type": "text", "text": "nobody asked"}]})
        ends = time.monotonic() + 0.05
        while time.monotonic() < ends:
            try:
                line = self.next(timeout=0.01)
            except queue.Empty:
                continue
            if line and line["type"] == "control_request":
                self.respond(line["request_id"], still_queued=[], cancelled=[])
                break
            self.later.append(line)
        self.result(None, "nobody asked", origin=origin)
        self.state("idle")

    # ---- a turn

    def turn(self, line):
        uid, prompt = line["uuid"], line["message"]["content"]
        self.uid = uid
        self.prompted(prompt)
        self.exit("exit-turn-early")
        if "foreign-first" in self.faults:
            self.always.pop("foreign-first", None)
            self.life(uid, "queued")
            self.foreign()
        else:
            self.life(uid, "queued")
        self.at("queued")
        self.state("running")
        stop = self.peek()
        if stop is not None:
            self.life(uid, "cancelled")
            self.ack(stop, [uid])
            self.state("idle")
            return
        self.life(uid, "started")
        if "no-lifecycle" in self.faults:
            time.sleep(3600)
        self.at("started")
        self.init()
        self.at("init")
        self.remember(prompt)
        self.failing, self.price = False, 0.001
        reason, text = self.live(uid, prompt)
        self.exit("exit-turn")
        self.at("text")
        if "no-close" in self.faults:
            time.sleep(3600)
        if "no-result" not in self.faults:
            self.result(uid, text, reason, error=self.failing, cost=self.price)
            if "two-results" in self.faults:
                self.result(uid, "the second", reason)
        self.at("result")
        self.life(uid, "completed" if reason == "completed" else "cancelled")
        self.at("completed")
        self.state("idle")
        self.at("idle")
        if "late-ack" in self.faults and reason != "completed":
            time.sleep(int(self.faults["late-ack"]) / 1000)
            self.ack(self.pending, [])
        if "foreign-idle" in self.faults:
            self.timer = threading.Timer(
                int(self.faults["foreign-idle"]) / 1000, lambda: self.inbox.put({"type": "foreign"})
            )
            self.timer.daemon = True
            self.timer.start()

    def peek(self):
        try:
            line = self.later.pop(0) if self.later else self.next(timeout=0.0005)
        except queue.Empty:
            return None
        if line and line["type"] == "control_request":
            return line
        self.later.append(line)
        return None

    def ack(self, line, cancelled):
        self.pending = line
        if "no-ack" not in self.faults:
            self.respond(line["request_id"], still_queued=[], cancelled=cancelled)

    def directives(self, prompt):
        found = {}
        for text in prompt.splitlines():
            if text.strip().startswith("#"):
                name, _, arg = text.strip()[1:].partition(" ")
                found[name] = arg
        if "script" in found or not found:
            self.script = found.get("script", self.script)
            found |= self.scripted()
        return found

    def seen(self, words):
        """Return how many prompts of this conversation contain these words."""
        with open(self.file) as file:
            return sum(words in json.loads(line) for line in file)

    def scripted(self):
        if self.script is None:
            return {}
        done = f"{self.script}.done"
        at = len(open(done).readlines()) if os.path.exists(done) else 0
        lines = open(self.script).read().splitlines()
        return dict(one.split("=", 1) for one in lines[min(at, len(lines) - 1)].split(";"))

    def live(self, uid, prompt):
        """Run the turn. Return (terminal reason, text)."""
        asked = self.directives(prompt)
        if "spawn" in asked:
            self.spawn(asked["spawn"])
        if self.misbehave():
            return "aborted_streaming", ""
        if "bg" in asked:
            self.background(float(asked["bg"].rstrip("s")))
        self.price = float(asked.get("cost", 0.001))
        text = self.text(asked)
        if "error" in asked and self.seen("#error") <= int(asked["error"] or 10**6):
            self.failing = True
            return "api_error", "API Error: 529"
        if "ask" in asked:
            text = self.ask(*asked["ask"].partition(" ")[::2])
            if text is None:
                return "aborted_tools", ""
        if self.streamed(asked):
            return "aborted_streaming", ""
        if "fail" in asked:
            self.failing, text = True, asked["fail"]
        elif self.script is not None and ("script" in asked or not self.own(prompt)):
            with open(f"{self.script}.done", "a") as file:
                file.write("completed\n")
        self.out(type="assistant", message={"content": [{"type": "text", "text": text}]}, user_message_uuid=uid)
        return "completed", text

    def text(self, asked):
        """Return the turn's answer."""
        if "history" in asked:
            return json.dumps([json.loads(line) for line in open(self.file)])
        if "big" in asked:
            return "x" * int(asked["big"])
        if "lines" in asked:
            return asked["lines"].replace("|", "\n")
        return asked.get("say", "scripted answer")

    def streamed(self, asked):
        """Stream the tokens at their pace. Return True when an interrupt came."""
        pace = float(asked.get("pace", "1ms").removesuffix("ms").removesuffix("s")) / 1000
        for word in range(int(asked.get("tokens", 1))):
            if "flood" not in self.faults:
                self.out(type="stream_event", event={"type": "content_block_delta", "n": word})
            if self.stopped(pace):
                return True
        return False

    @staticmethod
    def spawn(command):
        from subprocess import DEVNULL, Popen

        Popen(["sh", "-c", command], stdin=DEVNULL, stdout=DEVNULL, start_new_session=True)

    @staticmethod
    def own(prompt):
        return any(line.strip().startswith("#") for line in prompt.splitlines())

    def stopped(self, seconds):
        """Wait for `seconds`. Return True when an interrupt came."""
        ends = time.monotonic() + seconds
        while True:
            try:
                line = self.next(timeout=max(0.0001, ends - time.monotonic()))
            except queue.Empty:
                return False
            if line is None:
                return False
            if line["type"] != "control_request":
                self.later.append(line)
                continue
            if "ignore-interrupt" in self.faults:
                continue
            self.exit("exit-drain")
            self.at("interrupt")
            if "ack-only" in self.faults:
                self.ack(line, [])
                time.sleep(3600)
            self.pending = line
            if "late-ack" not in self.faults:
                self.ack(line, [])
            self.out(type="user", message={"content": [{"type": "text", "text": "[Request interrupted by user]"}]})
            return True

    def ask(self, tool, given):
        rid = str(uuid.uuid4())
        self.state("requires_action")
        request = {"subtype": "can_use_tool", "tool_name": tool, "input": json.loads(given or "{}")}
        self.out(type="control_request", request_id=rid, request=request)
        self.at("asked")
        while True:
            line = self.next()
            if line["type"] == "control_response":
                self.state("running")
                return json.dumps(line["response"]["response"])
            if line["type"] == "control_request":
                self.out(type="control_cancel_request", request_id=rid)
                self.ack(line, [])
                self.state("running")
                return None

    def remember(self, prompt):
        with open(self.file, "a") as file:
            file.write(json.dumps(prompt) + "\n")

    def run(self):
        if "slow-start" in self.faults:
            time.sleep(int(self.faults["slow-start"]) / 1000)
        self.exit("exit-start")
        self.at("start")
        threading.Thread(target=self.read, daemon=True).start()
        while True:
            line = self.later.pop(0) if self.later else self.next()
            if line is None:
                sys.exit(0)
            if line["type"] == "user":
                self.turn(line)
                self.exit("exit-idle")
            elif line["type"] == "foreign":
                self.foreign()
            elif line["type"] == "control_request":
                self.ack(line, [])


if __name__ == "__main__":
    Agent(sys.argv[1:]).run()
