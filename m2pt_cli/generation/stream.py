"""Stream the text of an answer while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer


class TextStreamer(BaseStreamer):
    """Calls ``write`` with new text of an answer once later tokens can't change it."""

    def __init__(self, processor: Any, write: Callable[[str], None]) -> None:
        self.tokenizer = processor.tokenizer
        self.write = write
        self.tokens: list[int] | None = None
        self.written = 0

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:  # the first call passes the prompt
            self.tokens = []
            return
        self.tokens += value.flatten().tolist()
        text = self._text()
        # The last word may be incomplete, and an incomplete character decodes to U+FFFD: wait for the next space.
        stable = len(text) if text.endswith((" ", "\n")) else max(text.rfind(" "), text.rfind("\n")) + 1
        self._write_up_to(text, stable)

    def end(self) -> None:
        text = self._text().rstrip()
        self._write_up_to(text, len(text))

    def _text(self) -> str:
        return self.tokenizer.decode(self.tokens or [], skip_special_tokens=True).lstrip()

    def _write_up_to(self, text: str, end: int) -> None:
        if end > self.written:
            self.write(text[self.written : end])
            self.written = end
