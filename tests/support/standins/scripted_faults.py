"""Faults of the scripted agent: what it does wrong, when, and for how long.

Names come with `--fault NAME[=ARG]` (as long as the process lives), with a prompt's line `#fault NAME[=ARG]...` (its
turn), or from the file `faults` in the working directory: one line a process, each used once.
`#at MOMENT ACTION[=ARG]...` does something at a moment of the turn, once; a line of the file that begins with `at` does
it in that process. Moments: start, initialize, initialized, queued, started, init, text, result, completed,
idle, fenced, interrupt, asked.
Faults: no-ack, late-ack=ms, ack-only, no-result, no-lifecycle, two-results, foreign-idle=ms, foreign-first, garbage,
half-line, exit-start=code, exit-turn=code, exit-drain=code, endless, retries, deaf=lines (reads so many and no more),
long-line, split-utf8, flood=lines, torrent=bytes (lines of that size until it is interrupted), stderr-flood, renamed,
no-capability, slow-start=ms, no-close, ignore-interrupt, refuse=subtype, mute=subtype (no answer).
Actions: exit=code, silent, wait (for an interrupt), until=file (is there), sleep=ms, state=word, life=word, init,
result=unnamed|other, also, again, respond, foreign, ask=tool, task, raw=name, close-stdout, spawn (the command in the
file `spawn`), fault=NAME[=ARG] (from now on, as long as the process lives).
"""

import json
import os
import sys
import time
import uuid


def deep(depth):
    """A tool's input as the model may write it."""
    given = b'{"a":' * depth + b"1" + b"}" * depth
    return b'{"type":"assistant","message":{"content":[{"type":"tool_use","input":' + given + b"}]}}\n"


def unknown(size):
    """A request that nobody knows; its refusal is as long."""
    rid = b"q" * size
    return b'{"type":"control_request","request_id":"' + rid + b'","request":{"subtype":"request_user_dialog"}}\n'


RAW = {
    "garbage": b"this is no JSON\n",
    "shorts": lambda: b"x\n" * 2**20,
    "deep": deep(300),
    "deeper": deep(1100),
    "request": unknown(1),
    "results": b'{"type":"result"}\n' * 3000,
    "requests": lambda: unknown(2**20) * 20,
    "half": b'{"type":"assist',
    "bytes": b"\xff\xfe\x00\n",
    "array": b"[1, 2]\n",
    "broken": b'{"type":"result","user_message_uuids":7}\n',
    "crlf": b'{"type":"stream_event","event":{}}\r\n\r\n',
    "dump": b"    at main (agent.js:1)\n" * 2000,
    "half-pair": rb'{"type":"assistant","message":{"content":[{"type":"text","text":"cut \ud83d"}]}}' + b"\n",
    "huge": lambda: b"x" * (66 * 2**20),
}
"""By name; what is large is made when it is asked for."""


class Faults:
    """Mixed into the agent. `faults` are those of this turn, `always` those of the process."""

    def begin(self, words):
        """Takes the process's faults: the flags', and the next line of the file."""
        self.always, self.moments, self.also = {}, {}, []
        self.add(words)
        if os.path.exists("faults"):
            first, *rest = open("faults").read().split("\n")
            with open("faults", "w") as file:
                file.write("\n".join(rest))
            if first.startswith("at "):
                self.arm(first.removeprefix("at "))
            else:
                self.add(first.split())
        self.faults = dict(self.always)

    def add(self, words, where=None):
        for word in words:
            name, _, arg = word.partition("=")
            (self.always if where is None else where)[name] = arg or True

    def arm(self, text):
        moment, *actions = text.split()
        self.moments[moment] = actions

    def prompted(self, prompt):
        """Takes the turn's faults out of its prompt."""
        self.faults, self.also = dict(self.always), []
        for line in prompt.splitlines():
            if line.startswith("#fault "):
                self.add(line.split()[1:], self.faults)
            elif line.startswith("#at "):
                self.arm(line.removeprefix("#at "))

    def at(self, moment):
        """Does what is to be done at this moment, once, and marks it for a test that waits."""
        actions = self.moments.pop(moment, ())
        if actions:
            open(f"{moment}.mark", "w").close()
        for action in actions:
            name, _, arg = action.partition("=")
            getattr(self, "do_" + name.replace("-", "_"))(*([arg] if arg else []))

    def exit(self, name):
        if name in self.faults:
            self.do_exit(self.faults[name])

    # ---- actions

    def do_exit(self, code):
        os.kill(os.getpid(), 9) if code == "137" else os._exit(int(code))

    def do_silent(self):
        time.sleep(3600)

    def do_wait(self):
        """Until an interrupt is there; it is kept for whoever looks next."""
        line = self.next()
        while line is not None and line["type"] != "control_request":
            self.later.append(line)
            line = self.next()
        self.later.insert(0, line)

    def do_until(self, name):
        while not os.path.exists(name):
            time.sleep(0.005)

    def do_sleep(self, ms):
        time.sleep(int(ms) / 1000)

    def do_state(self, word):
        self.state(word)

    def do_life(self, word):
        self.life(self.uid, word)

    def do_init(self):
        self.init()

    def do_result(self, whose):
        self.result(str(uuid.uuid4()) if whose == "other" else None, "not yours")

    def do_also(self):
        self.also = [str(uuid.uuid4())]

    def do_again(self):
        self.respond(self.asked)

    def do_respond(self):
        self.respond("never-asked")

    def do_foreign(self):
        self.foreign()

    def do_ask(self, tool):
        self.ask(tool, '{"command": "true"}')

    def do_task(self):
        self.background(3600)

    def do_raw(self, name):
        data = RAW[name]
        self.raw(data() if callable(data) else data)

    def do_spawn(self):
        self.spawn(open("spawn").read())

    def do_fault(self, word):
        self.add([word])
        self.faults = dict(self.always)

    def do_close_stdout(self):
        sys.stdout.flush()
        os.close(1)
        time.sleep(3600)

    def bytewise(self, line):
        """One line, each byte by itself; between the bytes of one letter the owner has time to read."""
        for byte in json.dumps(line, ensure_ascii=False).encode() + b"\n":
            self.raw(bytes([byte]))
            if byte >= 0x80:
                time.sleep(0.005)

    # ---- what a turn does instead of, or before, its answer

    def misbehave(self):
        """True when the turn was interrupted meanwhile."""
        if "garbage" in self.faults:
            self.raw(RAW["garbage"])
        if "half-line" in self.faults:
            self.raw(RAW["half"])
            time.sleep(3600)
        if "long-line" in self.faults:
            self.out(type="assistant", message={"content": [{"type": "text", "text": "x" * 5_000_000}]})
        if "flood" in self.faults:
            line = json.dumps({"type": "stream_event", "event": {"text": "x" * 900}}).encode() + b"\n"
            for _ in range(int(self.faults["flood"]) // 1000):
                self.raw(line * 1000)
        if "stderr-flood" in self.faults:
            sys.stderr.write("noise\n" * 200_000)
        if "torrent" in self.faults:
            return self.torrent(int(self.faults["torrent"]))
        if "endless" in self.faults:
            while not self.stopped(0.001):
                self.out(type="stream_event", event={})
            return True
        if "retries" in self.faults:
            for attempt in range(1, 10_000):
                self.out(type="system", subtype="api_retry", attempt=attempt, error_status=529)
                if self.stopped(0.05):
                    return True
        return False

    def torrent(self, size):
        """As fast as it can; the file `torrent.mark` says how many bytes so far."""
        empty = json.dumps({"type": "stream_event", "event": {"text": ""}})
        line = json.dumps({"type": "stream_event", "event": {"text": "x" * (size - len(empty) - 1)}}).encode() + b"\n"
        block, sent = line * max(1, 2**16 // len(line)), 0
        while not self.stopped(0):
            self.raw(block)
            sent += len(block)
            with open("torrent.mark", "w") as file:
                file.write(str(sent))
        return True
