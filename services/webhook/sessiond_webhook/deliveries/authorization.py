"""Decides which accounts may ask, and which account is the bot's. Pure. Never compares accounts by their logins."""

import re
from dataclasses import dataclass
from typing import Final

from sessiond_webhook.demands.comment import Person

ASSOCIATIONS: Final = frozenset(
    {"COLLABORATOR", "CONTRIBUTOR", "FIRST_TIMER", "FIRST_TIME_CONTRIBUTOR", "MANNEQUIN", "MEMBER", "NONE", "OWNER"}
)
"""The values of GitHub's `author_association`."""
DEFAULT_ASSOCIATIONS: Final = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})
USER: Final = "User"
BOT: Final = "Bot"
_LISTED: Final = re.compile(r"([1-9]\d{0,18})(?::([A-Za-z]{1,40}))?")


@dataclass(frozen=True, slots=True)
class People:
    """The accounts that the settings name.

    `own` is the bot's account; its `id` is 0 if only the login is known. The accounts in `listed` may always ask.
    """

    own: Person
    associations: frozenset[str] = DEFAULT_ASSOCIATIONS
    listed: tuple[Person, ...] = ()

    def is_own(self, person: Person) -> bool:
        """Whether this is the bot's account. Its comments are never demands."""
        if self.own.id:
            return self.own.same(person)
        return (self.own.type, self.own.login.casefold()) == (person.type, person.login.casefold())

    def is_listed(self, person: Person) -> bool:
        """Whether ALLOWED_USERS names this account."""
        return any(one.same(person) for one in self.listed)

    def refusal(self, person: Person, association: str | None) -> str | None:
        """Return why this account may not ask (`own`, `bot`, `not-allowed`), or None if it may.

        `association` is GitHub's `author_association`. None means that GitHub lets only trusted accounts do this.
        """
        if self.is_own(person):
            return "own"
        if self.is_listed(person):
            return None
        if person.type != USER:
            return "bot"
        return None if association is None or association in self.associations else "not-allowed"


def bot_account(login: str, number: int) -> Person:
    """Return the bot's account from BOT_LOGIN and BOT_ID (0: not known). The login of an app ends with `[bot]`."""
    return Person(number, BOT if login.endswith("[bot]") else USER, login)


def account_of(word: str) -> Person:
    """Return the account of one word of ALLOWED_USERS: `id` for a user, or `id:Type`.

    Raises:
        ValueError: the word has neither form.
    """
    found = _LISTED.fullmatch(word)
    if found is None:
        raise ValueError(f"{word!r} must be the number of an account, or number:Type")
    return Person(int(found[1]), (found[2] or USER).capitalize(), "")


def association(word: str) -> str:
    """Return one of `ASSOCIATIONS`.

    Raises:
        ValueError: the word is none of them.
    """
    if word.upper() not in ASSOCIATIONS:
        raise ValueError(f"{word!r} must be one of {', '.join(sorted(ASSOCIATIONS))}")
    return word.upper()
