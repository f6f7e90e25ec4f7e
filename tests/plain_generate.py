"""What the answer engine must equal: plain ``generate``, one question at a time."""

from __future__ import annotations

import torch

from m2pt_cli.answering.engine import AnswerEngine, Question
from m2pt_cli.data.encode import encode_prompt


def plain_answer(engine: AnswerEngine, question: Question) -> str:
    """One question through the processor's own path and ``generate``."""
    loaded = engine.loaded
    inputs = engine.inputs(question)
    ids = torch.tensor(
        [
            encode_prompt(
                question.text,
                len(question.images),
                engine.template,
                loaded.processor.tokenizer,
                image_token_id=loaded.model.config.image_token_id,
                image_tokens=engine.images.token_counts(question.images),
            )
        ]
    )
    with torch.inference_mode():
        out = loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=question.max_new_tokens or engine.decoding.max_new_tokens,
            do_sample=False,
            **inputs,
        )
    return loaded.processor.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
