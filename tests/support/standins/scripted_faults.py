"""Faults of the scripted agent: what it does wrong, when, and for how long.

Faults come from `--fault NAME[=ARG]` (for the whole process), from a prompt's line `#fault NAME[=ARG]...` (for its
turn), or from the file `faults` in the working directory: one line for each process, each used once.
`#at MOMENT ACTION[=ARG]...` acts once at a moment of the turn. A line of the file that begins with `at` acts in that
process. Moments: start, initialize, initialized, queued, started, init, text, result, completed, idle, fenced,
interrupt, asked.
Faults: no-ack, late-ack=ms, ack-only, no-result, no-lifecycle, two-results, foreign-idle=ms, foreign-first, garbage,
half-line, exit-start=code, exit-turn=code, exit-drain=code, endless, retries, deaf=lines (reads only this many lines),
long-line, split-utf8, flood=lines, torrent=bytes (lines of this size until an interrupt), stderr-flood, renamed,
no-capability, slow-start=ms, no-close, ignore-interrupt, refuse=subtype, mute=subtype (no response).
Actions: exit=code, silent, wait (for an interrupt), until=file (exists), sleep=ms, state=word, life=word, init,
result=unnamed|other, also, again, respond, foreign, ask=tool, task, raw=name, close-stdout, spawn (runs the command in
the file `spawn`), fault=NAME[=ARG] (from now on, for the whole process).
"""

import json
import os
import sys
import time
import uuid


def deep(depth):
    """Return a message with a tool's input that is nested `depth` levels deep."""
    given = b'{"a":' * depth + b"1" + b"}" * depth
    return b'{"type":"assistant","message":{"content":[{"type":"tool_use","input":' + given + b"}]}}\n"


def unknown(size):
    """Return an unknown request with an id of `size` bytes. Its refusal is as long."""
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
"""Raw output by name. Large output is a function, so that it is created only when needed."""


class Faults:
    """A mixin of the agent. `faults` are those of the turn, `always` those of the process."""

    def begin(self, words):
        """Read the process's faults from the flags and from the next line of the file."""
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
        """Read the turn's faults from its prompt."""
        self.faults, self.also = dict(self.always), []
        for line in prompt.splitlines():
            if line.startswith("#fault "):
                self.add(line.split()[1:], self.faults)
            elif line.startswith("#at "):
                self.arm(line.removeprefix("#at "))

    def at(self, moment):
        """Run this moment's actions once, and create a file that tests wait for."""
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
        """Wait for an interrupt and put it back for the next reader."""
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
        """Write one line byte by byte, with pauses between the bytes of one character."""
        for byte in json.dumps(line, ensure_ascii=False).encode() + b"\n":
            self.raw(bytes([byte]))
            if byte >= 0x80:
                time.sleep(0.005)

    # ---- faults instead of, or before, a turn's answer

    def misbehave(self):
        """Run the turn's faults. Return True when the turn was interrupted."""
        self.write_faults()
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

    def write_faults(self):
        """Write what comes before the turn's answer."""
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

    def torrent(self, size):
        """Write lines as fast as possible. The file `torrent.mark` has the number of bytes so far."""
        empty = json.dumps({"type": "stream_event", "event": {"text": ""}})
        line = json.dumps({"type": "stream_event", "event": {"text": "x" * (size - len(empty) - 1)}}).encode() + b"\n"
        block, sent = line * max(1, 2**16 // len(line)), 0
        while not self.stopped(0):
            self.raw(block)
            sent += len(block)
            with open("torrent.mark", "w") as file:
                file.write(str(sent))
        return True
