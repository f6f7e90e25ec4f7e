"""M²PT as the authors run it: prompts are tokens of the sequence, overwritten at the input of every layer.

A slower baseline for `m2pt_cli.method`, which adds no tokens outside the attention. The same prompts and interaction
layer give the same loss (tests/benchmarks). The baseline is optimised where possible: no mask, so that the flash kernel
is used, and logits at supervised positions only. As in the authors' code, prompts pass through every norm, projection
and MLP, and the last vision layer is run.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class ConcatenatedPrompts(nn.Module):
    """A frozen LLaVA with ``visual`` and ``textual`` prompts; rows without padding, one image each."""

    def __init__(self, base: Any, *, visual: int, textual: int) -> None:
        super().__init__()
        vision, text = base.config.vision_config, base.config.text_config
        device = base.device
        self.base = base
        self.config = base.config
        self.visual = _prompts(vision.num_hidden_layers, visual, vision.hidden_size, device)
        self.textual = _prompts(text.num_hidden_layers, textual, text.hidden_size, device)
        # What M²PT trains between the two: the projector where it is linear, else a linear layer beside it.
        self.beside = nn.Linear(vision.hidden_size, text.hidden_size, device=device)
        with torch.no_grad():
            if isinstance(base.model.multi_modal_projector, nn.Linear):
                for name, parameter in self.beside.named_parameters():
                    parameter.copy_(getattr(base.model.multi_modal_projector, name))
            else:
                self.beside.weight.zero_()
                self.beside.bias.zero_()

    def get_output_embeddings(self) -> nn.Module:
        return self.base.lm_head

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False
    ) -> SimpleNamespace:
        """``logits`` of the tokens without the prompts; `supervised_loss` cuts them further."""
        decoder = self.base.model.language_model
        features = self._project(self._features(pixel_values))
        hidden = decoder.embed_tokens(input_ids)
        at = (input_ids == self.base.config.image_token_id)[..., None].expand_as(hidden)
        hidden = hidden.masked_scatter(at, features.to(hidden.dtype))
        count = self.textual[0].shape[0]
        hidden = torch.cat([_rows(self.textual[0], hidden), hidden], 1)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = decoder.rotary_emb(hidden, position_ids=positions)
        for layer, prompts in zip(decoder.layers, self.textual, strict=True):
            hidden = torch.cat([_rows(prompts, hidden), hidden[:, count:]], 1)
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=positions)
        return SimpleNamespace(logits=self.base.lm_head(decoder.norm(hidden)[:, count:]))

    def _features(self, pixels: Tensor) -> Tensor:
        """``(images, patches, d_v)``: the input of the last vision layer."""
        tower = self.base.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
        count = self.visual[0].shape[0]
        hidden = torch.cat([_rows(self.visual[0], hidden), hidden], 1)
        features = hidden
        for layer, prompts in zip(tower.encoder.layers, self.visual, strict=True):
            features = hidden = torch.cat([_rows(prompts, hidden), hidden[:, count:]], 1)
            hidden = layer(hidden, None)
        return features[:, count + 1 :]

    def _project(self, features: Tensor) -> Tensor:
        beside = nn.functional.linear(
            features, self.beside.weight.to(features.dtype), self.beside.bias.to(features.dtype)
        )
        projector = self.base.model.multi_modal_projector
        return beside if isinstance(projector, nn.Linear) else projector(features) + beside


def _prompts(layers: int, count: int, width: int, device: torch.device) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, count, width, device=device, dtype=torch.float32))[0])
        for _ in range(layers)
    )


def _rows(prompts: Tensor, hidden: Tensor) -> Tensor:
    return prompts.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
