"""Parsers of model answers: yes or no, a class name, or a normalised phrase."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

# The first match decides. "not" and "n't" mean no, as in "it does not".
_WORD = re.compile(r"\b(yes|true|correct|no|not|false|incorrect)\b|n't\b", re.IGNORECASE)
_YES = frozenset(("yes", "true", "correct"))


def first_yes_or_no(answer: str) -> str | None:
    """Return ``yes`` or ``no`` by the first word that means one of them (or a lone y or n); None if there is none."""
    letter = answer.strip().strip(".,!'\"").lower()
    if letter in ("y", "n"):
        return "yes" if letter == "y" else "no"
    found = _WORD.search(answer)
    if found is None:
        return None
    return "yes" if found.group().lower() in _YES else "no"


def mme_official(answer: str) -> str | None:
    """Parse as the MME authors' calculator does: "yes", else "no", within the first four characters, unstripped."""
    return _yes_or_no_in_first_four(answer.lower())


def mme_lmms_eval(answer: str) -> str | None:
    """Parse by lmms-eval's MME rule: strip, remove full stops, accept a lone y or n; else as `mme_official`."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return _yes_or_no_in_first_four(text)


def _yes_or_no_in_first_four(text: str) -> str | None:
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def pope_official(answer: str) -> str:
    """Parse as the POPE authors' script does: "No", "not" or "no" before the first full stop is no, all else yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_lmms_eval(answer: str) -> str:
    """Parse by lmms-eval's POPE rule: the whole answer, in lower case and stripped."""
    return answer.lower().strip()


_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
# `normalise` removes commas and question marks before it handles these.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_FULL_STOP = re.compile(r"\.(?!\d)")
# The reference code passes re.UNICODE as the count of `re.sub`, so it removes at most 32 full stops.
_MOST_FULL_STOPS = int(re.UNICODE)

# Contractions without their apostrophe -> with it. The reference keys with capitals are omitted: they never match
# lower-cased text.
_CONTRACTION_PAIRS = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've
couldnt've:couldn't've didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've
hasnt:hasn't havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's
isnt:isn't itd:it'd itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've
she'dve:she'd've shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've
somebody'd:somebodyd somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll
somebodys:somebody's someoned:someone'd someoned've:someone'd've someone'dve:someone'd've someonell:someone'll
someones:someone's somethingd:something'd somethingd've:something'd've something'dve:something'd've
somethingll:something'll thats:that's thered:there'd thered've:there'd've there'dve:there'd've therere:there're
theres:there's theyd:they'd theyd've:they'd've they'dve:they'd've theyll:they'll theyre:they're theyve:they've
twas:'twas wasnt:wasn't wed've:we'd've we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're
whats:what's whatve:what've whens:when's whered:where'd wheres:where's whereve:where've whod:who'd
whod've:who'd've who'dve:who'd've wholl:who'll whos:who's whove:who've whyll:why'll whyre:why're whys:why's
wont:won't wouldve:would've wouldnt:wouldn't wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all
yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd
youd've:you'd've you'dve:you'd've youll:you'll youre:you're youve:you've
"""
_CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTION_PAIRS.split())


def normalise(answer: str) -> str:
    """Normalise an answer as EvalAI does: lower case, no articles, number words as digits, its punctuation rules."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove each punctuation character that touches a space somewhere in the text; replace the others by a space.

    Full stops are removed unless a digit follows.
    """
    out = text
    for character in _PUNCTUATION:
        touches_space = character + " " in text or " " + character in text
        out = out.replace(character, "" if touches_space else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy of an answer: how well it agrees with the annotators, from 0 to 1.

    The mean over the leave-one-out sets of the annotators' answers of min(1, matches / 3) (Antol et al. 2015).

    Args:
        prediction: the model's answer; normalised here.
        answers: the annotators' answers, ten of them in TextVQA; normalised here.
    """
    if not answers:
        return 0.0
    normalised = normalise(prediction)
    matches = [normalise(answer) == normalised for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - own) / 3) for own in matches) / len(matches)


_NAME_WORD = re.compile(r"[a-z0-9]+")
_IRREGULAR = {"man": "men", "woman": "women", "mouse": "mice", "wolf": "wolves", "child": "children", "fish": "fishes"}


def match_class(answer: str, names: Sequence[str]) -> str | None:
    """Return the class that an answer names first, or None; where several start at one word, the longest name wins.

    ``"An aquarium fish."`` gives ``aquarium_fish``.
    """
    words = _NAME_WORD.findall(answer.lower())
    phrases = _phrases(tuple(names))
    for start in range(len(words)):
        for phrase, name in phrases:
            if tuple(words[start : start + len(phrase)]) == phrase:
                return name
    return None


@lru_cache(maxsize=8)
def _phrases(names: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Return ``(words, name)`` for every spelling of each name, longest first."""
    phrases = []
    for name in names:
        words = _NAME_WORD.findall(name.lower().replace("_", " "))
        *front, last = words
        spellings = {tuple(words), *((*front, plural) for plural in _plurals(last)), ("".join(words),)}
        phrases += [(spelling, name) for spelling in spellings]
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
