"""Convert one row of a data set to a sample: LLaVA's ``conversations``, or the ``messages`` of chat APIs and TRL.

LLaVA: ``{"id", "image": "a.jpg" | ["a.jpg", …], "conversations": [{"from": "human" | "gpt", "value"}], "task_name"}``.
Messages: ``{"messages": [{"role": "user" | "assistant", "content"}], "images": […]}``, where the content is a string or
a list of ``{"type": "text", "text"}`` and ``{"type": "image"}``. A row without images is a text-only conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from m2pt_cli.data.sample import IMAGE_MARK, ImageReference, Sample, Turn, holds_no_character
from m2pt_cli.data.validation import InvalidRow

COLUMNS = ("conversations", "messages")
_ROLES: dict[str, Literal["user", "assistant", "system"]] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip


def sample_of(row: Any, number: int, find: Callable[[Any], ImageReference]) -> Sample:
    """Convert one row to a sample.

    Args:
        row: a JSON object or a row of a data set.
        number: the position of the row; the sample's id if the row has no ``id``.
        find: returns the reference to an image, given the row's value for it.

    Raises:
        InvalidRow: the row is invalid; the message says why.
    """
    if not isinstance(row, Mapping):
        raise InvalidRow(f"a {_json_type(row)} instead of an object")
    column = column_of(row)
    if column is None:
        raise InvalidRow(f"neither {' nor '.join(COLUMNS)} in it, but {', '.join(map(str, row)) or 'nothing'}")
    messages = _list_of_messages(row[column], column)
    inline: list[Any] = []
    turns = [_turn(message, place, inline) for place, message in enumerate(messages, start=1)]
    turns = _check_order(_merge_system_message(turns))
    named = _image_column(row)
    if inline and named:
        raise InvalidRow("images both in the messages and beside them")
    images = tuple(find(value) for value in inline or named)
    turns = _check_image_marks(turns, len(images), place_unmarked=column == "messages")
    task = row.get("task_name") or row.get("task")
    sample_id = row.get("id")
    return Sample(
        id=str(number if sample_id is None else sample_id),
        images=images,
        turns=tuple(Turn(role, text) for role, text in turns if role != "system"),
        task=None if task is None else str(task),
    )


def column_of(row: Mapping[str, Any]) -> str | None:
    """The name of the column that contains the conversation, or None."""
    return next((name for name in COLUMNS if row.get(name) is not None), None)


def image_names(row: Any) -> list[str]:
    """The paths and URLs in a row's image columns: the files to unpack for it. Malformed values are ignored."""
    if not isinstance(row, Mapping):
        return []
    value = row.get("image") or row.get("images") or []
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


_RoleAndText = tuple[Literal["user", "assistant", "system"], str]


def _list_of_messages(value: Any, column: str) -> Sequence[Any]:
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        # The datasets library may return a list of structs as a struct of lists.
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidRow(f"{column} is a {_json_type(value)} instead of a list")
    if not value:
        raise InvalidRow(f"{column} is empty")
    return value


def _turn(message: Any, place: int, inline: list[Any]) -> _RoleAndText:
    if not isinstance(message, Mapping):
        raise InvalidRow(f"turn {place} is a {_json_type(message)} instead of an object")
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
    return _ROLES[role], content.strip()


def _part_text(part: Any, place: int, inline: list[Any]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url"):
        image = next((part[key] for key in ("image", "image_url", "path", "url", "bytes") if part.get(key)), None)
        if image is not None:
            inline.append(image)
        return f"{IMAGE_MARK}\n"
    raise InvalidRow(f"turn {place} holds a part of type {kind!r} instead of text or image")


def _image_column(row: Mapping[str, Any]) -> list[Any]:
    values = [row[name] for name in ("image", "images") if row.get(name) is not None and row.get(name) != []]
    values = [value for value in values if not (isinstance(value, str) and not value)]
    if len(values) > 1:
        raise InvalidRow("both image and images in it")
    if not values:
        return []
    return list(values[0]) if isinstance(values[0], (list, tuple)) else [values[0]]


def _merge_system_message(turns: list[_RoleAndText]) -> list[_RoleAndText]:
    """Prepend a leading system message to the first question: the chat templates have system prompts of their own."""
    if len(turns) < 2 or turns[0][0] != "system" or turns[1][0] != "user":
        return turns
    return [("user", f"{turns[0][1]}\n{turns[1][1]}".strip()), *turns[2:]]


def _check_order(turns: list[_RoleAndText]) -> list[_RoleAndText]:
    for place, (role, text) in enumerate(turns, start=1):
        expected = "user" if place % 2 else "assistant"
        if role != expected:
            raise InvalidRow(f"turn {place} is the {role}'s where the {expected}'s was expected")
        if not text:
            raise InvalidRow(f"turn {place} is empty: {'a question' if role == 'user' else 'an answer'} was expected")
    if len(turns) % 2:
        raise InvalidRow("the last question has no answer")
    return turns


def _check_image_marks(turns: list[_RoleAndText], num_images: int, *, place_unmarked: bool) -> list[_RoleAndText]:
    if any(IMAGE_MARK in text for role, text in turns if role == "assistant"):
        raise InvalidRow(f"{IMAGE_MARK} in an answer")
    marks = sum(text.count(IMAGE_MARK) for _, text in turns)
    if place_unmarked and not marks:  # as TRL does: images beside plain messages belong to the first question
        role, text = turns[0]
        return [(role, f"{IMAGE_MARK}\n" * num_images + text), *turns[1:]]
    if marks != num_images:
        raise InvalidRow(f"{marks} {IMAGE_MARK} marks for {num_images} images")
    return turns


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
