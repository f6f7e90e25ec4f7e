"""An alternative to the engine's shared prefix: repeat an image's cache for every question, one row each.

`answering` measures it against `m2pt_cli.generation.prefix_sharing`. It is kept so that the choice between the two can
be measured again on another device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import DynamicCache

from m2pt_cli.generation.prefix_sharing import plan_groups
from m2pt_cli.method.calls import cache_argument


@torch.inference_mode()
def answer_repeated(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    image_inputs: Mapping[str, torch.Tensor],
    *,
    image_token_id: int,
    new_tokens: int,
    pad_id: int,
) -> list[list[int]]:
    """Return ``new_tokens`` greedy ids for each of several questions about one image."""
    (row,) = plan_groups(prompts, [0] * len(prompts), image_token_id=image_token_id)
    device = next(model.parameters()).device
    prefix = torch.tensor([row.prefix], device=device)
    cache = DynamicCache(config=model.config.get_text_config())
    out = model(
        input_ids=prefix, attention_mask=torch.ones_like(prefix), use_cache=True, logits_to_keep=1,
        **{cache_argument(model): cache}, **image_inputs,
    )  # fmt: skip
    if row.is_single:
        first = out.logits[:, -1].argmax(-1)
        mask = torch.ones_like(prefix)
    else:
        count = len(row.tails)
        cache.batch_repeat_interleave(count)
        width = max(len(tail) for tail in row.tails)
        # Pad between the prefix and a shorter tail, so that the last token of every row is in the last column.
        ids = torch.tensor([[pad_id] * (width - len(tail)) + list(tail) for tail in row.tails], device=device)
        behind = torch.tensor([[0] * (width - len(tail)) + [1] * len(tail) for tail in row.tails], device=device)
        mask = torch.cat([torch.ones_like(prefix).expand(count, -1), behind], 1)
        first = _forward(model, ids, mask, cache)
    answers = [first]
    while len(answers) < new_tokens:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        answers.append(_forward(model, answers[-1][:, None], mask, cache))
    return torch.stack(answers, 1).tolist()


def _forward(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: object) -> torch.Tensor:
    positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp(min=0)
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1,
        **{cache_argument(model): cache},
    )  # fmt: skip
    return out.logits[:, -1].argmax(-1)
