"""A strict stand-in for the part of GitHub's REST API for comments that this project uses.

    python tests/support/standins/github.py [--port 0]        prints its URL as the first line

It checks what GitHub checks, and answers with GitHub's documents: authentication (a token; the JWT of an app against
its public key; installation tokens that expire), paths, methods, bodies, headers, pages with Link headers, the limit of
65,536 characters, replies only to the first comment of a thread, locked conversations, repositories that moved. Each
answer has rate-limit headers. Tests control it with POST and JSON below /_admin:

    /token {token, id, login, type}      /app {id, slug, public_key, bot_id, installations: {owner: id}, token_ttl}
    /thread {repo, number, pull, locked} /comment {repo, number, kind, body, author, in_reply_to_id, count} -> ids
    /move {from, to}                     /delete {id}
    /fault {mode, times, seconds, status, match}, modes: primary, secondary, error, delay, cut, drop, and
        lag (the list omits new comments for that many seconds, until the next order)
    GET /log: each write, in order; GET /requests: each request; DELETE /log clears both
"""

import argparse
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import jwt

LIMIT = 65_536
BUDGET = 5000
DOCS = "https://docs.github.com/rest"


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.document = {"message": message, **more, "documentation_url": DOCS, "status": str(status)}


def stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class World:
    """The state of this stand-in. Each request holds the lock while it is handled."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ids = itertools.count(1001)
        self.tokens: dict[str, dict[str, Any]] = {}
        self.apps: dict[str, dict[str, Any]] = {}
        self.threads: dict[tuple[str, int], dict[str, Any]] = {}
        self.comments: dict[int, dict[str, Any]] = {}
        self.moved: dict[str, str] = {}
        self.faults: list[dict[str, Any]] = []
        self.lag = 0.0
        self.limited: dict[str, float] = {}
        self.spent: dict[str, int] = {}
        self.log: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []

    # ---- callers -----------------------------------------------------------------------------

    def caller(self, header: str) -> dict[str, Any]:
        """Return {account, user, kind}; kind is user, installation or app."""
        scheme, _, secret = header.partition(" ")
        if not header:
            raise Refused(401, "Requires authentication")
        if scheme.lower() not in ("token", "bearer"):
            raise Refused(401, "Bad credentials")
        if secret.count(".") == 2:
            return self.app_caller(secret)
        found = self.tokens.get(secret)
        if found is None or found.get("ends", time.time() + 1) < time.time():
            raise Refused(401, "Bad credentials")
        return found

    def app_caller(self, token: str) -> dict[str, Any]:
        try:
            app = self.apps[str(jwt.decode(token, options={"verify_signature": False})["iss"])]
            claims = jwt.decode(token, app["public_key"], algorithms=["RS256"], leeway=5)
        except (jwt.PyJWTError, KeyError) as error:
            raise Refused(401, "A JSON web token could not be decoded") from error
        if claims["exp"] - time.time() > 600:
            raise Refused(401, "'Expiration time' claim ('exp') is too far in the future")
        return {"kind": "app", "account": f"app-{app['id']}", "app": app, "user": None}

    def installation_token(self, app: dict[str, Any], number: int) -> dict[str, Any]:
        if number not in app["installations"].values():
            raise Refused(404, "Not Found")
        ends = time.time() + app.get("token_ttl", 3600)
        token = f"ghs_{next(self.ids):016d}"
        user = {"id": app["bot_id"], "login": f"{app['slug']}[bot]", "type": "Bot"}
        owners = [owner for owner, one in app["installations"].items() if one == number]
        self.tokens[token] = {
            "kind": "installation", "account": f"installation-{number}", "user": user, "ends": ends, "owners": owners,
        }  # fmt: skip
        return {"token": token, "expires_at": stamp(ends), "permissions": {"issues": "write", "pull_requests": "write"}}

    # ---- comments ----------------------------------------------------------------------------

    def thread(self, caller: dict[str, Any], repo: str, number: int, pull: bool) -> dict[str, Any]:
        found = self.threads.get((repo.lower(), number))
        owners = caller.get("owners")
        if found is None or (pull and not found["pull"]) or caller["kind"] == "app":
            raise Refused(404, "Not Found")
        if owners is not None and repo.lower().partition("/")[0] not in owners:
            raise Refused(404, "Not Found")
        return found

    def add(
        self, thread: dict[str, Any], kind: str, user: dict[str, Any], body: str, root: int | None
    ) -> dict[str, Any]:
        number, now = next(self.ids), time.time()
        where = "pull" if thread["pull"] else "issues"
        anchor = f"discussion_r{number}" if kind == "review" else f"issuecomment-{number}"
        made = {
            "id": number, "node_id": f"IC_loopback{number}", "user": user, "body": body, "created_at": stamp(now),
            "updated_at": stamp(now), "html_url": f"https://github.test/{thread['repo']}/{where}/{thread['number']}#{anchor}",
            "author_association": "NONE",
        }  # fmt: skip
        if root is not None:
            made["in_reply_to_id"] = root
        self.comments[number] = {"kind": kind, "thread": thread, "at": now, "changed": now, "shown": made}
        return made

    def comment(self, caller: dict[str, Any], repo: str, number: int, kind: str) -> dict[str, Any]:
        found = self.comments.get(number)
        if found is None or found["kind"] != kind or found["thread"]["repo"].lower() != repo.lower():
            raise Refused(404, "Not Found")
        self.thread(caller, repo, found["thread"]["number"], False)
        return found

    def record(self, did: str, caller: dict[str, Any], comment: dict[str, Any]) -> None:
        shown, thread = comment["shown"], comment["thread"]
        root = shown.get("in_reply_to_id")
        place = f"{thread['repo']}#{thread['number']}" + (f"/{root}" if root else "")
        self.log.append({
            "at": time.time(), "did": did, "id": shown["id"], "kind": comment["kind"], "thread": place,
            "author": shown["user"]["id"], "by": caller["account"], "body": shown["body"], "url": shown["html_url"],
        })  # fmt: skip

    # ---- faults ------------------------------------------------------------------------------

    def fault(self, what: str) -> dict[str, Any] | None:
        for one in self.faults:
            if re.search(one.get("match", ""), what):
                one["times"] = one.get("times", 1) - 1
                if one["times"] <= 0:
                    self.faults.remove(one)
                return one
        return None


def order_token(world: World, given: dict[str, Any]) -> None:
    user = {"id": given["id"], "login": given["login"], "type": given.get("type", "User")}
    world.tokens[given["token"]] = {"kind": "user", "account": f"user-{given['id']}", "user": user}


def order_app(world: World, given: dict[str, Any]) -> None:
    world.apps[str(given["id"])] = given


def order_forget_tokens(world: World, given: dict[str, Any]) -> None:
    world.tokens = {token: found for token, found in world.tokens.items() if found["kind"] == "user"}


def order_thread(world: World, given: dict[str, Any]) -> None:
    key = (given["repo"].lower(), given["number"])
    world.threads[key] = world.threads.get(key, {"pull": False, "locked": False}) | given


def order_comment(world: World, given: dict[str, Any]) -> list[int]:
    thread = world.threads[(given["repo"].lower(), given["number"])]
    parts = (thread, given["kind"], given["author"], given["body"], given.get("in_reply_to_id"))
    return [world.add(*parts)["id"] for _ in range(given.get("count", 1))]


def order_move(world: World, given: dict[str, Any]) -> None:
    world.moved[given["from"].lower()] = given["to"]
    for (repo, number), thread in list(world.threads.items()):
        if repo == given["from"].lower():
            thread["repo"] = given["to"]
            world.threads[(given["to"].lower(), number)] = world.threads.pop((repo, number))


def order_delete(world: World, given: dict[str, Any]) -> None:
    world.comments.pop(given["id"], None)


def order_fault(world: World, given: dict[str, Any]) -> None:
    if given["mode"] == "lag":
        world.lag = given["seconds"]
    else:
        world.faults.append(given)


ORDERS: dict[str, Callable[[World, dict[str, Any]], Any]] = {
    "token": order_token, "app": order_app, "forget-tokens": order_forget_tokens, "thread": order_thread,
    "comment": order_comment, "move": order_move, "delete": order_delete, "fault": order_fault,
}  # fmt: skip


def body_of(given: Any) -> str:
    if not isinstance(given, dict):
        raise Refused(400, "Problems parsing JSON")
    text = given.get("body")
    errors: list[dict[str, Any]] = []
    if not isinstance(text, str) or not text.strip():
        errors = [{"resource": "IssueComment", "code": "missing_field", "field": "body"}]
    elif len(text) > LIMIT:
        errors = [{"resource": "IssueComment", "code": "custom", "field": "body",
                   "message": f"body is too long (maximum is {LIMIT} characters)"}]  # fmt: skip
    if errors:
        raise Refused(422, "Validation Failed", errors=errors)
    return str(text)


class Handler(BaseHTTPRequestHandler):
    """One connection, which can carry several requests."""

    protocol_version = "HTTP/1.1"
    world: World
    base: str

    def do_GET(self) -> None:
        self.handle_one()

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

    def handle_one(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path.startswith("/_admin/") or path in ("/log", "/requests", "/health"):
            self.admin(path, json.loads(raw or b"{}"))
            return
        world, entry = self.world, {"at": time.time(), "method": self.command, "path": self.path, "status": 0}
        with world.lock:
            world.requests.append(entry)
            fault = world.fault(f"{self.command} {path}") or {}
        mode = fault.get("mode")
        account = "nobody"
        if mode == "drop":
            entry["status"] = "dropped"
            self.cut()
            return
        if mode == "delay":
            time.sleep(fault["seconds"])
        try:
            caller = world.caller(self.headers.get("Authorization", ""))
            account = caller["account"]
            with world.lock:
                self.check(caller, mode, fault)
                status, document, headers = self.route(caller, path, parse_qs(url.query), raw)
        except Refused as error:
            status, document, headers = error.status, error.document, error.headers
        entry |= {"status": status, "account": account}
        if mode == "cut":
            entry["status"] = f"{status}, cut"
            self.cut()
            return
        try:
            self.answer(status, document, {**self.rates(account), **headers})
        except OSError:
            entry["status"] = f"{status}, not read"

    def check(self, caller: dict[str, Any], mode: str | None, fault: dict[str, Any]) -> None:
        world, account, now = self.world, caller["account"], time.time()
        if not self.headers.get("User-Agent"):
            raise Refused(403, "Request forbidden by administrative rules. Please make sure your request has a "
                               "User-Agent header")  # fmt: skip
        if mode == "primary":
            world.limited[account] = now + fault["seconds"]
        world.spent[account] = world.spent.get(account, 0) + 1
        if world.limited.get(account, 0) > now:
            raise Refused(fault.get("status", 403), f"API rate limit exceeded for {account}.")
        if mode == "secondary":
            headers = {"Retry-After": str(fault["seconds"])} if "seconds" in fault else {}
            message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
            raise Refused(fault.get("status", 403), message, headers)
        if mode == "error":
            raise Refused(fault.get("status", 502), "Server Error")

    def rates(self, account: str) -> dict[str, str]:
        ends = self.world.limited.get(account, 0)
        limited = ends > time.time()
        spent = self.world.spent.get(account, 0)
        return {
            "x-ratelimit-limit": str(BUDGET), "x-ratelimit-remaining": "0" if limited else str(BUDGET - spent % BUDGET),
            "x-ratelimit-used": str(BUDGET if limited else spent), "x-ratelimit-resource": "core",
            "x-ratelimit-reset": str(int(ends if limited else time.time() + 3600)),
        }  # fmt: skip

    # ---- the API -----------------------------------------------------------------------------

    def route(
        self, caller: dict[str, Any], path: str, query: dict[str, list[str]], raw: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        for pattern, methods in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found and self.command in methods:
                repo = found.groupdict().get("repo", "")
                if repo.lower() in self.world.moved:
                    new = path.replace(f"/{repo}/", f"/{self.world.moved[repo.lower()]}/")
                    status = 301 if self.command == "GET" else 307
                    where = f"{self.base}{new}"
                    raise Refused(status, "Moved Permanently", {"Location": where}, url=where)
                return getattr(self, methods[self.command])(caller, found.groupdict(), query, raw)  # type: ignore[no-any-return]
        raise Refused(404, "Not Found")

    def parsed(self, raw: bytes) -> Any:
        if not self.headers.get("Content-Type", "").startswith("application/json"):
            raise Refused(415, "Unsupported Media Type")
        try:
            return json.loads(raw)
        except ValueError as error:
            raise Refused(400, "Problems parsing JSON") from error

    def user(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        if caller["kind"] != "user":
            raise Refused(403, "Resource not accessible by integration")
        return 200, caller["user"], {}

    def app(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        if caller["kind"] != "app":
            raise Refused(401, "A JSON web token could not be decoded")
        return 200, {"id": caller["app"]["id"], "slug": caller["app"]["slug"]}, {}

    def one_user(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        known = [t["user"] for t in self.world.tokens.values() if t["user"]]
        known += [{"id": a["bot_id"], "login": f"{a['slug']}[bot]", "type": "Bot"} for a in self.world.apps.values()]
        for one in known:
            if one["login"].lower() == part["login"].lower():
                return 200, one, {}
        raise Refused(404, "Not Found")

    def installation(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        self.app(caller, part, query, raw)
        number = caller["app"]["installations"].get(part["repo"].lower().partition("/")[0])
        if number is None:
            raise Refused(404, "Not Found")
        return 200, {"id": number, "app_id": caller["app"]["id"]}, {}

    def access(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        self.app(caller, part, query, raw)
        return 201, self.world.installation_token(caller["app"], int(part["id"])), {}

    def list_issue(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.listed(caller, part, query, "issue")

    def list_review(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.listed(caller, part, query, "review")

    def listed(self, caller: dict[str, Any], part: dict[str, str], query: dict[str, list[str]], kind: str) -> Any:
        thread = self.world.thread(caller, part["repo"], int(part["number"]), kind == "review")
        since, now = query.get("since", [""])[0], time.time()
        found = [
            c["shown"] for c in self.world.comments.values()
            if c["thread"] is thread and c["kind"] == kind and c["at"] + self.world.lag <= now
            and stamp(c["changed"]) >= since
        ]  # fmt: skip
        size = min(100, int(query.get("per_page", ["30"])[0]))
        page = int(query.get("page", ["1"])[0])
        last = max(1, -(-len(found) // size))
        links = {"first": 1, "prev": page - 1} if page > 1 else {}
        links |= {"next": page + 1, "last": last} if page < last else {}
        rest = {name: values[0] for name, values in query.items() if name != "page"}
        where = f"{self.base}{urlsplit(self.path).path}"
        header = ", ".join(f'<{where}?{urlencode({**rest, "page": to})}>; rel="{rel}"' for rel, to in links.items())
        return 200, found[(page - 1) * size : page * size], {"Link": header} if header else {}

    def create_issue(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.created(caller, part, "issue", body_of(self.parsed(raw)), None)

    def reply(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.replied(caller, part, body_of(self.parsed(raw)), int(part["id"]))

    def create_review(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        given = self.parsed(raw)
        body = body_of(given)
        if not isinstance(
            given.get("in_reply_to"), int
        ):  # a new thread needs a commit and a line; this project creates none
            raise Refused(422, "Validation Failed", errors=[{"code": "missing_field", "field": "commit_id"}])
        return self.replied(caller, part, body, given["in_reply_to"])

    def replied(self, caller: dict[str, Any], part: dict[str, str], body: str, root: int) -> Any:
        first = self.world.comment(caller, part["repo"], root, "review")
        if first["thread"]["number"] != int(part["number"]):
            raise Refused(404, "Not Found")
        if "in_reply_to_id" in first["shown"]:
            message = "Validation Failed"
            raise Refused(422, message, errors=["in_reply_to must be the top-level comment of a review thread"])
        return self.created(caller, part, "review", body, root)

    def created(self, caller: dict[str, Any], part: dict[str, str], kind: str, body: str, root: int | None) -> Any:
        thread = self.world.thread(caller, part["repo"], int(part["number"]), kind == "review")
        if thread["locked"]:
            raise Refused(403, "Unable to create comment because issue is locked.")
        made = self.world.add(thread, kind, caller["user"], body, root)
        self.world.record("created", caller, self.world.comments[made["id"]])
        return 201, made, {"Location": f"{self.base}/repos/{thread['repo']}/{kind}/{made['id']}"}

    def edit_issue(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.edited(caller, part, "issue", body_of(self.parsed(raw)))

    def edit_review(self, caller: dict[str, Any], part: dict[str, str], query: Any, raw: bytes) -> Any:
        return self.edited(caller, part, "review", body_of(self.parsed(raw)))

    def edited(self, caller: dict[str, Any], part: dict[str, str], kind: str, body: str) -> Any:
        found = self.world.comment(caller, part["repo"], int(part["id"]), kind)
        if found["shown"]["user"]["id"] != caller["user"]["id"]:
            raise Refused(403, "Must have admin rights to Repository.")
        found["changed"] = time.time()
        found["shown"] |= {"body": body, "updated_at": stamp(found["changed"])}
        self.world.record("edited", caller, found)
        return 200, found["shown"], {}

    # ---- control by tests --------------------------------------------------------------------

    def admin(self, path: str, given: dict[str, Any]) -> None:
        world = self.world
        with world.lock:
            if path == "/log" and self.command == "DELETE":
                world.log.clear()
                world.requests.clear()
            found = {"/log": world.log, "/requests": world.requests}.get(path)
            document = found if found is not None else self.ordered(path.removeprefix("/_admin/"), given)
            data = json.dumps(document)
        self.answer(200, json.loads(data), {})

    def ordered(self, order: str, given: dict[str, Any]) -> Any:
        do = ORDERS.get(order)
        answer = do(self.world, given) if do is not None else None
        return {"ok": True} if answer is None else answer

    # ---- answers -----------------------------------------------------------------------------

    def answer(self, status: int, document: Any, headers: dict[str, str]) -> None:
        data = json.dumps(document).encode()
        self.send_response_only(status)
        sent = {
            "Server": "github.test", "Date": formatdate(usegmt=True), "Content-Type": "application/json; charset=utf-8",
            "X-GitHub-Request-Id": f"{next(self.world.ids):X}", **headers, "Content-Length": str(len(data)),
        }  # fmt: skip
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        return


REPO = r"/repos/(?P<repo>[^/]+/[^/]+)"
ROUTES: dict[str, dict[str, str]] = {
    r"/user": {"GET": "user"},
    r"/app": {"GET": "app"},
    r"/users/(?P<login>[^/]+)": {"GET": "one_user"},
    rf"{REPO}/installation": {"GET": "installation"},
    r"/app/installations/(?P<id>\d+)/access_tokens": {"POST": "access"},
    rf"{REPO}/issues/(?P<number>\d+)/comments": {"GET": "list_issue", "POST": "create_issue"},
    rf"{REPO}/pulls/(?P<number>\d+)/comments": {"GET": "list_review", "POST": "create_review"},
    rf"{REPO}/pulls/(?P<number>\d+)/comments/(?P<id>\d+)/replies": {"POST": "reply"},
    rf"{REPO}/issues/comments/(?P<id>\d+)": {"PATCH": "edit_issue"},
    rf"{REPO}/pulls/comments/(?P<id>\d+)": {"PATCH": "edit_review"},
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # A client that closes its connection is not an error.
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    Handler.world = World()
    server = Server(("127.0.0.1", options.port), Handler)
    Handler.base = f"http://127.0.0.1:{server.server_address[1]}"
    print(Handler.base, flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
