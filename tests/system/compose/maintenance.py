"""Run the commands of docs/connect-github.md and docs/operate/maintain.md exactly as the pages give them."""

import re
import subprocess

from stack import SESSION, Stack, comment, say

CONNECT_PAGE = "docs/connect-github.md"
MAINTAIN_PAGE = "docs/operate/maintain.md"
KEY_STATUS = """
import sys, urllib.request
from urllib.error import HTTPError
try:
    headers = {"Authorization": "Bearer " + sys.argv[1]}
    request = urllib.request.Request("http://sessiond:8420/v1/sessions", headers=headers)
    print(urllib.request.urlopen(request, timeout=5).status)
except HTTPError as error:
    print(error.code)
"""
"""A command that prints the HTTP status that sessiond returns for a key."""
REDIS_LOGIN = """
import sys, redis
try:
    redis.Redis.from_url(sys.argv[1]).exists("webhook:x")
    print("accepted")
except redis.AuthenticationError:
    print("refused")
"""


def command_blocks(stack: Stack, heading: str, page_name: str = MAINTAIN_PAGE) -> list[str]:
    """Return the blocks of commands below this heading, from the page in the clone."""
    page = (stack.place / page_name).read_text()
    text = re.split(rf"^#+ {re.escape(heading)}$", page, flags=re.M)[1]
    text = re.split(r"^#", text, flags=re.M)[0]
    return [
        block.group() for block in re.finditer(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.M) if block.group().strip()
    ]


def run_block(stack: Stack, block: str) -> str:
    """Run a block in a shell in the project's folder. Returns its output."""
    return stack.run("sh", "-eu", "-c", block)


def read(stack: Stack, service: str, path: str) -> str:
    return stack.compose("exec", "-T", service, "cat", path).strip()


def check_answered(stack: Stack, prefix: str, what: str) -> None:
    stack.begin()
    stack.flurry(prefix, 1)
    say(f"{what}; a comment is answered")


def install_checkout(stack: Stack) -> None:
    """Check that the agent can read and change the checkout that the operator installs."""
    (stack.place / "checkout").mkdir()
    (stack.place / "checkout" / "CLAUDE.md").write_text("Answer in one sentence.\n")
    block = command_blocks(stack, "2. Give the agent a checkout", CONNECT_PAGE)[-1]
    run_block(stack, f"REPO={SESSION}\n{block}")
    place = f"/var/lib/sessiond/work/{SESSION}"
    owner = stack.compose(
        "exec", "-T", "-u", "10003", "sessiond", "sh", "-c", f"cd {place} && touch new && stat -c %u CLAUDE.md"
    )
    assert owner.strip() == "10003", owner
    say("the agent owns its checkout")


def back_up_and_restore(stack: Stack) -> None:
    save, load = command_blocks(stack, "Back up")
    before = stack.checked_ledger()
    run_block(stack, save)
    check_answered(stack, "saved-", "backed up")
    stack.compose("down", "-v")
    run_block(stack, load)
    stack.begin()
    after = stack.checked_ledger()
    assert after[: len(before)] == before and len(after) > len(before)
    stack.flurry("restored-", 1)
    say(f"all volumes deleted, restored: the ledger's {len(before)} entries are there; a comment is answered")


def rotate_secrets(stack: Stack) -> None:
    change, end = command_blocks(stack, "The webhook's secret")
    old = stack.secret
    run_block(stack, change)
    check_answered(stack, "secret-", "the webhook's secret is new")
    assert stack.secret != old
    assert stack.send("issue_comment", comment("old-", 0), "delivery-old-0", old) == 202
    run_block(stack, end)
    assert stack.send("issue_comment", comment("old-", 1), "delivery-old-1", old) == 401
    say("the webhook accepted the old secret during the rotation, and refuses it now")
    old = read(stack, "handler", "/keys/webhook/key")
    run_block(stack, command_blocks(stack, "The keys of sessiond")[0])
    check_answered(stack, "keys-", "sessiond's keys are new")
    new = read(stack, "handler", "/keys/webhook/key")
    assert [stack.python("handler", KEY_STATUS, key).strip() for key in (old, new)] == ["401", "200"]
    old = read(stack, "handler", "/keys/webhook/redis-url")
    run_block(stack, command_blocks(stack, "The users of Redis")[0])
    check_answered(stack, "users-", "the users of Redis are new")
    new = read(stack, "handler", "/keys/webhook/redis-url")
    assert [stack.python("handler", REDIS_LOGIN, url).strip() for url in (old, new)] == ["refused", "accepted"]
    say("the old key and the old password are refused")


def upgrade(stack: Stack) -> None:
    """Upgrade to a release that changes every image, during a flurry."""
    (place,) = stack.origin.glob("services/common/sessiond_common/__init__.py")
    place.write_text(place.read_text().replace('VERSION = "', 'VERSION = "9.'))
    author = ["-c", "user.name=compose-test", "-c", "user.email=compose-test@localhost"]
    subprocess.run(["git", *author, "commit", "-qam", "A release"], cwd=stack.origin, check=True)
    (block,) = command_blocks(stack, "Upgrade")
    stack.flurry("upgrade-", 9, lambda: run_block(stack, block))
    version = "import sessiond_common; print(sessiond_common.VERSION)"
    for service in ("sessiond", "webhook", "handler", "poster", "worker"):
        assert stack.python(service, version).startswith("9."), service
    say("upgraded during a flurry of 9, each answered once")
