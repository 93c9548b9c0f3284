"""The board in a real headless Chromium, compared with the ledger."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from sessiond.client import Client
from support.http.browser import Browser, Page, chromium
from support.servers import TESTS, Caller, Sessiond, eventually, scripted_env

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")

SESSION = "octo/hello"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>&amp;"
ROWS = """JSON.stringify([...document.querySelectorAll("#handoffs-rows tr")].reverse().map((row) =>
  [Number(row.dataset.fence), ...[1, 2, 5].map((n) => row.children[n].textContent)]))"""
STRIP = """JSON.stringify([...document.querySelectorAll("#leases .lease")].map((block) =>
  [Number(block.dataset.key), [...block.classList]]))"""
SHOWN = "document.querySelectorAll('#leases .lease').length"
Start = Callable[..., Sessiond]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture
def board(browser: Browser) -> Open:
    """Open a signed-in page of a service's board: board(service, session="octo/hello")."""

    def open_page(service: Sessiond, session: str = SESSION, role: str = "viewer") -> Page:
        page = browser.page(f"{service.url}/#{session}")
        page.sign_in(service.keys[role])
        return page

    return open_page


def leases(client: Client) -> list[dict[str, Any]]:
    """Return the leases in the ledger, read without the board's code."""
    found: dict[int, dict[str, Any]] = {}
    keys: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    while more := client.ledger(SESSION, entries[-1]["id"] if entries else None):
        entries += more
    for e in entries:
        if e["event"] == "taken":
            keys[e["ticket"]] = e["key"]
        elif e["event"] == "granted":
            found[e["fence"]] = {"fence": e["fence"], "kind": e["kind"], "key": keys[e["ticket"]], "why": None}
        elif e["event"] == "ended":
            found[e["fence"]]["why"] = e["reason"]
    return list(found.values())


def check_against_ledger(page: Page, client: Client, count: int) -> list[dict[str, Any]]:
    """Wait until the page shows `count` leases, the last one still held. Strip and table must equal the ledger."""
    page.wait(f"{SHOWN} === {count} && document.querySelector('#leases').lastElementChild.matches('.living')")
    expected = leases(client)
    reasons = {"released": "released", "preempted": "preempted by a handler", None: "holds now"}
    assert json.loads(page.eval(ROWS)) == [[v["fence"], v["kind"], v["key"], reasons[v["why"]]] for v in expected]
    marks = {"released": [], "preempted": ["preempted"], None: ["living"]}
    assert json.loads(page.eval(STRIP)) == [[v["fence"], ["lease", v["kind"], *marks[v["why"]]]] for v in expected]
    return expected


def flurry(worker: Caller, handlers: list[Caller], client: Client, name: str) -> None:
    """Let handlers arrive during the worker's turn. At the end the worker holds the lease again."""
    for n, handler in enumerate(handlers):
        client.take(SESSION, kind="handler", key=f"{name}{n}")
        handler.do(key=f"{name}{n}", hold=0.02)
    for handler in handlers:
        handler.wait_for("done")
    worker.wait_for("done")
    worker.do(kind="worker", key="long", prompt="#tokens 20000\n#pace 5ms", timeout=90)
    worker.wait_for("granted")


def test_a_flurry_is_shown_in_the_order_of_the_ledger_also_after_a_restart(
    sessiond: Start, caller: Callable[..., Caller], board: Open
) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    worker, handlers = caller(service, "worker"), [caller(service, "handler") for _ in range(3)]
    worker.do(kind="worker", key="long", prompt="#tokens 20000\n#pace 5ms", timeout=90)
    worker.wait_for("granted")
    page = board(service)
    page.wait(f"{SHOWN} === 1")
    flurry(worker, handlers, client, "a")
    shown = check_against_ledger(page, client, 5)
    assert [lease["key"] for lease in shown] == ["long", "a0", "a1", "a2", "long"]
    assert page.eval("document.querySelector('#handoffs-sum').textContent") == (
        "the last 5, 3 by handlers, 2 by the worker; 1 preemption"
    )
    page.wait("document.querySelector('#holder').textContent.includes('long')")
    page.wait("document.querySelector('#agent').textContent.includes('in a turn')")

    page.eval("document.body.dataset.same = 'yes'")
    service.kill9()
    page.wait("document.querySelector('#link').dataset.state === 'lost'")
    assert "as of" in page.eval("document.querySelector('#link-text').textContent")
    assert page.eval(SHOWN) == 5
    service.start()
    page.wait("document.querySelector('#link').dataset.state === 'live'", 30)
    eventually(lambda: client.view(SESSION)["agent"]["state"] == "asleep", what="the lost turn to be closed")
    worker.wait_for("done")
    worker.do(kind="worker", key="long", prompt="#tokens 20000\n#pace 5ms", timeout=90)
    worker.wait_for("granted")
    before = len(leases(client))
    flurry(worker, handlers, client, "b")
    shown = check_against_ledger(page, client, before + 4)
    assert [lease["key"] for lease in shown][-5:] == ["long", "b0", "b1", "b2", "long"]
    assert page.eval("document.body.dataset.same") == "yes"


def test_the_queue_is_shown_in_order_with_reasons(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    page = board(service)
    with client.lease(SESSION, kind="handler", key="holds"):
        for kind, key, priority in (("worker", "task", None), ("handler", "late", 7), ("handler", "now", 0)):
            client.take(SESSION, kind=kind, key=key, priority=priority)
        page.wait("document.querySelectorAll('#queue-rows tr').length === 3")
        rows = json.loads(
            page.eval(
                "JSON.stringify([...document.querySelectorAll('#queue-rows tr')]"
                ".map((row) => [0, 1, 2, 3].map((n) => row.children[n].textContent)))"
            )
        )
        queue = client.view(SESSION)["queue"]
        assert [row[2] for row in rows] == [ticket["key"] for ticket in queue] == ["now", "late", "task"]
        assert rows[0] == ["1", "handler", "now", "holder absent · a handler holds the lease"]
        assert rows[2][3] == "holder absent · a handler holds the lease · handlers first (2)"
    page.wait("document.querySelector('#holder').textContent.includes('free')")


def test_text_of_other_people_is_not_interpreted_as_markup(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    page = board(service)
    with client.lease(SESSION, kind="handler", key=HOSTILE, holder=HOSTILE):
        client.take(SESSION, kind="handler", key=f"{HOSTILE}2")
        page.wait("document.querySelectorAll('#queue-rows tr').length === 1")
        page.wait(f"{SHOWN} === 1")
    page.wait("document.querySelector('#holder').textContent.includes('free')")
    text = json.dumps(HOSTILE)
    for place in ("#handoffs-rows td:nth-child(3)", "#handoffs-rows td:nth-child(4)", "#leases .name"):
        assert page.eval(f"document.querySelector({json.dumps(place)}).textContent === {text}"), place
    assert page.eval("document.querySelectorAll('main b, main img, nav img').length") == 0
    assert page.eval("document.title").startswith("free")


def test_the_browser_enforces_the_security_policy(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    page = board(service)
    page.problems.clear()
    page.eval(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )
    page.eval("document.body.setAttribute('style', 'color: red')")
    assert page.eval("window.ran === undefined && document.cookie === ''")
    assert len([one for one in page.problems if "Content Security Policy" in one]) == 2, page.problems
    assert page.eval("fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => error.name)") == "TypeError"
    refused = page.eval(
        "fetch('/v1/sessions/octo/hello/tickets', { method: 'POST', body: '{\"kind\": \"handler\"}',"
        " headers: { 'Content-Type': 'application/json' } }).then((answer) => answer.status)"
    )
    assert refused == 401


def test_sign_in_and_sign_out_with_the_keyboard(sessiond: Start, browser: Browser) -> None:
    service = sessiond(scripted_env())
    service.client().take(SESSION, key="k")
    page = browser.page(f"{service.url}/")
    page.wait("document.activeElement?.id === 'key'")
    page.type("wrong")
    page.press("Enter", 13)
    page.wait("document.querySelector('#sign-in-problem').textContent === 'This key is unknown'")
    page.eval("document.querySelector('#key').value = ''")
    page.sign_in("viewer-key")
    page.wait("location.hash === '#octo/hello' && document.querySelectorAll('#queue-rows tr').length === 1")
    assert page.eval("document.querySelector('#key').value === '' && document.activeElement.id === 'session'")
    page.eval("document.activeElement.blur(); document.querySelector('.skip').focus()")
    reached = []
    for _ in range(6):
        reached.append(page.eval("document.activeElement.id || document.activeElement.textContent"))
        page.press("Tab", 9)
    assert reached[:2] == ["Skip to the session", "sign-out"] and reached[2].startswith(SESSION)
    assert reached[3:5] == ["Handoffs as a table", "queue-scroll"]
    page.eval("document.querySelector('#sign-out').focus()")
    page.press("Enter", 13)
    page.wait("!document.querySelector('#sign-in').hidden && document.querySelector('#board').hidden")
    assert "octo" not in page.eval("document.querySelector('#sessions').textContent")
    page.call("Page.reload")
    page.wait("document.activeElement?.id === 'key'")


def test_the_accessibility_tree_has_every_part_of_the_page(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, kind="handler", key="one"):
        client.take(SESSION, kind="worker", key="two")
        page = board(service)
        page.wait(f"{SHOWN} === 1 && document.querySelectorAll('#queue-rows tr').length === 1")
        page.eval("document.querySelector('details').open = true")
        tree = page.tree()
    for wanted in (
        ("banner", ""), ("navigation", "Sessions"), ("main", SESSION), ("heading", SESSION), ("heading", "Handoffs"),
        ("heading", "Queue"), ("heading", "Agent"), ("region", "Now"), ("region", "Queue"),
        ("image", "Handoffs the last 1, 1 by handlers, 0 by the worker; 0 preemptions"),
        ("link", f"{SESSION} handler holds · 1 worker waiting"), ("button", "Sign out"),
        ("region", "Handoffs, newest first"), ("columnheader", "Reason"), ("columnheader", "Ended"),
        ("cell", "holds now"), ("cell", "holder absent · a handler holds the lease"), ("status", ""),
    ):  # fmt: skip
        assert wanted in tree, (wanted, tree)
    assert page.eval("document.querySelectorAll('[aria-live], [role=status], [role=alert]').length") == 2
    levels = page.eval(
        "[...document.querySelectorAll('h1, h2')].filter((h) => h.checkVisibility()).map((h) => h.tagName).join(' ')"
    )
    assert levels == "H2 H1 H2 H2 H2 H2"


CONTRAST = (TESTS / "support" / "http" / "contrast.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(sessiond: Start, board: Open, scheme: str) -> None:
    """WCAG AA: a ratio of 4.5 for text, and of 3 for graphics that carry meaning."""
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, kind="worker", key="one"):
        client.take(SESSION, kind="worker", key="two")
        page = board(service)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.wait(f"{SHOWN} === 1 && document.querySelectorAll('#queue-rows tr').length === 1")
        page.eval("document.querySelector('details').open = true")
        found = json.loads(page.eval(CONTRAST))
    print(scheme, "lowest:", found["lowest"])
    assert found["texts"] > 30 and found["low"] == []


def test_reduced_motion_disables_animations(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    with service.client().lease(SESSION, kind="handler", key="one"):
        page = board(service)
        page.wait(f"{SHOWN} === 1")
        moving = (
            "[...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);"
            " return s.animationName !== 'none' || s.transitionDuration !== '0s'; }).length"
        )
        assert page.eval(moving) > 0
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        assert page.eval(moving) == 0


def test_the_page_says_when_its_data_may_be_old(sessiond: Start, redis_server: Any, board: Open) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    client.take(SESSION, key="k")
    page = board(service)
    page.wait("document.querySelector('#link').dataset.state === 'live'")
    redis_server.pause()
    try:
        page.wait("document.querySelector('#link').dataset.state === 'doubt'", 30)
        assert "Redis" in page.eval("document.querySelector('#link-text').textContent")
    finally:
        redis_server.resume()
    page.wait("document.querySelector('#link').dataset.state === 'live'", 30)
    assert page.eval("document.querySelector('#announce').textContent") == "Reconnected"


def test_the_page_says_when_the_service_stops_sending(sessiond: Start, board: Open) -> None:
    service = sessiond(scripted_env())
    service.client().take(SESSION, key="k")
    page = board(service)
    page.wait("document.querySelectorAll('#queue-rows tr').length === 1")
    [worker] = psutil.Process(service.pid).children()
    worker.suspend()
    try:
        page.wait("document.querySelector('#link-text').textContent.startsWith('no data from sessiond')", 25)
        assert page.eval("document.querySelector('#board').classList.contains('old')")
    finally:
        worker.resume()
    page.wait("document.querySelector('#link').dataset.state === 'live'", 30)
