"""Parse answers: yes or no, a class name, or a normalised phrase."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_SAME_MARKS = str.maketrans({**dict.fromkeys("’‘ʼ`´", "'"), **dict.fromkeys("_*", " ")})
# Phrases that repeat the options, and words around an answer that are not the answer: "the correct answer is no".
_NO_ANSWER = re.compile(
    r"\byes *(?:,|/|or) *no *(?:,|/|or|, or) *not sure\b|\byes *(?:or|/|and) *no\b|\btrue *(?:or|/) *false\b"
    r"|\b(?:correct|incorrect|true|false|right|wrong)(?= (?:answer|option|choice)\b)"
)
# "Not sure" and similar: neither yes nor no, although they contain "not".
_UNSURE = re.compile(
    r"(?:\b(?:not|never)|n't) (?:\w+ly |quite |really |very |so |too |yet |100 ?% )?"
    r"(?:sure|certain|clear|evident|obvious|known|knowable|determinable|necessarily|enough|sufficient)\b"
    r"|\b(?:can't|cant|can ?not|couldn't|could not|unable to|not able to|hard to|difficult to|impossible to"
    r"|not (?:be )?possible to|isn't possible to|not easy to|no way (?:to|of))"
    r" (?:be )?(?:\w+ly )?(?:tell|telling|say|know|knowing|determined?|be sure|judged?|confirm(?:ed)?|verif(?:y|ied)"
    r"|infer(?:red)?|decided?|concluded?|establish(?:ed)?|answer(?:ed)?)\b"
    r"|\b(?:don't|dont|do not|doesn't|does not|didn't|did not) (?:really |quite |even )?know\b"
    r"|\b(?:un(?:sure|certain|clear|known|decided|determined|determinable)|uncertainty|indeterminate|inconclusive"
    r"|ambiguous|dunno|insufficient|no (?:idea|clue|information|evidence|indication|mention)|maybe|perhaps|possibly"
    r"|depends|neither)\b"
)
# The first of these words decides; "not" means no ("it does not") unless it negates a negation: "not wrong".
_WORD = re.compile(
    r"(?P<yes>(?:\bnot|n't) (?:false|incorrect|wrong|untrue|inaccurate)\b"
    r"|\b(?:yes|yeah|yea|yep|yup|aye|true|correct|accurate|agrees?|affirmative)\b)"
    r"|(?P<no>\b(?:no(?! doubt\b)|nope|nah|nay|not|none|never|cannot|false|incorrect|wrong|untrue|inaccurate"
    r"|disagrees?|negative)\b|n't\b|\b(?:is|are|was|were|does|do|did|has|have|had|would|could|should)nt\b)"
)
# These mean yes only if no other word means yes or no: "certainly not".
_ASSENT = re.compile(
    r"^\W*(?:(?:that|it)(?:'s| is) right|right|sure(?:ly)?|certainly|definitely|absolutely|indeed|of course|exactly"
    r"|undoubtedly|without (?:a )?doubt|no doubt|ok(?:ay)?)\b\W*(?:(?:it|there) (?:is|does|are))?\W*$"
)


def _plain(answer: str) -> str:
    """Return the answer in lower case, with plain apostrophes and single spaces, without emphasis."""
    return " ".join(unicodedata.normalize("NFKC", answer.translate(_SAME_MARKS)).lower().split())


def first_yes_or_no(answer: str) -> str | None:
    """Return ``yes`` or ``no`` by the first word that means one of them (a lone y or n counts); None if none does.

    "Not sure" and "can't tell" mean neither, nor does an answer that only repeats "yes or no".
    """
    text = _NO_ANSWER.sub(" ", _plain(answer))
    letter = text.strip(" .,;:!?'\"()[]")
    if letter in ("y", "n"):
        return "yes" if letter == "y" else "no"
    found = _WORD.search(_UNSURE.sub(" ", text))
    if found is not None:
        return found.lastgroup
    return "yes" if _ASSENT.search(text) else None


def sounds_unsure(answer: str) -> bool:
    """Return whether an answer is undecided: "not sure", "can't tell", "maybe"."""
    return _UNSURE.search(_NO_ANSWER.sub(" ", _plain(answer))) is not None


def exact_yes_or_no(text: str) -> str | None:
    """Return ``yes`` or ``no`` if the text is only this word, in any case, with or without a full stop; else None."""
    word = text.strip().rstrip(".").strip().lower()
    return word if word in ("yes", "no") else None


def mme_official(answer: str) -> str | None:
    """Apply the MME authors' rule: "yes", else "no", within the first four characters, nothing stripped."""
    return _within_four(answer.lower())


def mme_lmms_eval(answer: str) -> str | None:
    """Apply lmms-eval's MME rule: stripped, without full stops; a lone y or n counts; then the authors' rule."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return _within_four(text)


def _within_four(text: str) -> str | None:
    return next((word for word in ("yes", "no") if word in text[:4]), None)


def pope_official(answer: str) -> str:
    """Apply the POPE authors' rule: the words No, not, no before the first full stop mean no, all else yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope_lmms_eval(answer: str) -> str:
    """Apply lmms-eval's POPE rule: the whole answer, lower-case and stripped, is compared."""
    return answer.lower().strip()


_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
# Commas and question marks are removed before these.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_FULL_STOP = re.compile(r"\.(?!\d)")
# The reference code passes this flag as the `count` of `re.sub`, so at most this many full stops are removed.
_MOST_FULL_STOPS = int(re.UNICODE)

# Words without apostrophe -> with it. Keys with capitals never match lower-cased text and are omitted.
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
    """Normalise an answer as EvalAI does: lower case, no articles, digits for number words, its punctuation rules."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_NUMBERS.get(word, word) for word in _without_punctuation(text).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Delete each punctuation character that touches a space anywhere in the text; replace the others by a space."""
    out = text
    for mark in _PUNCTUATION:
        touches_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if touches_space else " ")
    return _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the soft accuracy of an answer, from 0 to 1.

    The mean over the leave-one-out sets of the annotators' answers of min(1, matches / 3) (Antol et al. 2015).

    Args:
        prediction: the model's answer; normalised here.
        answers: the annotators' answers, ten of them in TextVQA; normalised here.
    """
    if not answers:
        return 0.0
    wanted = normalise(prediction)
    matches = [normalise(answer) == wanted for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - own) / 3) for own in matches) / len(matches)


_NAME_WORD = re.compile(r"[a-z0-9]+")
# "I can see a lion", "the image can't": the verb, not the class can.
_MODAL = re.compile(
    r"\bcan(?:not|'t|(?= (?:also |only |clearly |just |not )*(?:be|see|tell|say|not|identify|i|you|we)\b))"
)
_DENIED = re.compile(r"(?:\bnot|n't|\bno|\bneither|\bnor)(?: (?:really|actually))?(?: (?:a|an|the|any))?\s*$")
# Number of words in the longest class name.
_LONGEST_NAME = 3
_IRREGULAR = {"man": "men", "woman": "women", "mouse": "mice", "wolf": "wolves", "child": "children", "fish": "fishes"}


def match_class(answer: str, names: Sequence[str]) -> str | None:
    """Return the class that an answer names first; the longest name wins if several start at one word.

    ``"An aquarium fish."`` gives ``aquarium_fish``; an answer without a class gives None. Of directly adjacent names
    the last counts ("an orange butterfly", "a sea turtle"); a name after "not a" does not count.
    """
    text = _MODAL.sub(" ", _plain(answer))
    words = list(_NAME_WORD.finditer(text))
    named, end, place = None, 0, 0
    while place < len(words):
        start = words[place].start()
        found = _name_at([word.group() for word in words[place : place + _LONGEST_NAME]], tuple(names))
        if named is not None and (found is None or text[end:start].strip(" -")):
            break
        name, length = found or (None, 1)
        if named is not None or not _DENIED.search(text[:start]):
            named = name
        place += length
        end = words[place - 1].end()
    return named


def _name_at(words: Sequence[str], names: tuple[str, ...]) -> tuple[str, int] | None:
    """Return the class whose name these words start with, and its number of words."""
    for phrase, name in _phrases(names):
        if tuple(words[: len(phrase)]) == phrase:
            return name, len(phrase)
    return None


def exact_class(text: str, names: Sequence[str]) -> str | None:
    """Return the class whose name equals the text, in any case, with spaces or underscores; else None."""
    words = tuple(_NAME_WORD.findall(text.lower()))
    return next((name for phrase, name in _phrases(tuple(names)) if phrase == words), None)


@lru_cache(maxsize=8)
def _phrases(names: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Return every spelling of each name, longest first."""
    phrases = []
    for name in names:
        words = _NAME_WORD.findall(name.lower().replace("_", " "))
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
