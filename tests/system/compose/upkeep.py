"""What docs/operations.md tells an operator to type, typed as it stands there."""

import re
import subprocess

from stack import SESSION, Stack, comment, say

PAGE = "docs/operations.md"
KNOCK = """
import sys, urllib.request
from urllib.error import HTTPError
try:
    shown = {"Authorization": "Bearer " + sys.argv[1]}
    asks = urllib.request.Request("http://sessiond:8420/v1/sessions", headers=shown)
    print(urllib.request.urlopen(asks, timeout=5).status)
except HTTPError as error:
    print(error.code)
"""
LOG_IN = """
import sys, redis
try:
    redis.Redis.from_url(sys.argv[1]).exists("webhook:x")
    print("in")
except redis.AuthenticationError:
    print("refused")
"""


def written(stack: Stack, heading: str) -> list[str]:
    """The blocks of commands below this heading, in the clone's own page."""
    page = (stack.place / PAGE).read_text()
    text = re.split(rf"^#+ {re.escape(heading)}$", page, flags=re.M)[1]
    text = re.split(r"^#", text, flags=re.M)[0]
    return [
        block.group() for block in re.finditer(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.M) if block.group().strip()
    ]


def typed(stack: Stack, block: str) -> str:
    """Runs a block as a shell would in the project's folder."""
    return stack.run("sh", "-eu", "-c", block)


def read(stack: Stack, service: str, path: str) -> str:
    return stack.compose("exec", "-T", service, "cat", path).strip()


def answered(stack: Stack, mark: str, what: str) -> None:
    stack.begin()
    stack.flurry(mark, 1)
    say(f"{what}; a comment is answered")


def checkout(stack: Stack) -> None:
    """The agent reads and changes what the operator put there."""
    (stack.place / "checkout").mkdir()
    (stack.place / "checkout" / "CLAUDE.md").write_text("Answer in one sentence.\n")
    block = written(stack, "A real repository, step by step")[-1]
    typed(stack, f"REPO={SESSION}\n{block}")
    place = f"/var/lib/sessiond/work/{SESSION}"
    seen = stack.compose(
        "exec", "-T", "-u", "10003", "sessiond", "sh", "-c", f"cd {place} && touch new && stat -c %u CLAUDE.md"
    )
    assert seen.strip() == "10003", seen
    say("a checkout is the agent's")


def back_up_and_restore(stack: Stack) -> None:
    save, load = written(stack, "Back-up")
    before = stack.ordered()
    typed(stack, save)
    answered(stack, "saved-", "backed up")
    stack.compose("down", "-v")
    typed(stack, load)
    stack.begin()
    after = stack.ordered()
    assert after[: len(before)] == before and len(after) > len(before)
    stack.flurry("restored-", 1)
    say(f"all volumes deleted, restored: the ledger's {len(before)} entries are there; a comment is answered")


def rotate(stack: Stack) -> None:
    change, end = written(stack, "The webhook's secret")
    old = stack.secret
    typed(stack, change)
    answered(stack, "secret-", "the webhook's secret is new")
    assert stack.secret != old
    assert stack.send("issue_comment", comment("old-", 0), "delivery-old-0", old) == 202
    typed(stack, end)
    assert stack.send("issue_comment", comment("old-", 1), "delivery-old-1", old) == 401
    say("the old secret was good meanwhile, and is refused now")
    old = read(stack, "handler", "/keys/webhook/key")
    typed(stack, written(stack, "The keys of sessiond")[0])
    answered(stack, "keys-", "sessiond's keys are new")
    new = read(stack, "handler", "/keys/webhook/key")
    assert [stack.python("handler", KNOCK, key).strip() for key in (old, new)] == ["401", "200"]
    old = read(stack, "handler", "/keys/webhook/redis-url")
    typed(stack, written(stack, "The users of Redis")[0])
    answered(stack, "users-", "the users of Redis are new")
    new = read(stack, "handler", "/keys/webhook/redis-url")
    assert [stack.python("handler", LOG_IN, url).strip() for url in (old, new)] == ["refused", "in"]
    say("the old key and the old password are refused")


def upgrade(stack: Stack) -> None:
    """A release that changes every image, while comments come."""
    (place,) = stack.origin.glob("services/common/sessiond_common/__init__.py")
    place.write_text(place.read_text().replace('VERSION = "', 'VERSION = "9.'))
    who = ["-c", "user.name=compose-test", "-c", "user.email=compose-test@localhost"]
    subprocess.run(["git", *who, "commit", "-qam", "A release"], cwd=stack.origin, check=True)
    (block,) = written(stack, "Upgrade")
    stack.flurry("upgrade-", 9, lambda: typed(stack, block))
    version = "import sessiond_common; print(sessiond_common.VERSION)"
    for service in ("sessiond", "webhook", "handler", "poster", "worker"):
        assert stack.python(service, version).startswith("9."), service
    say("upgraded under a flurry of 9, each answered once")
