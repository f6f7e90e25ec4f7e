"""Convert Vicuna's ``tokenizer.model``, a SentencePiece BPE, to a fast tokenizer with an ``<image>`` token.

The file is parsed here, without the sentencepiece library: a BPE needs only a few of its fields.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
# The byte NUL does not occur in text: <image> takes its vocabulary entry, so embedding and lm_head keep their size.
_FREE_PIECE = "<0x00>"
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # SentencePiece's types of pieces
_BPE = 2


@dataclass(frozen=True)
class Piece:
    """An entry of the vocabulary. Its index is its id; merges into pieces of higher score have priority."""

    text: str
    score: float = 0.0
    kind: int = _NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """The content of a ``tokenizer.model``.

    Attributes:
        pieces: the vocabulary, in the order of ids.
        adds_space: whether the tokenizer prepends a space to every text.
    """

    pieces: tuple[Piece, ...]
    adds_space: bool


def read_model(file: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model`` (the fields of sentencepiece_model.proto that a byte-fallback BPE needs).

    Raises:
        OSError: the file can't be read.
        ValueError: the file is damaged, or has another type of tokenizer than LLaMA's; the message says which.
    """
    pieces: list[Piece] = []
    adds_space, squeezes_spaces, charsmap, model_type = True, True, b"", 1
    try:
        for number, value in _fields(file.read_bytes()):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                model_type = next((item for field, item in _fields(value) if field == 3), model_type)
            elif number == 3:
                for field, item in _fields(value):
                    charsmap = item if field == 2 else charsmap
                    adds_space = bool(item) if field == 3 else adds_space
                    squeezes_spaces = bool(item) if field == 4 else squeezes_spaces
    except (IndexError, TypeError, struct.error, UnicodeDecodeError):
        raise ValueError("it is not a SentencePiece model, or it is damaged") from None
    if not pieces or len({piece.text for piece in pieces}) != len(pieces):
        raise ValueError("it is not a SentencePiece model, or it is damaged")
    if model_type != _BPE or charsmap or squeezes_spaces:
        raise ValueError("it is not a BPE that keeps texts as they are, as LLaMA's is")
    return SentencePieceModel(tuple(pieces), adds_space)


def image_tokenizer(model: SentencePieceModel, *, max_length: int = 2048) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer with ``<image>`` as one token; other ids are the same as SentencePiece's.

    If the vocabulary has no ``<image>``, it replaces the byte NUL, and a NUL in a text becomes ``<unk>``. The padding
    token is ``<unk>``, as in the authors' code.

    Raises:
        ValueError: the vocabulary has neither ``<image>`` nor a NUL, or lacks ``<s>``, ``</s>`` or ``<unk>``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = _with_image(model.pieces)
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    lacking = [text for text in ("<unk>", "<s>", "</s>") if text not in ids]
    if lacking:
        raise ValueError(f"its vocabulary lacks {', '.join(lacking)}")
    tokenizer: Any = Tokenizer(
        models.BPE(ids, _merges(pieces, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    # Each segment of text between special tokens gets a space in front, as in the authors' code.
    start = [normalizers.Prepend("▁")] if model.adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*start, normalizers.Replace(" ", "▁")])
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)] if start else plain)
    specials = [piece.text for piece in pieces if piece.kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in specials])
    begin = [("<s>", ids["<s>"])]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", begin)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def _with_image(pieces: tuple[Piece, ...]) -> list[Piece]:
    wanted = next((text for text in (IMAGE_TOKEN, _FREE_PIECE) if any(p.text == text for p in pieces)), None)
    if wanted is None:
        raise ValueError(f"its vocabulary has no {_FREE_PIECE}, whose place {IMAGE_TOKEN} takes")
    return [replace(p, text=IMAGE_TOKEN, kind=_CONTROL) if p.text == wanted else p for p in pieces]


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """All merges of two normal pieces into a third, best score first; only normal pieces occur in text."""
    normal = {piece.text for piece in pieces if piece.kind == _NORMAL}
    found = []
    for piece in pieces:
        if piece.kind != _NORMAL:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in normal and right in normal:
                found.append((-piece.score, ids[piece.text], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _piece(message: bytes) -> Piece:
    text, score, kind = "", 0.0, _NORMAL
    for field, item in _fields(message):
        if field == 1:
            text = item.decode("utf-8")
        elif field == 2:
            score = struct.unpack("<f", item)[0]
        elif field == 3:
            kind = item
    return Piece(text, score, kind)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield ``(field number, value)`` of a protocol buffer message; the value is an int (varint) or bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(message, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise IndexError(wire)
        if position + length > len(message):
            raise IndexError(length)
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, position
        if shift > 63:
            raise IndexError(position)
