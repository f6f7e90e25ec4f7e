"""Attention maps made up for tests of what is drawn and written: every row sums to 1, the first token is a sink."""

from __future__ import annotations

from typing import Any

import numpy as np

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun, LanguageAttention, VisionAttention
from m2pt_cli.analysis.token_groups import language_tokens, uniform_causal, vision_tokens

GRID, LAYERS, IMAGE = 3, 4, 9


def made_run(
    adapter: str | None = "runs/a",
    *,
    textual: int = 3,
    visual: int = 2,
    official: bool = False,
    answer: int = 2,
    heads: tuple[int | None, ...] = (None,),
    vision_heads: tuple[int | None, ...] = (None,),
    seed: int = 0,
) -> AttentionRun:
    random = np.random.default_rng(seed)
    image = GRID**2 + (visual if official else 0)
    tokens = language_tokens(
        [1, 2, *[IMAGE] * image, 3, 4],
        [5 + number for number in range(answer)],
        lambda token: f"w{token}",
        num_prompts=textual,
        image_token_id=IMAGE,
        grid=GRID,
    )

    def rows(*shape: int) -> Any:
        weights = random.random((*shape, len(tokens))).astype(np.float32)
        weights[..., textual] += 30.0  # the sink
        return weights / weights.sum(-1, keepdims=True)

    by_head = rows(LAYERS, len(heads))
    language = LanguageAttention(
        tokens=tokens,
        received=by_head.mean(1),
        uniform=uniform_causal(textual, len(tokens) - textual),
        by_head=by_head,
        answer=rows(LAYERS, len(heads), answer),
        heads=heads,
        grid=GRID,
    )
    seen = vision_tokens(num_prompts=visual, has_class_token=True, grid=GRID)
    weights = random.random((2, LAYERS, len(vision_heads), len(seen))).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    uniform = np.full(len(seen), 1 / len(seen), np.float32)
    vision = VisionAttention(seen, weights[0].mean(1), uniform, weights[1].mean(1), weights[0], vision_heads)
    words = tuple(f"w{5 + number}" for number in range(answer))
    picture = random.integers(0, 255, (12, 12, 3)).astype(np.uint8)
    return AttentionRun(adapter, " ".join(words), words, picture, language, vision)


def made_maps(*runs: AttentionRun, **chosen: Any) -> AttentionMaps:
    options = {
        "layers": (), "heads": (), "tokens": (), "vision_layers": (LAYERS - 1,), "vision_heads": (), "output": None,
        "values": None,
    }  # fmt: skip
    question = chosen.pop("question", "what is it?")
    return AttentionMaps("a.png", question, "nano", runs or (made_run(),), **(options | chosen))
