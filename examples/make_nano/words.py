"""nano's tokenizer: whole words of the drawn scenes and their sentences; anything else is <unk>."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from language import (
    CAPTION_REQUESTS,
    CHOOSING,
    CLAIMED_FACTS,
    CLAIMS,
    FACTS,
    NUMBERED,
    PLAIN,
    QUESTIONS,
    SENTENCES,
    TELLING,
    VERDICTS,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from m2pt_cli.demo.questions import FAMILIES, FORMATS, RELATIONS
from m2pt_cli.demo.render import BACKGROUNDS, COLORS, NUMBERS, PLACES, PLURALS, SHAPES, SIZES, UNSEEN_PROPERTIES

PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT = range(7)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
ROLES = ("USER:", "ASSISTANT:")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '' if loop.first else ' ' }}USER: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% else %} ASSISTANT: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{{ message['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
_WORD = re.compile(r"[a-z]+|[^\sa-z]")
_SLOT = re.compile(r"\{[a-z]*\}")


def split_words(text: str) -> list[str]:
    """Split into lower-case words and single punctuation marks, as the tokenizer does."""
    return _WORD.findall(text.lower())


def _sentences() -> Iterable[str]:
    yield from (
        "present absent equal unequal correct incorrect unknown yes no true false not sure odd even",
        "; scene digit claim pick side height ' \" ( ) ! -",
    )
    yield from (
        " ".join(words)
        for words in (
            COLORS,
            BACKGROUNDS,
            SHAPES,
            PLURALS.values(),
            SIZES,
            PLACES,
            NUMBERS,
            UNSEEN_PROPERTIES,
            RELATIONS.values(),
        )
    )
    yield from (
        *FACTS.values(),
        *CLAIMED_FACTS.values(),
        *SENTENCES.values(),
        *VERDICTS,
        *PLAIN,
        *NUMBERED,
        *CHOOSING,
        *TELLING,
    )
    for group in (*QUESTIONS.values(), *CLAIMS.values()):
        yield from group
    yield from (*CAPTION_REQUESTS, *FORMATS.values())
    for family in FAMILIES.values():
        yield from (*family.wordings, family.sentence)


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Map words to ids: special tokens, roles, then words in the order of their first occurrence."""
    words = [*SPECIAL, *ROLES]
    for sentence in _sentences():
        words += split_words(_SLOT.sub(" ", sentence))
    return {word: index for index, word in enumerate(dict.fromkeys(words))}


@lru_cache(maxsize=200_000)
def encode(text: str) -> tuple[int, ...]:
    """Return the ids of a text without special tokens; every word must be known."""
    known = vocabulary()
    return tuple(known[word] for word in split_words(text))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the published tokenizer; it accepts any text and reads numerals as number words."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token="<unk>"))
    numerals = [normalizers.Replace(Regex(rf"(?<![0-9]){n}(?![0-9])"), word) for n, word in enumerate(NUMBERS)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *numerals])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    # Join words by spaces, and attach punctuation to the word before it.
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(role, special=False, normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
