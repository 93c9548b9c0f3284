"""The outcome line of an answer: it may follow any text, and nothing else counts as one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond_worker.runner.reply import OUTCOMES, outcome_of


@given(st.text(), st.sampled_from(OUTCOMES), st.text(max_size=50), st.sampled_from(["", "\n", " \n\n"]))
def test_the_last_line_is_found_after_any_text(text: str, outcome: str, said: str, tail: str) -> None:
    found = outcome_of(f"{text}\n{json.dumps({'outcome': outcome, 'note': said})}{tail}")
    assert found is not None and (found.outcome, found.note) == (outcome, said.strip())


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    found = outcome_of(text)
    assert found is None or found.outcome in OUTCOMES


@pytest.mark.parametrize(
    "text",
    [
        "", "done", '{"outcome": "finished"}', '{"outcome": "done"} and more', '["done"]', "{", '{"outcome": "done"',
        '{"outcome": "done", "note": 3}', '{"outcome": ["done"]}', '{"outcome": "done", "note": ""}\n```',
        '{"outcome": "done"}\nsomething else', "null", '"done"',
    ],
)  # fmt: skip
def test_any_other_line_is_not_an_outcome(text: str) -> None:
    assert outcome_of(text) is None
