"""Yes or no, read out of free answers: each reader is one published rule."""

from __future__ import annotations

import re

# The first of these words decides; "not" as in "it does not".
_WORD = re.compile(r"\b(yes|true|correct|no|not|false|incorrect)\b|n't\b", re.IGNORECASE)
_YES = frozenset(("yes", "true", "correct"))


def first_yes_or_no(answer: str) -> str | None:
    """``yes`` or ``no`` by the first word that says one of them (a lone y or n counts); None if there is none."""
    letter = answer.strip().strip(".,!'\"").lower()
    if letter in ("y", "n"):
        return "yes" if letter == "y" else "no"
    found = _WORD.search(answer)
    if found is None:
        return None
    return "yes" if found.group().lower() in _YES else "no"


def mme_official(answer: str) -> str | None:
    """The MME authors' calculator: "yes", else "no", within the first four characters, nothing stripped."""
    return _within_four(answer.lower())


def mme_lmms_eval(answer: str) -> str | None:
    """lmms-eval's MME rule: stripped, without full stops; a lone y or n counts; then as the authors do."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return _within_four(text)


def _within_four(text: str) -> str | None:
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def pope_official(answer: str) -> str:
    """The POPE authors' script: the words No, not, no before the first full stop mean no, all else yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_lmms_eval(answer: str) -> str:
    """lmms-eval's POPE rule: the whole answer, lower-case and stripped, is compared."""
    return answer.lower().strip()
