"""The accounts that may ask, and the account of the bot."""

from dataclasses import replace
from typing import Any

import pytest

from sessiond_webhook.deliveries import authorization, intents
from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.intents import Demanded, Ignored, Rules
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.demands.comment import Person
from support.webhook import payloads

OWN = Person(4711, "Bot", "helper[bot]")
RULES = Rules(Trigger(Kind.MENTION, "helper[bot]"), People(OWN), "bug")


def who(**members: Any) -> intents.Intent:
    return intents.read("issue_comment", payloads.comment(**{f"comment__{k}": v for k, v in members.items()}), RULES)


def test_the_account_and_its_association_decide_who_may_ask() -> None:
    for association in authorization.ASSOCIATIONS:
        allowed = association in ("OWNER", "MEMBER", "COLLABORATOR")
        assert isinstance(who(author_association=association), Demanded if allowed else Ignored)
    assert who(author_association=None) == Ignored("not-allowed")
    assert who(user__type="Bot") == Ignored("bot")
    assert who(user__type="Mannequin") == Ignored("bot")


def test_our_own_comments_are_recognized_by_number_and_type_and_not_by_login() -> None:
    assert who(user={"id": 4711, "type": "Bot", "login": "renamed[bot]"}) == Ignored("own")
    assert isinstance(who(user={"id": 4711, "type": "User", "login": "x"}), Demanded)
    assert isinstance(who(user={"id": 4712, "type": "User", "login": "helper[bot]"}), Demanded)
    by_login = People(authorization.bot_account("Helper", 0))
    assert by_login.is_own(Person(9, "User", "helper")) and not by_login.is_own(Person(9, "Bot", "helper"))


def test_listed_accounts_may_ask_whatever_their_association() -> None:
    trusted = replace(
        RULES, people=People(OWN, listed=(authorization.account_of("99:bot"), authorization.account_of("5")))
    )
    stranger = payloads.comment(comment__author_association="NONE", comment__user__id=5)
    assert isinstance(intents.read("issue_comment", stranger, trusted), Demanded)
    bot = payloads.change(stranger, comment__user__id=99, comment__user__type="Bot")
    assert isinstance(intents.read("issue_comment", bot, trusted), Demanded)
    same_number = payloads.change(stranger, comment__user__id=99)
    assert intents.read("issue_comment", same_number, trusted) == Ignored("not-allowed")
    for word in ("", "mona", "0", "-1", "5:", "5:B0t", "1" * 20):
        with pytest.raises(ValueError):
            authorization.account_of(word)
