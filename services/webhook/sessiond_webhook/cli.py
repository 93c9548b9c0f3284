"""`sessionctl send`: signs a payload as GitHub does, and posts it to the webhook."""

import argparse
import os
import sys
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import orjson
import urllib3

from sessiond_common.env import Env, SettingsError, first_line, load
from sessiond_webhook.deliveries import signature

DEFAULT_URL: Final = "http://127.0.0.1:8421"
TIMEOUT: Final = 30.0
_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"


class _BadInput(ValueError):
    """The input is not valid. The message is one line."""


def add_commands(commands: Any) -> None:
    """Add the commands of this service to the subparsers of sessionctl."""
    what = "sign a payload and post it to the webhook"
    made = commands.add_parser("send", help=what, description=what)
    made.set_defaults(run=_send)
    made.add_argument("file", metavar="FILE", help="JSON file with the payload; - reads standard input")
    made.add_argument("--event", required=True, metavar="NAME", help="X-GitHub-Event, for example issue_comment")
    made.add_argument("--url", help="URL of the webhook (default: WEBHOOK_URL, or WEBHOOK_HOST and WEBHOOK_PORT)")
    secret = made.add_mutually_exclusive_group()
    secret.add_argument("--secret", help="the secret (default: WEBHOOK_SECRET, or .state/webhook-secret)")
    secret.add_argument("--secret-file", metavar="FILE", help="file with the secret in its first line")
    made.add_argument("--delivery", metavar="ID", help="X-GitHub-Delivery (default: a new id)")
    made.add_argument("--form", action="store_true", help="send a form with one field, payload")
    made.add_argument("--json", action="store_true", help="print JSON")


def _send(options: argparse.Namespace) -> int:
    """Return the exit status: 0 accepted (2xx), 1 refused or not reachable, 2 input not valid."""
    try:
        url, secret, body = _url(options), _secret(options), _payload(options.file)
    except (_BadInput, SettingsError) as error:
        print(f"sessionctl: {error}", file=sys.stderr)
        return 2
    if options.form:
        body = urlencode({"payload": body.decode()}).encode()
    headers = {
        "Content-Type": _FORM if options.form else _JSON,
        "User-Agent": "GitHub-Hookshot/sessionctl",
        "X-GitHub-Event": options.event,
        "X-GitHub-Delivery": options.delivery or str(uuid.uuid4()),
        signature.HEADER: signature.sign(secret, body),
    }
    try:
        with urllib3.PoolManager(retries=False, timeout=TIMEOUT) as pool:
            answer = pool.request("POST", f"{url}/github", body=body, headers=headers)
    except (urllib3.exceptions.HTTPError, UnicodeError, ValueError) as error:
        print(f"sessionctl: cannot reach {url}: {error}", file=sys.stderr)
        return 1
    return _print_answer(answer.status, answer.data, headers["X-GitHub-Delivery"], as_json=options.json)


def _print_answer(status: int, data: bytes, delivery: str, *, as_json: bool) -> int:
    try:
        found = orjson.loads(data) if data else {}
    except orjson.JSONDecodeError:
        found = {}
    body: dict[str, Any] = found if isinstance(found, dict) else {}
    good = 200 <= status < 300
    word = body.get("outcome") or ("ignored" if status == 204 else body.get("type", "refused"))
    if as_json:
        print(orjson.dumps({**body, "status": status, "delivery": delivery, "outcome": word}).decode())
    elif good:
        more = [f"{name}={body[name]}" for name in ("demand", "ticket", "place", "task") if body.get(name) is not None]
        print(f"{status} {word}", *more, f"delivery={delivery}")
    else:
        print(f"sessionctl: {status} {word}: {body.get('detail', '')}".rstrip(": "), file=sys.stderr)
    return 0 if good else 1


def _url(options: argparse.Namespace) -> str:
    url = str(options.url or load(webhook_url, os.environ)).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise _BadInput(f"{url!r} is not an http or https URL")
    return url


def webhook_url(env: Env) -> str:
    """Read the URL of the webhook."""
    host = env.text("WEBHOOK_HOST", "127.0.0.1", "address on which the webhook listens")
    port = env.port("WEBHOOK_PORT", 8421, "port on which the webhook listens")
    return env.url("WEBHOOK_URL", f"http://{host}:{port}", "URL of the webhook; by default from its host and port")


def webhook_secret(env: Env) -> str:
    """Read the secret that signs deliveries."""
    return env.secret("WEBHOOK_SECRET", "secret that signs deliveries")


def _secret(options: argparse.Namespace) -> str:
    if options.secret_file:
        given = _secret_of(options.secret_file)
    else:
        given = str(options.secret or load(webhook_secret, os.environ) or _own_secret())
    if not given:
        raise _BadInput("no secret: give --secret or --secret-file, or set WEBHOOK_SECRET")
    return given


def _secret_of(file: str) -> str:
    try:
        return first_line(file)
    except ValueError as error:
        raise _BadInput(f"--secret-file {file}: {error}") from error


def _own_secret() -> str:
    try:
        lines = (Path(os.environ.get("SESSIOND_STATE_DIR", ".state")) / "webhook-secret").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0].strip() if lines else ""


def _payload(name: str) -> bytes:
    try:
        body = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        orjson.loads(body)
    except OSError as error:
        raise _BadInput(str(error)) from error
    except orjson.JSONDecodeError as error:
        raise _BadInput(f"{name} is not JSON: {error}") from error
    return body
