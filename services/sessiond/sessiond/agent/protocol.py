"""The agent's stream-json protocol: parse lines into typed messages, encode requests as lines. Pure.

docs/reference/agent-protocol.md describes the fields for the pinned binary. An unknown type becomes `Other`. A line
that is not a JSON object, or has a known type and malformed fields, is a ProtocolError.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson


class ProtocolError(ValueError):
    """A line does not follow the protocol. The text says why, in a few words."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """claude is now `idle`, `running` or `requires_action`."""

    state: str


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The state of the user line `uuid`: queued, started, completed, cancelled, …"""

    uuid: str
    state: str


@dataclass(frozen=True, slots=True)
class Init:
    """A turn begins."""

    session_id: str
    model: str
    capabilities: frozenset[str]
    version: str


@dataclass(frozen=True, slots=True)
class Result:
    """A turn's boundary. `uuids` name the user lines that it answers, `origin` names another cause of the turn."""

    uuids: tuple[str, ...]
    origin: str | None
    is_error: bool
    terminal_reason: str | None
    text: str
    session_id: str = ""
    cost_usd: float | None = None
    """Running total of the process, in US dollars."""
    usage: Mapping[str, Any] = field(default_factory=dict)
    num_turns: int = 0
    errors: tuple[str, ...] = ()
    status: int | None = None
    """The API's HTTP status, if the API failed."""


@dataclass(frozen=True, slots=True)
class Response:
    """The response to one of our control requests."""

    request_id: str
    ok: bool
    body: Mapping[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """claude asks whether it may use a tool."""

    request_id: str
    tool: str
    input: Mapping[str, Any]
    leads_to: str | None = None
    """The target of the path in `input`, if a link leads out of the working directory."""


@dataclass(frozen=True, slots=True)
class Request:
    """claude sends any other control request."""

    request_id: str
    subtype: str


@dataclass(frozen=True, slots=True)
class QuestionCancelled:
    """claude takes a question back and expects no answer."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Tasks:
    """The background tasks that are running."""

    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retry:
    """An API call failed and claude retries it."""

    attempt: int
    status: int | None


@dataclass(frozen=True, slots=True)
class Other:
    """Any other message."""

    kind: str
    subtype: str = ""


Asking = Question | Request | QuestionCancelled
Message = StateChanged | Lifecycle | Init | Result | Response | Asking | Tasks | Retry | Other


@dataclass(frozen=True, slots=True)
class Line:
    """A message and the JSON object it came from. `raw` is None if the line is nested too deeply to be read."""

    message: Message
    raw: dict[str, Any] | None


_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def _replace_lone_surrogates(line: bytes) -> bytes:
    """Replace each lone surrogate with U+FFFD. JavaScript writes one when it cuts text inside an emoji."""
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found["half"] else found[0], line)


def _json(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return orjson.loads(_replace_lone_surrogates(line))


_CONTENT: Final = re.compile(rb'\{"type":"(assistant|user|stream_event)"')
"""Messages that hold a tool's input, which the model may nest to any depth. No decision depends on them."""


def parse(line: bytes) -> Line:
    """Parse one line of the agent's stdout.

    Raises:
        ProtocolError: the line does not follow the protocol.
    """
    try:
        raw = _json(line)
    except orjson.JSONDecodeError as error:
        if (content := _CONTENT.match(line)) and "depth limit" in str(error):
            return Line(Other(content[1].decode()), None)
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("type"), str):
        raise ProtocolError("not an object with a type")
    kind, subtype = raw["type"], raw.get("subtype")
    name = f"{kind}/{subtype}" if kind == "system" else kind
    reader = _READERS.get(name)
    if reader is None:
        return Line(Other(kind, subtype if isinstance(subtype, str) else ""), raw)
    try:
        return Line(reader(raw), raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError(f"{name}: {error!r}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _init(raw: dict[str, Any]) -> Init:
    return Init(
        _text(raw["session_id"]),
        str(raw.get("model") or ""),
        frozenset(map(_text, raw.get("capabilities") or ())),
        str(raw.get("claude_code_version") or ""),
    )


def _result(raw: dict[str, Any]) -> Result:
    origin, cost, status = raw.get("origin"), raw.get("total_cost_usd"), raw.get("api_error_status")
    said, reason = raw.get("result"), raw.get("terminal_reason")
    return Result(
        uuids=tuple(map(_text, raw.get("user_message_uuids") or ())),
        origin=None if origin is None else str(origin.get("kind")),
        is_error=bool(raw.get("is_error")),
        terminal_reason=None if reason is None else _text(reason),
        text=said if isinstance(said, str) else "",
        session_id=str(raw.get("session_id") or ""),
        cost_usd=None if cost is None else float(cost),
        usage=dict(raw.get("usage") or {}),
        num_turns=int(raw.get("num_turns") or 0),
        errors=tuple(map(str, raw.get("errors") or ())),
        status=None if status is None else int(status),
    )


def _response(raw: dict[str, Any]) -> Response:
    response = raw["response"]
    ok = response["subtype"] == "success"
    body = response.get("response")
    return Response(
        _text(response["request_id"]),
        ok,
        body if isinstance(body, dict) else {},
        None if ok else str(response.get("error")),
    )


def _request(raw: dict[str, Any]) -> Message:
    request = raw["request"]
    if request["subtype"] != "can_use_tool":
        return Request(_text(raw["request_id"]), _text(request["subtype"]))
    given, leads_to = request.get("input"), request.get("blocked_path")
    return Question(
        _text(raw["request_id"]),
        _text(request["tool_name"]),
        given if isinstance(given, dict) else {},
        None if leads_to is None else _text(leads_to),
    )


_READERS: Mapping[str, Callable[[dict[str, Any]], Message]] = {
    "system/session_state_changed": lambda raw: StateChanged(_text(raw["state"])),
    "command_lifecycle": lambda raw: Lifecycle(_text(raw["command_uuid"]), _text(raw["state"])),
    "system/init": _init,
    "result": _result,
    "control_response": _response,
    "control_request": _request,
    "control_cancel_request": lambda raw: QuestionCancelled(_text(raw["request_id"])),
    "system/background_tasks_changed": lambda raw: Tasks(frozenset(_text(t["task_id"]) for t in raw["tasks"])),
    "system/api_retry": lambda raw: Retry(int(raw.get("attempt") or 0), raw.get("error_status")),
}


# ---- encoding of our lines -------------------------------------------------------------------


def _line(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


def _ask(request_id: str, subtype: str, **fields: object) -> bytes:
    return _line({"type": "control_request", "request_id": request_id, "request": {"subtype": subtype, **fields}})


def user(uuid: str, prompt: str, *, composed: bool = True) -> bytes:
    """Encode a prompt. With `composed`, claude takes the text literally: no commands, no file references."""
    line: dict[str, object] = {"type": "user", "uuid": uuid, "message": {"role": "user", "content": prompt}}
    if composed:
        line["client_composed"] = True
    return _line(line)


def initialize(request_id: str) -> bytes:
    """Encode the handshake of a new process."""
    return _ask(request_id, "initialize")


def interrupt(request_id: str) -> bytes:
    """Encode a request to end the running turn and any queued one."""
    return _ask(request_id, "interrupt", cancel_queued=True)


def set_model(request_id: str, model: str) -> bytes:
    """Encode a request to run the next turns on this model."""
    return _ask(request_id, "set_model", model=model)


def apply_rules(request_id: str, allow: Sequence[str], deny: Sequence[str]) -> bytes:
    """Encode the permission rules for the next turns."""
    settings = {"permissions": {"allow": list(allow), "deny": list(deny)}}
    return _ask(request_id, "apply_flag_settings", settings=settings)


def cost(request_id: str) -> bytes:
    """Encode the fence request, a cheap one. Its response follows everything that claude wrote before it."""
    return _ask(request_id, "get_session_cost")


def stop_task(request_id: str, task_id: str) -> bytes:
    """Encode a request to stop a background task."""
    return _ask(request_id, "stop_task", task_id=task_id)


def _reply(request_id: str, body: Mapping[str, object]) -> bytes:
    response = {"subtype": "success", "request_id": request_id, "response": body}
    return _line({"type": "control_response", "response": response})


def allow(request_id: str, given: Mapping[str, Any]) -> bytes:
    """Encode the permission to run the tool with this input."""
    return _reply(request_id, {"behavior": "allow", "updatedInput": dict(given)})


def deny(request_id: str, message: str) -> bytes:
    """Encode the denial of a tool's use. The model reads `message`."""
    return _reply(request_id, {"behavior": "deny", "message": message})


def refuse(request_id: str, error: str) -> bytes:
    """Encode an error response, so that claude does not wait for an answer."""
    response = {"subtype": "error", "request_id": request_id, "error": error}
    return _line({"type": "control_response", "response": response})
