"""A real headless Chromium. It is controlled by the DevTools protocol over two pipes, without a port or a library."""

import base64
import fcntl
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
)  # fmt: skip


def chromium() -> str | None:
    """Return the path of the browser, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


RUN = "import os, sys; [os.dup2(int(a), n) for a, n in zip(sys.argv[1:], (3, 4))]; os.execv(sys.argv[3], sys.argv[3:])"
"""Starts Chromium, which reads commands from descriptor 3 and answers on 4."""


def _pipe() -> tuple[int, int]:
    """Return a pipe whose descriptors are higher than the two that Chromium uses."""
    ends = os.pipe()
    found = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return found[0], found[1]


class BrowserError(AssertionError):
    """The browser has ended, does not answer, or reports an error."""


class Browser:
    """One Chromium with its own profile. `close` ends it."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (to_read, self._out), (self._in, to_write) = _pipe(), _pipe()
        command = [chromium() or "", *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", RUN, str(to_read), str(to_write), *command],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._count = 0
        self._lock = threading.Lock()
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.listeners: dict[str, Callable[[dict[str, Any]], None]] = {}
        """The event handler of each DevTools session."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(self, method: str, session: str | None = None, seconds: float = 30.0, **params: Any) -> dict[str, Any]:
        """Send one command. Returns its result."""
        with self._lock:
            self._count += 1
            number = self._count
            answer = self._answers[number] = queue.Queue()
            message = {"id": number, "method": method, "params": params}
            if session is not None:
                message["sessionId"] = session
            os.write(self._out, json.dumps(message).encode() + b"\0")
        try:
            found = answer.get(timeout=seconds)
        except queue.Empty:
            raise BrowserError(f"{method} was not answered in {seconds} s") from None
        if "error" in found:
            raise BrowserError(f"{method}: {found['error']}")
        result: dict[str, Any] = found["result"]
        return result

    def _read(self) -> None:
        with os.fdopen(self._in, "rb") as pipe:
            rest = b""
            while some := pipe.read1(1 << 16):
                *lines, rest = (rest + some).split(b"\0")
                for line in lines:
                    self._handle(json.loads(line))
        for answer in self._answers.values():
            answer.put({"error": "the browser ended"})

    def _handle(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).put(message)
        elif (listener := self.listeners.get(message.get("sessionId", ""))) is not None:
            listener(message)

    def page(self, url: str, width: int = 1280, height: int = 900) -> "Page":
        """Open a tab in its own context, so that tabs share no cookies."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, url, width, height)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        self._reader.join(5)
        self._profile.cleanup()


WATCH = """
(check, seconds) => new Promise((found, failed) => {
  const look = () => { try { return check(); } catch { return null; } };
  const first = look();
  if (first) return found(first);
  const late = () => { watch.disconnect(); failed(new Error("not within " + seconds + " s")); };
  const ends = setTimeout(late, seconds * 1000);
  const watch = new MutationObserver(() => {
    const value = look();
    if (value) { clearTimeout(ends); watch.disconnect(); found(value); }
  });
  watch.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
})
"""


class Page:
    """One tab. `problems` has the errors of its console, including what the security policy blocked."""

    def __init__(self, browser: Browser, session: str, url: str, width: int, height: int) -> None:
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        browser.listeners[session] = self._on_event
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('#sign-in')")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def _on_event(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def eval(self, script: str) -> Any:
        """Return the value of an expression. Waits for a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{script[:200]}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def wait(self, check: str, seconds: float = 15.0) -> Any:
        """Return the first true value of an expression, evaluated at every change of the document."""
        try:
            return self.eval(f"({WATCH})(() => ({check}), {seconds})")
        except BrowserError as error:
            text = self.eval("document.body?.innerText ?? ''")
            raise AssertionError(
                f"{check}: {error}\n{text[:1500]}\n{[one[:500] for one in self.problems[:3]]}"
            ) from None

    def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press and release one key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def sign_in(self, key: str) -> None:
        """Type the key, then press Enter."""
        self.wait("document.activeElement?.id === 'key'")
        self.type(key)
        self.press("Enter", 13)
        self.wait("!document.querySelector('#board').hidden")

    def shot(self, path: Path, **emulated: str) -> None:
        """Write a screenshot, with these media features (with underscores for hyphens)."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in emulated.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def tree(self) -> list[tuple[str, str]]:
        """Return the accessibility tree as screen readers receive it: (role, name) of each node that is not ignored."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], str(node.get("name", {}).get("value", "")))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]
