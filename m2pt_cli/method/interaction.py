"""The interaction layer between vision tower and language model (paper, section 3.4), and modules trained in full."""

from __future__ import annotations

from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional

from m2pt_cli.method.architecture import Architecture
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.prompts import M2PTLayer


class MasterLinear(nn.Linear):
    """A linear layer with fp32 parameters for the optimiser, cast to the input's dtype in `forward`."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return functional.linear(input, self.weight.to(input.dtype), bias)


class ResidualInteraction(M2PTLayer):
    """A frozen projector plus a trained linear layer f: ``projector(x) + f(x)``, f initialised to zero.

    With interaction ``residual`` f reads what the projector's first linear layer reads; with ``mean`` the mean of the
    patches that become one token.

    Args:
        base_layer: the projector; its input is ``(images, tokens, merged * d_v)``.
        architecture: gives the widths.
    """

    adapter_layer_names = ("m2pt_interaction",)

    def __init__(self, base_layer: nn.Module, architecture: Architecture) -> None:
        super().__init__(base_layer)
        self.m2pt_interaction = nn.ModuleDict()
        self._merged, self._norm = architecture.merged, architecture.family.projector_norm
        self._widths = (architecture.feature_width, architecture.text_width)

    def add_layer(self, adapter_name: str, config: M2PTConfig) -> None:
        """Add an adapter, with a zero-initialised linear layer if its interaction is residual."""
        self.add(adapter_name, config)
        if config.interaction in ("residual", "mean"):
            width, out = self._widths
            if config.interaction == "mean":
                width //= self._merged
            layer = MasterLinear(width, out, device=next(self.base_layer.parameters()).device)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.m2pt_interaction[adapter_name] = layer.float()

    def forward(self, features: Tensor) -> Tensor:
        projected = self.base_layer(features)  # (images, tokens, d_t)
        name = self.active_name
        if name is None or name not in self.m2pt_interaction:
            return projected
        if self.m2pt_adapters[name].interaction == "mean":
            features = features.unflatten(-1, (self._merged, -1)).mean(-2)
        elif self._norm is not None:
            features = getattr(self.base_layer, self._norm)(features)
        return projected + self.m2pt_interaction[name](features).to(projected.dtype)


def train_in_fp32(model: nn.Module, adapter_name: str) -> None:
    """Convert the linear layers of modules that an M²PT or LoRA adapter trains in full to `MasterLinear`.

    Raises:
        MethodError: such a module is quantised.
    """
    for path, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper) or adapter_name not in wrapper.modules_to_save:
            continue
        for module in wrapper.modules_to_save[adapter_name].modules():
            if not isinstance(module, nn.Linear):
                continue
            if not module.weight.is_floating_point() or type(module) not in (nn.Linear, MasterLinear):
                raise MethodError(
                    f"{path} is quantised ({type(module).__name__}) and can't be trained",
                    "load the base with this module left out of the quantisation, or choose another interaction",
                )
            module.float()
            module.__class__ = MasterLinear


def restore_originals(model: Any) -> None:
    """Replace the copies of modules that adapters trained by the base's own modules."""
    for path, wrapper in list(model.named_modules()):
        if isinstance(wrapper, ModulesToSaveWrapper):
            model.set_submodule(path, wrapper.original_module)
