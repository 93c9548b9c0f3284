"""Who may ask, and which account is our own. Pure. Accounts are compared by `Person.same`, never by login alone."""

import re
from dataclasses import dataclass
from typing import Final

from sessiond_webhook.demands.comment import Person

ASSOCIATIONS: Final = frozenset(
    {"COLLABORATOR", "CONTRIBUTOR", "FIRST_TIMER", "FIRST_TIME_CONTRIBUTOR", "MANNEQUIN", "MEMBER", "NONE", "OWNER"}
)
"""GitHub's `author_association`."""
DEFAULT_ASSOCIATIONS: Final = frozenset({"OWNER", "MEMBER", "COLLABORATOR"})
USER: Final = "User"
BOT: Final = "Bot"
_LISTED: Final = re.compile(r"([1-9]\d{0,18})(?::([A-Za-z]{1,40}))?")


@dataclass(frozen=True, slots=True)
class People:
    """`own` is our account; an `id` of 0 says that only its login is known. `listed` may ask whatever they are."""

    own: Person
    associations: frozenset[str] = DEFAULT_ASSOCIATIONS
    listed: tuple[Person, ...] = ()

    def is_own(self, person: Person) -> bool:
        """Whether this is our own account: what it writes is never a demand."""
        if self.own.id:
            return self.own.same(person)
        return (self.own.type, self.own.login.casefold()) == (person.type, person.login.casefold())

    def is_listed(self, person: Person) -> bool:
        """Whether ALLOWED_USERS names this account."""
        return any(one.same(person) for one in self.listed)

    def refusal(self, person: Person, association: str | None) -> str | None:
        """Why this account may not ask: own, bot, not-allowed; None if it may.

        `association` is GitHub's word for it; None where GitHub itself let only trusted accounts do this.
        """
        if self.is_own(person):
            return "own"
        if self.is_listed(person):
            return None
        if person.type != USER:
            return "bot"
        return None if association is None or association in self.associations else "not-allowed"


def own_account(login: str, number: int) -> Person:
    """Our account of BOT_LOGIN and BOT_ID (0: not known). Apps have logins that end with `[bot]`."""
    return Person(number, BOT if login.endswith("[bot]") else USER, login)


def listed(word: str) -> Person:
    """An account of ALLOWED_USERS: `id` (a user's) or `id:Type`. Raises ValueError."""
    found = _LISTED.fullmatch(word)
    if found is None:
        raise ValueError(f"{word!r} is not an account's number, or number:Type")
    return Person(int(found[1]), (found[2] or USER).capitalize(), "")


def association(word: str) -> str:
    """One of `ASSOCIATIONS`. Raises ValueError."""
    if word.upper() not in ASSOCIATIONS:
        raise ValueError(f"{word!r} is none of {', '.join(sorted(ASSOCIATIONS))}")
    return word.upper()
