"""Render conversations as text with a chat template, and mark the characters that the assistant produces.

The wording is LLaVA's (``conversation.py``, separator style TWO). `m2pt_cli.data.tokenize` turns the text into ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from m2pt_cli.data.sample import IMAGE_MARK, Turn
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import TEMPLATES, closest

# LLaVA's own system prompts. LLaVA-1.5 and the official M2PT were tuned with vicuna_v1.
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
    """A rendered conversation; ``spans`` are the character ranges that are trained on."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate(Protocol):
    """Renders a conversation as the text that a model expects."""

    @property
    def name(self) -> str:
        """One of ``settings.TEMPLATES``."""

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """Return the text of ``turns``; after a user's last turn it ends with the generation prompt."""


@dataclass(frozen=True)
class FixedTemplate:
    """``{system}USER: {question} ASSISTANT: {answer}{eos}USER: …``"""

    name: str
    system: str

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """Return the text of ``turns``, which ends with ``ASSISTANT:`` after a user's last turn."""
        text, spans = self.system, []
        for turn in turns:
            if turn.role == "user":
                text += f"USER: {image_first(turn.text)} ASSISTANT:"
            else:
                # The space belongs to the answer: a prompt ends with the colon, and the model produces the rest.
                start = len(text)
                text += f" {turn.text}{eos}"
                if turn.supervised:
                    spans.append((start, len(text)))
        return Rendered(text, tuple(spans))


@dataclass(frozen=True)
class ProcessorTemplate:
    """The chat template of the base's own processor: Jinja, rendered by transformers in its sandbox."""

    processor: Any
    name: str = "base"

    def render(self, turns: Sequence[Turn], *, eos: str) -> Rendered:
        """Return text and answer spans of ``turns``, ending with the generation prompt if the last turn is the user's.

        ``eos`` is appended to an answer that the template does not end.

        Raises:
            SettingsError: the template rewrites earlier turns, so that the position of an answer is unknown.
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
            if answer.endswith(turn.text.strip()):  # the template adds no end: the model would never learn to stop
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
    """Return the chat template called ``name``.

    Args:
        name: ``vicuna_v1``, ``llava_v1``, ``plain`` (no system sentence) or ``base`` (the processor's own).
        processor: needed for ``base``.

    Raises:
        SettingsError: there is no such template, or the base has none of its own.
    """
    if name in _SYSTEMS:
        return FixedTemplate(name, _SYSTEMS[name])
    if name != "base":
        raise SettingsError(f"--template {name!r} is not one of {', '.join(TEMPLATES)}{closest(name, TEMPLATES)}")
    if processor is None or processor.chat_template is None:
        raise SettingsError("this base has no chat template of its own", "use --template vicuna_v1")
    return ProcessorTemplate(processor)


def image_first(text: str) -> str:
    """Move the only ``<image>`` of a text to a first line, as LLaVA's preprocessing does; several are not moved."""
    if text.count(IMAGE_MARK) != 1 or text.startswith(f"{IMAGE_MARK}\n"):
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".rstrip()


def question_turn(question: str, num_images: int) -> Turn:
    """Return a user's turn of images and a question; ``<image>`` is put in front unless the question contains it.

    Raises:
        InputError: the question contains ``<image>``, but not once per image.
    """
    marks = question.count(IMAGE_MARK)
    if marks == num_images:
        return Turn("user", question)
    if marks:
        raise InputError(f"the question holds {marks} {IMAGE_MARK} marks for {num_images} images")
    return Turn("user", f"{IMAGE_MARK}\n" * num_images + question)


def _parts(text: str) -> list[dict[str, str]]:
    """Return message content as transformers' chat templates take it: texts and images in order."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(image_first(text).split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if piece := piece.strip("\n"):
            parts.append({"type": "text", "text": piece})
    return parts
