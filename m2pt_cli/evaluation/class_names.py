"""Which of a list of class names a free answer gives: underscores, articles and plurals aside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_WORD = re.compile(r"[a-z0-9]+")
_IRREGULAR = {"man": "men", "woman": "women", "mouse": "mice", "wolf": "wolves", "child": "children", "fish": "fishes"}


def match_class(answer: str, names: Sequence[str]) -> str | None:
    """The class that an answer names first; the longest name wins where several start at one word.

    ``"An aquarium fish."`` gives ``aquarium_fish``; an answer that names none gives None.
    """
    words = _WORD.findall(answer.lower())
    phrases = _phrases(tuple(names))
    for start in range(len(words)):
        for phrase, name in phrases:
            if tuple(words[start : start + len(phrase)]) == phrase:
                return name
    return None


@lru_cache(maxsize=8)
def _phrases(names: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Every way to write each name, longest first."""
    phrases = []
    for name in names:
        words = _WORD.findall(name.lower().replace("_", " "))
        *front, last = words
        ways = {tuple(words), *((*front, plural) for plural in _plurals(last)), ("".join(words),)}
        phrases += [(way, name) for way in ways]
    return sorted(phrases, key=lambda pair: (-len(pair[0]), pair[0]))


def _plurals(word: str) -> list[str]:
    plurals = [word + "s"]
    if word in _IRREGULAR:
        plurals.append(_IRREGULAR[word])
    if word.endswith(("s", "x", "ch", "sh")):
        plurals.append(word + "es")
    if word.endswith("y"):
        plurals.append(word[:-1] + "ies")
    return plurals
