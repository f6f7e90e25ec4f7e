"""Tokenise special tokens that a user or a data set typed as plain text.

A tokenizer turns ``</s>`` in an answer into a real end of the sequence, and ``<|im_start|>`` in a question into a real
turn. Here such a typed token is tokenised as its characters; the special tokens of the chat template stay special.

Before a conversation is rendered, every typed token is replaced by a character that does not occur in it (`escaped`).
The rendered text is then tokenised by a copy of the tokenizer that treats its special tokens as text; in it, other
reserved characters stand for the template's special tokens. So the text between two special tokens is tokenised as
the tokenizers library does it, prefix spaces included. Texts without typed special tokens do not take this path.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from m2pt_cli.data.sample import IMAGE_MARK, Turn
from m2pt_cli.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters of two planes: for typed tokens in a rendered text, and for the template's in the copy.
_TYPED, _OWN, _PLANE = 0xF0000, 0x100000, 0xFFFD


@dataclass(frozen=True)
class Escaped:
    """Turns in which a character replaces each typed special token; ``typed`` maps each character to its token."""

    turns: Sequence[Turn]
    typed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TypedTokens:
    """The token ids of a rendered text.

    Attributes:
        ids: token ids; offsets: the characters of each token in the text that was tokenised.
        spans: the spans of the rendered text, as character ranges of the text that was tokenised.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    spans: tuple[tuple[int, int], ...]


def escaped(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> Escaped:
    """Replace every special token typed in ``turns`` by a reserved character.

    ``<image>`` is kept: it stands for an image, and its count is checked.
    """
    pattern = _special_tokens(tokenizer).pattern
    found = {mark for turn in turns for mark in pattern.findall(turn.text)} if pattern is not None else set()
    if not found:
        return Escaped(turns)
    held = {character for turn in turns for character in turn.text}
    free = (chr(_TYPED + number) for number in range(_PLANE) if chr(_TYPED + number) not in held)
    characters = {mark: next(free) for mark in sorted(found)}
    assert pattern is not None
    return Escaped(
        [replace(turn, text=pattern.sub(lambda match: characters[match.group()], turn.text)) for turn in turns],
        {character: mark for mark, character in characters.items()},
    )


def typed_tokens(
    text: str,
    spans: Sequence[tuple[int, int]],
    typed: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_special_tokens: bool,
) -> TypedTokens:
    """Tokenise a rendered text whose typed special tokens were replaced by `escaped`.

    Args:
        text: the whole text, with the template's own special tokens.
        spans: character ranges of it, to be converted to ranges of the tokenised text.
        typed: the special token that each character stands for.
        add_special_tokens: whether the tokenizer adds its own, such as BOS.

    Raises:
        InputError: this tokenizer can't tokenise a typed special token as text.
    """
    special = _special_tokens(tokenizer)
    stand_ins = {**{mark: chr(character) for mark, character in special.characters.items()}, **typed}
    pattern = re.compile("|".join(re.escape(mark) for mark in sorted(stand_ins, key=len, reverse=True)))
    if any(chr(character) in text for character in special.characters.values()):
        raise InputError(
            f"the text holds {_listed(typed.values())} beside a private-use character, which stands for it"
        )
    pieces: list[str] = []
    edges: list[tuple[int, int]] = [(0, 0)]  # positions in the rendered text, and the matching ones in the result
    done = length = 0
    for match in pattern.finditer(text):
        pieces += [text[done : match.start()], stand_ins[match.group()]]
        length += match.start() - done
        edges.append((match.start(), length))
        length += len(pieces[-1])
        done = match.end()
        edges.append((done, length))
    pieces.append(text[done:])
    encoding = special.backend().encode("".join(pieces), add_special_tokens=add_special_tokens)
    ids = [special.id_of.get(token, token) for token in encoding.ids]
    # The tokenizer's vocabulary may contain a special token as a plain entry; the unknown token is not a match.
    forbidden = {special.numbers[mark] for mark in typed.values()} - {tokenizer.unk_token_id}
    if any(
        token in forbidden and not is_added
        for token, is_added in zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    ):
        raise InputError(
            f"the text holds {_listed(typed.values())}, a mark that this tokenizer can't take as text",
            "write it in other words",
        )
    return TypedTokens(
        ids, list(encoding.offsets), tuple((_moved(start, edges), _moved(end, edges)) for start, end in spans)
    )


def _moved(place: int, edges: Sequence[tuple[int, int]]) -> int:
    before, now = max(edge for edge in edges if edge[0] <= place)
    return now + place - before


def _listed(marks: Iterable[str]) -> str:
    return ", ".join(sorted(marks))


class _SpecialTokens:
    """The special tokens of one tokenizer, and its copy in which they are text."""

    def __init__(self, tokenizer: Any) -> None:
        self.size = len(tokenizer)
        tokens = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        typed = sorted((t.content for t in tokens.values() if t.content != IMAGE_MARK), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, typed))) if typed else None
        self.characters = {token.content: _OWN + place for place, token in enumerate(tokens.values())}
        self.id_of: dict[int, int] = {}
        self.numbers = {token.content: number for number, token in tokens.items()}
        self._tokens = list(tokens.values())
        self._original = tokenizer.backend_tokenizer
        self._copy: Any = None

    def backend(self) -> Any:
        """Return the copy, which is created at the first call."""
        if self._copy is None:
            from tokenizers import AddedToken

            made = copy.deepcopy(self._original)
            made.no_truncation()
            made.no_padding()
            made.encode_special_tokens = True
            for token in self._tokens:
                character = chr(self.characters[token.content])
                made.add_tokens(
                    [
                        AddedToken(
                            character,
                            single_word=token.single_word,
                            lstrip=token.lstrip,
                            rstrip=token.rstrip,
                            normalized=token.normalized,
                            special=False,
                        )
                    ]
                )
                self.id_of[made.token_to_id(character)] = self.numbers[token.content]
            self._copy = made
        return self._copy


_KNOWN: WeakKeyDictionary[Any, _SpecialTokens] = WeakKeyDictionary()


def _special_tokens(tokenizer: Any) -> _SpecialTokens:
    known = _KNOWN.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        known = _KNOWN[tokenizer] = _SpecialTokens(tokenizer)
    return known
