"""An adapted tiny model beside the oracle's reading of the same adapter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from tiny_models import fill_adapter, prompts_of
from torch import Tensor, nn
from torch.func import functional_call

from m2pt_cli.method import M2PTConfig

from . import reference


@dataclass
class Case:
    """A PEFT model with a trained-looking adapter, and its bare base."""

    model: PeftModel
    base: Any

    @property
    def config(self) -> Any:
        return self.model.peft_config[self.model.active_adapter]

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def reference_logits(self, batch: dict[str, Tensor]) -> Tensor:
        adapter = self.model.active_adapter
        prompts = []
        for is_tower, sizes in ((True, self.base.config.vision_config), (False, self.base.config.text_config)):
            own = prompts_of(self.model, is_tower, adapter)
            prompts.append(own or [torch.zeros(0, sizes.hidden_size)] * sizes.num_hidden_layers)
        return reference.logits(
            self.base,
            batch,
            *prompts,
            self._project,
            official=self.config.visual_tokens == "official" and self.config.num_visual_prompts > 0,
            head=self._head,
        )

    def _project(self, features: Tensor) -> Tensor:
        projector = self.base.model.multi_modal_projector
        own = self._whole("multi_modal_projector", features.dtype)
        out = functional_call(projector, own, (features,)) if own else projector(features)
        beside = self._values("m2pt_interaction", features.dtype)
        return out + nn.functional.linear(features, beside["weight"], beside["bias"]) if beside else out

    def _head(self, hidden: Tensor) -> Tensor:
        own = self._whole("lm_head", hidden.dtype)
        return functional_call(self.base.lm_head, own, (hidden,)) if own else self.base.lm_head(hidden)

    def _whole(self, module: str, dtype: torch.dtype) -> dict[str, Tensor]:
        return self._values(f"{module}.modules_to_save", dtype)

    def _values(self, place: str, dtype: torch.dtype) -> dict[str, Tensor]:
        start = f"{place}.{self.model.active_adapter}."
        return {name.rpartition(start)[2]: p.to(dtype) for name, p in self.model.named_parameters() if start in name}


def make_case(base: Any, adapter: str = "default", **options: Any) -> Case:
    """``base`` with an adapter that was, as it were, trained; ``options`` go to `M2PTConfig`."""
    bare = copy.deepcopy(base)
    model = get_peft_model(base, M2PTConfig(**options), adapter_name=adapter)
    fill_adapter(model)
    return Case(model.eval(), bare)


def gradients(parameters: dict[str, nn.Parameter], loss: Tensor) -> dict[str, Tensor]:
    """d(loss)/d(parameter) by name, zeros where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(parameters.items(), found, strict=True)
    }
