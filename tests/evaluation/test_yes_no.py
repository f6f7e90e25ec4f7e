"""Yes and no in free answers."""

from __future__ import annotations

import pytest

from m2pt_cli.evaluation.yes_no import first_yes_or_no


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("  no.", "no"),
        ("Y", "yes"),
        ("n.", "no"),
        ("No, yes is wrong", "no"),
        ("It does not agree", "no"),
        ("The dog isn't there.", "no"),
        ("True", "yes"),
        ("That is incorrect", "no"),
        ("I know nothing", None),
        ("yesterday", None),
        ("", None),
        ("是", None),
    ],
)
def test_the_first_word_that_says_it_decides(answer: str, said: str | None) -> None:
    assert first_yes_or_no(answer) == said
