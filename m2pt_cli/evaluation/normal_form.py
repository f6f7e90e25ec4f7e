"""Compare free answers: one text for answers that differ only in case, articles, punctuation or number format."""

from __future__ import annotations

import re
import unicodedata

# Marks that NFKC keeps apart, and what they are typed as. The en dash stands between numbers and before negative ones.
_SAME_MARKS = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´`ʼ＇", "'"),
        **dict.fromkeys("“”„‟", '"'),
        **dict.fromkeys("‐‑‒–−﹣－⁻₋", "-"),
        "٪": "%",
        "٫": ".",
        "٬": ",",
        "⁄": "/",
    }
)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
# Spaces that are set between the groups of three digits, and nowhere else inside a text.
_GROUP_SPACES = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))")
_POWER = re.compile(rf"(?<=\d)(?=[⁻]?[{_SUPERSCRIPTS}])")
_MIXED_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞↉])")
_BOLD = re.compile(r"(?<!\w)\*\*(?=\S)(.+?)(?<=\S)\*\*(?!\w)")
# What joins emoji and letters of several scripts, and the tags that tell flags apart; every other format character
# is invisible.
_JOINERS = frozenset(("\u200c", "\u200d", *(chr(code) for code in range(0xE0020, 0xE0080))))
_EMOJI_STYLES = "\ufe0e\ufe0f"
# Letters and symbols that are drawn as nothing: fillers of Hangul, the empty pattern of Braille.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"

_ARTICLES = frozenset(("a", "an", "the"))
# An article stands before a noun, so never before these.
_NOT_AFTER_ARTICLE = frozenset(("and", "or", "nor", "vs", "to", "is", "&", "+", "=", "/", "-", "<", ">"))
_QUOTES = "'\"«»‹›「」『』《》〈〉"
_BRACKETS = {"(": ")", "[": "]", "{": "}", "【": "】", "〔": "〕"}
_STARTS = frozenset((*"¿¡…", *_QUOTES, *_BRACKETS))
_STOPS = ".,;:!?…。、｡､؟،؛۔।॥։።—―"
_ENDS = frozenset((*_STOPS, *_QUOTES, *_BRACKETS.values()))
# Where a comma or a stop of a script without spaces ends a word although no space follows; numbers keep theirs.
_WORD_BREAK = re.compile(r"(?<!\d)[,;](?=\w)|[,;](?=[^\W\d])|[。、｡､،؛—―]|[!?](?=\w)")
_SIGN_APART = re.compile(r"(?:^|(?<=\s))([-+<>~≈±$€£¥₹#]) +(?=[.\d])")
_UNIT_APART = re.compile(r"(?<=\d) +([%‰€£¥₹°](?:[cf]\b)?)")

_RUN = re.compile(r"(?:(?<![\w.])\.)?\d(?:[\d.,']*\d)?")
_PLAIN_NUMBER = re.compile(r"(\d*)(?:\.(\d+))?")
_GROUPED_NUMBERS = (
    re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"),
    re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?"),  # lakh and crore
    re.compile(r"\d{1,3}(?:'\d{3})+(?:[.,]\d+)?"),
)
# Groups set off by points: two at least, or a decimal comma behind them; one alone is a decimal point.
_POINT_GROUPED = re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}\.\d{3},\d+")


def normal_form(text: str) -> str:
    """Return the normal form of an answer; equivalent answers have the same one.

    Unicode form (NFKC) and case do not count, nor do sentence punctuation at the ends of words, articles before
    another word, thousands separators, and zeros that do not change a number. Everything else counts: symbols, emoji,
    accents, and signs, points and colons inside numbers. Only a text without any visible character gives an
    empty one: an answer of nothing but articles or punctuation stays as it is.

    >>> normal_form("The Cat!"), normal_form("1,000.0"), normal_form("C++."), normal_form("A")
    ('cat', '1000', 'c++', 'a')
    """
    folded = _folded(text)
    words = [_Word(part, folded) for part in _WORD_BREAK.sub(" \\g<0> ", folded).split()]
    kept = [word for word in words if word.text]
    if not kept:
        return " ".join(folded.split())
    return " ".join(
        word.text
        for word, following in zip(kept, [*kept[1:], None], strict=True)
        if not (word.text in _ARTICLES and word.is_open and following and following.text not in _NOT_AFTER_ARTICLE)
    )


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character: only spaces, control and format characters."""
    return all(
        character.isspace() or character in _FILLERS or unicodedata.category(character) in ("Cc", "Cf")
        for character in text
    )


def _folded(text: str) -> str:
    """Unicode form, case, digits and look-alike marks; and spaces inside numbers."""
    text = _GROUP_SPACES.sub("", text)
    # NFKC makes a digit of a raised one: 10² is not 102, while x² may be x2. ½ after a digit is a number of its own.
    text = _MIXED_FRACTION.sub(" ", _POWER.sub("^", text)).translate(_SAME_MARKS)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Lower-case İ is an i with a dot above that no other i has.
    text = text.replace("i\u0307", "i").translate(_SAME_MARKS)
    text = "".join(_visible(character) for character in text)
    text = _BOLD.sub(r"\1", text)
    return _UNIT_APART.sub(r"\1", _SIGN_APART.sub(r"\1", text)).strip()


def _visible(character: str) -> str:
    """Return a character: decimal digits of any script as 0-9, invisible characters removed."""
    if not character.isascii() and character.isdecimal():
        return str(unicodedata.decimal(character))
    if character in _JOINERS:
        return character
    if character in _EMOJI_STYLES:
        return ""
    category = unicodedata.category(character)
    return "" if category == "Cf" else " " if category == "Cc" else character


class _Word:
    """One word of an answer.

    Attributes:
        text: the word without the punctuation at its ends; empty if it is nothing else.
        is_open: whether no punctuation follows it: an article never stands before a full stop.
    """

    def __init__(self, part: str, whole: str) -> None:
        start, end = 0, len(part)
        while start < end and part[start] in _STARTS and not _is_symbol(part, start, whole):
            start += 1
        # An ellipsis before a word; a single point may be part of a number or a name (.5, .net).
        while part.startswith("..", start) and end - start > 2:
            start += 2 if not part.startswith("...", start) else 3
        while end > start and part[end - 1] in _ENDS and not _is_symbol(part[start:], end - 1 - start, whole):
            end -= 1
        stripped = part[start:end]
        # A face such as ":)" is a symbol; marks that end sentences or quote are not.
        is_punctuation = not stripped and all(mark in _STOPS or mark in _QUOTES for mark in part)
        self.text = _with_plain_numbers(stripped) if stripped else "" if is_punctuation else part
        self.is_open = end == len(part)


def _is_symbol(part: str, place: int, whole: str) -> bool:
    """Whether a mark at the end of a word is part of it: a bracket with its partner, the feet and inches of 6'2"."""
    mark = part[place]
    if mark in _BRACKETS.values():
        opening = next(left for left, right in _BRACKETS.items() if right == mark)
        return opening in part[:place]
    if mark in _BRACKETS:
        return _BRACKETS[mark] in part[place:] and not part.endswith((_BRACKETS[mark], *_STOPS))
    if mark in "'\"" and place and part[place - 1].isdigit():
        return whole.count(mark) % 2 == 1
    return False


def _with_plain_numbers(word: str) -> str:
    """A word with its numbers as they are compared; signs, units and whatever else stands around them stay."""
    digits = sum(character.isdigit() for character in word)

    def plain(found: re.Match[str]) -> str:
        run = _without_groups(found.group())
        is_alone = sum(character.isdigit() for character in found.group()) == digits
        before = word[: found.start()]
        # Only a number by itself has a value: v1.10 is not v1.1, and 1:05 is not 1:5.
        if not is_alone or before[-1:].isalpha() or before[-1:] in ("_", "^", "."):
            return run
        number = _PLAIN_NUMBER.fullmatch(run)
        if number is None:
            return run
        whole, fraction = number.group(1).lstrip("0") or "0", (number.group(2) or "").rstrip("0")
        return f"{whole}.{fraction}" if fraction else whole

    text = _RUN.sub(plain, word)
    return text[1:] if text == "-0" else text


def _without_groups(run: str) -> str:
    """Digits and separators without the separators of thousands; as they are where these are not."""
    if any(grouped.fullmatch(run) for grouped in _GROUPED_NUMBERS):
        head, mark, last = run.rpartition(",")
        decimals = f".{last}" if "'" in head and mark else None
        return (head if decimals else run).replace(",", "").replace("'", "") + (decimals or "")
    if _POINT_GROUPED.fullmatch(run):
        return run.replace(".", "").replace(",", ".")
    return run
