"""A Messages API on loopback, so that the real claude runs without an account. Standard library only.

    python tests/support/standins/model.py [--port 0]        prints its URL as the first line

Lines of the last user text control the reply. They may be anywhere in it. The last line of a kind counts:
    #tokens N [xN] · #pace 20ms · #delay 2s · #say TEXT · #fail CODE [xN] · #tool NAME {json}
`xN` applies to the first N requests with that line. In TEXT, \\n is a line end.
Each turn gets one `#tool`: a request whose last message has tool results gets text. GET /log returns every request with
its messages and its outcome, /log?from=N those after the first N. DELETE /log clears the log. GET /health answers 200.
"""

import argparse
import itertools
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STATUS_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class Model:
    """The log of requests, and the counts of control lines."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.ids = itertools.count(1)
        self.failed: dict[str, int] = {}
        self.lock = threading.Lock()

    def fails(self, text: str) -> int | None:
        """Return the error status that this text requests, as long as its count lasts."""
        found = re.fullmatch(r"(\d{3})(?:\s+x(\d+))?", last(text, "fail") or "")
        if found is None:
            return None
        with self.lock:
            self.failed[text] = self.failed.get(text, 0) + 1
            spent = found[2] is not None and self.failed[text] > int(found[2])
        return None if spent else int(found[1])

    def counted(self, argument: str | None) -> str | None:
        """Return the argument of a line `#name ARG xN` as long as its count lasts, otherwise None."""
        found = re.fullmatch(r"(\S+)\s+x(\d+)", argument or "")
        if found is None:
            return None
        with self.lock:
            self.failed[found[0]] = self.failed.get(found[0], 0) + 1
            return found[1] if self.failed[found[0]] <= int(found[2]) else None


def blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


SURFACED = re.compile(r"The user sent a new message while you were working:\n(.*?)\n\nThis is how", re.DOTALL)
"""claude passes a prompt that came during a turn inside the next tool result."""


def prompt_of(messages: list[dict[str, Any]]) -> str:
    """Return the last text that a person wrote. Skip claude's tagged additions, but not a prompt within them."""
    for message in reversed(messages):
        if message["role"] == "user":
            texts = [text for block in blocks(message["content"]) for text in written(block)]
            if texts:
                return texts[-1]
    return ""


def written(block: dict[str, Any]) -> list[str]:
    """Return the texts of this block that a person wrote."""
    if block.get("type") == "tool_result":
        return [text for part in blocks(block.get("content")) for text in SURFACED.findall(part.get("text", ""))]
    text = str(block.get("text", ""))
    return SURFACED.findall(text) or ([text] if text and not text.lstrip().startswith("<") else [])


def last(text: str, name: str) -> str | None:
    found = re.findall(rf"^[ \t]*#{name}[ \t]+(.*?)[ \t]*$", text, re.MULTILINE)
    return found[-1] if found else None


def seconds(text: str | None, default: float) -> float:
    found = re.fullmatch(r"([\d.]+)(ms|s)", text or "")
    return default if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)


def reply(model: Model, body: dict[str, Any], number: int) -> tuple[dict[str, Any], list[str]]:
    """Return (content block, its text in pieces)."""
    messages = body["messages"]
    text = prompt_of(messages)
    long = model.counted(last(text, "tokens"))
    answered = any(b.get("type") == "tool_result" for b in blocks(messages[-1]["content"]))
    tool = last(text, "tool")
    if tool and not answered:
        name, _, given = tool.partition(" ")
        return {"type": "tool_use", "id": f"toolu_{number:08d}", "name": name, "input": json.loads(given or "{}")}, []
    said = last(text, "say") if long is None else None
    tokens = long or (last(text, "tokens") or "8").partition(" ")[0]
    words = said.replace("\\n", "\n").split(" ") if said is not None else [f"word{i}" for i in range(int(tokens))]
    pieces = [w if i == 0 else f" {w}" for i, w in enumerate(words)]
    return {"type": "text", "text": "".join(pieces)}, pieces


class Handler(BaseHTTPRequestHandler):
    """Handles one request. Every response closes its connection."""

    model: Model

    def do_GET(self) -> None:
        path, _, first = self.path.partition("?from=")
        self.answer(200, self.model.log[int(first or 0) :] if path == "/log" else {"ok": True})

    def do_HEAD(self) -> None:
        self.answer(200, {})

    def do_DELETE(self) -> None:
        self.model.log.clear()
        self.answer(200, {"ok": True})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self.answer(200, {"input_tokens": len(raw) // 4})
        elif path == "/v1/messages":
            self.messages(json.loads(raw))
        else:
            self.answer(404, {"type": "error", "error": {"type": "not_found_error", "message": self.path}})

    def messages(self, body: dict[str, Any]) -> None:
        text = prompt_of(body["messages"])
        entry = {
            "at": time.time(),
            "model": body.get("model"),
            "prompt": text,
            "messages": body["messages"],
            "outcome": "cut",
        }
        entry["tools"] = [t.get("name") for t in body.get("tools", [])]
        entry["system"] = body.get("system")
        self.model.log.append(entry)
        if status := self.model.fails(text):
            entry["outcome"] = f"failed {status}"
            kind = STATUS_TYPES.get(status, "api_error")
            self.answer(status, {"type": "error", "error": {"type": kind, "message": f"asked to fail with {status}"}})
            return
        time.sleep(seconds(last(text, "delay"), 0))
        try:
            self.stream(body, text)
            entry["outcome"] = "done"
        except OSError:
            pass  # claude closed the connection: an interrupted turn

    def stream(self, body: dict[str, Any], text: str) -> None:
        block, pieces = reply(self.model, body, next(self.model.ids))
        stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
        whole = {
            "id": f"msg_{next(self.model.ids):08d}", "type": "message", "role": "assistant", "model": body.get("model"),
            "content": [block], "stop_reason": stop, "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": max(1, len(pieces))},
        }  # fmt: skip
        if not body.get("stream"):
            self.answer(200, whole)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        opened = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 10, "output_tokens": 1}}
        self.event("message_start", message=opened)
        empty = {"type": "text", "text": ""} if block["type"] == "text" else {**block, "input": {}}
        self.event("content_block_start", index=0, content_block=empty)
        if block["type"] == "tool_use":
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            self.event("content_block_delta", index=0, delta=delta)
        pace = seconds(last(text, "pace"), 0.005)
        for piece in pieces:
            time.sleep(pace)
            self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        self.event("content_block_stop", index=0)
        ended = {"stop_reason": stop, "stop_sequence": None}
        self.event("message_delta", delta=ended, usage={"output_tokens": max(1, len(pieces))})
        self.event("message_stop")

    def event(self, kind: str, **fields: Any) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode())
        self.wfile.flush()

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


def main() -> None:
    # A prompt may request a tool's input that is nested a thousand levels deep.
    sys.setrecursionlimit(20_000)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    Handler.model = Model()
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
