"""A plain language model that answers questions without images: the paper's judge is one (Vicuna-13B-v1.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from m2pt_cli.answering.engine import AnswerEngine, Decoding, Question, Reply
from m2pt_cli.bases.device import choose_device, choose_dtype
from m2pt_cli.bases.loading import load_base
from m2pt_cli.bases.processor import quiet_transformers
from m2pt_cli.data.chat import get_template
from m2pt_cli.data.samples import Turn
from m2pt_cli.errors import UnavailableError
from m2pt_cli.evaluation.judge import is_llava

_BATCH = 16


class TextEngine:
    """Greedy answers of a causal language model.

    Args:
        name: a folder or a Hub id; its chat template is used, or ``vicuna_v1`` where it has none.
        device, dtype: as for a base.

    Raises:
        UnavailableError: it can't be had.
    """

    def __init__(self, name: str, *, device: str | None = None, dtype: str = "auto") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = choose_device(device)
        try:
            with quiet_transformers():
                tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, padding_side="left")
                model: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=choose_dtype(dtype, place), device_map={"": place}, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the judge {name} can't be had: {str(error).splitlines()[0]}",
                f"hf download {name} on a machine with a network, or name a folder",
            ) from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer, self._model, self._device = tokenizer, model.eval(), place

    def answer(
        self, questions: Iterable[Question], *, known: Callable[[Question], bool] | None = None
    ) -> Iterator[Reply]:
        """Replies in order; batches are made of all questions, and those of known ones alone are not run."""
        asked = list(questions)
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            fresh = [question for question in batch if known is None or not known(question)]
            if fresh:
                answers = dict(zip((question.id for question in batch), self._generate(batch), strict=True))
                yield from (Reply(question, answers[question.id]) for question in fresh)

    @torch.inference_mode()
    def _generate(self, batch: list[Question]) -> list[str]:
        texts = [self._render(question.text) for question in batch]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self._device)
        out = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max(question.max_new_tokens or 8 for question in batch),
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        # The prompt is cut off: it holds words that a verdict is read from.
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _render(self, text: str) -> str:
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            rendered: str = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return rendered
        bos = self._tokenizer.bos_token or ""
        return bos + get_template("vicuna_v1").render([Turn("user", text)], eos="").text


def open_judge(
    name: str, *, device: str | None, dtype: str, report: Callable[[str], None]
) -> AnswerEngine | TextEngine:
    """The judge's engine: a LLaVA base answers without an image, anything else is a plain language model.

    Raises:
        UnavailableError, DeviceError: it can't be had, or there is no such device.
    """
    if not is_llava(name):
        return TextEngine(name, device=device, dtype=dtype)
    loaded = load_base(name, device=device, dtype=dtype, report=report)
    defaults = loaded.entry.defaults
    return AnswerEngine(loaded, template=defaults.template, image_fit=defaults.image_fit, decoding=Decoding())
