"""Convert a row of a data set to a sample: LLaVA's ``conversations`` or the ``messages`` of chat APIs and TRL.

LLaVA: ``{"id", "image": "a.jpg" | ["a.jpg", …], "conversations": [{"from": "human" | "gpt", "value"}], "task_name"}``.
Messages: ``{"messages": [{"role": "user" | "assistant", "content"}], "images": […]}``, the content a text or a list of
``{"type": "text", "text"}`` and ``{"type": "image"}``. A row without images is a text-only conversation.

An answer with ``"loss": false`` (ms-swift), ``"train": false`` or ``"weight": 0`` (axolotl, OpenAI) is not trained on.
Videos, audio and images under other keys raise an error that names the key; otherwise they would be dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from m2pt_cli.data.media import unsupported_marks, unsupported_media
from m2pt_cli.data.sample import IMAGE_MARK, ImageReference, Sample, Turn, holds_no_character
from m2pt_cli.data.validation import InvalidRow

COLUMNS = ("conversations", "messages")
# Keys of a message that decide whether an answer is trained on.
_LOSS_KEYS = ("loss", "train", "training", "weight")
_ROLES: dict[str, Literal["user", "assistant", "system"]] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip


def sample_of(row: Any, number: int, find: Callable[[Any], ImageReference]) -> Sample:
    """Convert one row to a sample.

    Args:
        row: a JSON object or a data set's row.
        number: the row's number, used as its id if it has none.
        find: converts an image field (such as a path) to a reference.

    Raises:
        InvalidRow: the row can't be used; the message gives the reason.
    """
    if not isinstance(row, Mapping):
        raise InvalidRow(f"a {_json_type(row)} instead of an object")
    column = column_of(row)
    if column is None:
        raise InvalidRow(f"neither {' nor '.join(COLUMNS)} in it, but {', '.join(map(str, row)) or 'nothing'}")
    messages = _list_of_messages(row[column], column)
    named = _named_images(row)
    inline: list[Any] = []
    turns = [_turn(message, place, inline) for place, message in enumerate(messages, start=1)]
    if (found := unsupported_media(row, has_image=bool(named or inline))) is not None:
        raise InvalidRow(found)
    turns = _checked_order(_system_folded(turns))
    if inline and named:
        raise InvalidRow("images both in the messages and beside them")
    if (found := unsupported_marks(turn.text for turn in turns if turn.role == "user")) is not None:
        raise InvalidRow(found)
    images = tuple(find(value) for value in inline or named)
    turns = _checked_marks(turns, len(images), place_unmarked=column == "messages")
    if not any(turn.supervised for turn in turns if turn.role == "assistant"):
        raise InvalidRow("no answer in it is trained: each is marked as not supervised")
    task = row.get("task_name") or row.get("task")
    sample_id = row.get("id")
    return Sample(
        id=str(number if sample_id is None else sample_id),
        images=images,
        turns=tuple(Turn(turn.role, turn.text, turn.supervised) for turn in turns if turn.role != "system"),
        task=None if task is None else str(task),
    )


def column_of(row: Mapping[str, Any]) -> str | None:
    """Return the column that holds the conversation, or None."""
    return next((name for name in COLUMNS if row.get(name) is not None), None)


def image_names(row: Any) -> list[str]:
    """Return the image paths in a row, for unpacking them; malformed fields are ignored."""
    if not isinstance(row, Mapping):
        return []
    value = row.get("image") or row.get("images") or []
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


class _Message(NamedTuple):
    role: Literal["user", "assistant", "system"]
    text: str
    supervised: bool = True


def _list_of_messages(value: Any, column: str) -> Sequence[Any]:
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        # A column of lists of structs may arrive as a struct of lists.
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidRow(f"{column} is a {_json_type(value)} instead of a list")
    if not value:
        raise InvalidRow(f"{column} is empty")
    return value


def _turn(message: Any, place: int, inline: list[Any]) -> _Message:
    if not isinstance(message, Mapping):
        raise InvalidRow(f"turn {place} is a {_json_type(message)} instead of an object")
    # Images of a message belong beside the conversation, so no key of a message counts as one.
    found = unsupported_media(message, has_image=False)
    if found is None and any(message.get(key) not in (None, "", []) for key in ("image", "images")):
        found = "an image beside its text: name it in the content, or beside the conversation"
    if found is not None:
        raise InvalidRow(f"turn {place} has {found}")
    role = message.get("from") if message.get("role") is None else message.get("role")
    content = message.get("value") if message.get("content") is None else message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRow(f"turn {place} has the role {role!r} instead of human/gpt or user/assistant")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part_text(part, place, inline) for part in content)
    if not isinstance(content, str):
        raise InvalidRow(f"turn {place} has {_json_type(content)} as its text")
    if holds_no_character(content):
        raise InvalidRow(f"turn {place} holds what is no character: {ascii(content)[:80]}")
    supervised = _supervised(message, place, _ROLES[role])
    return _Message(_ROLES[role], content.strip(), supervised)


def _supervised(message: Mapping[str, Any], place: int, role: str) -> bool:
    """Return whether a message is trained on: every answer is, unless one of its keys disables it."""
    said = {key: message[key] for key in _LOSS_KEYS if message.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise InvalidRow(f"turn {place} has {key!r}: {str(value)[:40]!r}, where true or false is supported")
        if value and role == "user" and key != "weight":
            raise InvalidRow(f"turn {place} is a question with {key!r}: only answers can be trained on")
    return role != "assistant" or all(said.values())


def _part_text(part: Any, place: int, inline: list[Any]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url"):
        held = next((part[key] for key in ("image", "image_url", "path", "url", "bytes") if part.get(key)), None)
        if held is not None:
            inline.append(held)
        return f"{IMAGE_MARK}\n"
    raise InvalidRow(f"turn {place} holds a part of type {kind!r} instead of text or image")


def _named_images(row: Mapping[str, Any]) -> list[Any]:
    held = [row[name] for name in ("image", "images") if row.get(name) is not None and row.get(name) != []]
    held = [value for value in held if not (isinstance(value, str) and not value)]
    if len(held) > 1:
        raise InvalidRow("both image and images in it")
    if not held:
        return []
    return list(held[0]) if isinstance(held[0], (list, tuple)) else [held[0]]


def _system_folded(turns: list[_Message]) -> list[_Message]:
    """Prepend a leading system message to the first question: the chat templates have system prompts of their own."""
    if len(turns) < 2 or turns[0].role != "system" or turns[1].role != "user":
        return turns
    return [_Message("user", f"{turns[0].text}\n{turns[1].text}".strip()), *turns[2:]]


def _checked_order(turns: list[_Message]) -> list[_Message]:
    for place, (role, text, _) in enumerate(turns, start=1):
        expected = "user" if place % 2 else "assistant"
        if role != expected:
            raise InvalidRow(f"turn {place} is the {role}'s where the {expected}'s was expected")
        if not text:
            raise InvalidRow(f"turn {place} is empty: {'a question' if role == 'user' else 'an answer'} was expected")
    if len(turns) % 2:
        raise InvalidRow("the last question has no answer")
    return turns


def _checked_marks(turns: list[_Message], num_images: int, *, place_unmarked: bool) -> list[_Message]:
    if any(IMAGE_MARK in turn.text for turn in turns if turn.role == "assistant"):
        raise InvalidRow(f"{IMAGE_MARK} in an answer")
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if place_unmarked and not marks:  # as TRL does: images beside text-only messages belong to the first question
        first = turns[0]
        return [first._replace(text=f"{IMAGE_MARK}\n" * num_images + first.text), *turns[1:]]
    if marks != num_images:
        raise InvalidRow(f"{marks} {IMAGE_MARK} marks for {num_images} images")
    return turns


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
