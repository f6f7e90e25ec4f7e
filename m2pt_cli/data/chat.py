"""Conversations as text: the chat templates, and which characters the assistant has to produce.

The wording is LLaVA's (``conversation.py``, separator style TWO). `m2pt_cli.data.tokenize` turns the text into ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from m2pt_cli.data.sample import IMAGE_MARK, Turn
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import TEMPLATES, closest

# LLaVA's own sentences. vicuna_v1 is what LLaVA-1.5 and the official M2PT were tuned with.
_SYSTEMS = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    "llava_v1": (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    ),
    "plain": "",
}


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; ``spans`` are the character ranges that are trained on."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate(Protocol):
    """How a conversation is written down for a model."""

    @property
    def name(self) -> str:
        """One of ``settings.TEMPLATES``."""

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """The text of ``turns``; where the last is the user's, it ends with the cue for an answer."""


@dataclass(frozen=True)
class FixedTemplate:
    """``{system}USER: {question} ASSISTANT: {answer}{eos}USER: …``"""

    name: str
    system: str

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """The text of ``turns``, ending with ``ASSISTANT:`` where the last is the user's."""
        text, spans = self.system, []
        for turn in turns:
            if turn.role == "user":
                text += f"USER: {image_first(turn.text)} ASSISTANT:"
            else:
                # The space is the assistant's: a prompt ends with the colon, and the model produces all that follows.
                start = len(text)
                text += f" {turn.text}{eos}"
                if turn.supervised:
                    spans.append((start, len(text)))
        return Rendered(text, tuple(spans))


@dataclass(frozen=True)
class ProcessorTemplate:
    """The chat template that a base brings along: Jinja, rendered by transformers in its sandbox."""

    processor: Any
    name: str = "base"

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """The text of ``turns``; an answer that the template leaves without an end gets ``eos``.

        Raises:
            SettingsError: the template rewrites earlier turns, so that the place of an answer can't be told.
        """
        messages = [{"role": turn.role, "content": _parts(turn.text)} for turn in turns]
        whole = self._apply(messages, cue=turns[-1].role == "user")
        text, spans, done = "", [], 0
        for index, turn in enumerate(turns):
            if turn.role == "user":
                continue
            before = self._apply(messages[:index], cue=True)
            after = self._apply(messages[: index + 1], cue=False).rstrip()
            if not (after.startswith(before) and whole.startswith(after)):
                raise SettingsError(
                    "the chat template of this base rewrites earlier turns: its answers can't be told apart",
                    "use --template vicuna_v1",
                )
            text += whole[done : len(before)]
            answer = after[len(before) :]
            if answer.endswith(turn.text.strip()):  # nothing follows the words: the model would never learn to stop
                answer += eos
            if turn.supervised:
                spans.append((len(text), len(text) + len(answer)))
            text += answer
            done = len(after)
        rest = whole[done:]
        return Rendered(text + (rest if turns[-1].role == "user" else ""), tuple(spans))

    def _apply(self, messages: list[dict[str, Any]], *, cue: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=cue)


def get_template(name: str, processor: Any = None) -> ChatTemplate:
    """The chat template called ``name``.

    Args:
        name: ``vicuna_v1``, ``llava_v1``, ``plain`` (no system sentence) or ``base`` (the processor's own).
        processor: needed for ``base``.

    Raises:
        SettingsError: no such template, or the base has none of its own.
    """
    if name in _SYSTEMS:
        return FixedTemplate(name, _SYSTEMS[name])
    if name != "base":
        raise SettingsError(f"--template {name!r} is not one of {', '.join(TEMPLATES)}{closest(name, TEMPLATES)}")
    if processor is None or processor.chat_template is None:
        raise SettingsError("this base has no chat template of its own", "use --template vicuna_v1")
    return ProcessorTemplate(processor)


def image_first(text: str) -> str:
    """``text`` with its only image mark on a line in front, as LLaVA's preprocessing puts it; several marks stay."""
    if text.count(IMAGE_MARK) != 1 or text.startswith(f"{IMAGE_MARK}\n"):
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".rstrip()


def question_turn(question: str, num_images: int) -> Turn:
    """A user's turn of ``num_images`` images and a question, the marks in front unless the question holds them.

    Raises:
        InputError: the question holds marks, but not as many as there are images.
    """
    marks = question.count(IMAGE_MARK)
    if marks == num_images:
        return Turn("user", question)
    if marks:
        raise InputError(f"the question holds {marks} {IMAGE_MARK} marks for {num_images} images")
    return Turn("user", f"{IMAGE_MARK}\n" * num_images + question)


def _parts(text: str) -> list[dict[str, str]]:
    """Message content as transformers' templates take it: texts and images in their order."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(image_first(text).split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if piece := piece.strip("\n"):
            parts.append({"type": "text", "text": piece})
    return parts
