"""M²PT as a PEFT tuner: where the prompts go in a model, and PEFT's habits kept strict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from m2pt_cli.families.family import LLAVA
from m2pt_cli.method.architecture import attentions_of, check_official_tokens, model_family, read_architecture, resolve
from m2pt_cli.method.calls import check_alone, check_images, check_text, not_alone
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.interaction import ResidualInteraction, restore_originals, train_in_fp32
from m2pt_cli.method.parameters import adapter_of
from m2pt_cli.method.prompts import IdleMLP, M2PTLayer, PromptedAttention, PromptRotation, refuse_merge
from m2pt_cli.method.visual_tokens import add_visual_tokens


class M2PTModel(BaseTuner):
    """A vision-language model with M²PT adapters; made by `peft.get_peft_model` and `peft.PeftModel.from_pretrained`.

    A model can hold several adapters of different lengths, one of them active. Prompts and interaction layer are fp32
    whatever the base's dtype. Loading through PEFT is strict: missing, unexpected and misshapen keys are errors.
    transformers' own ``model.load_adapter`` also works; it reports missing and unexpected keys instead of raising.

    Raises:
        MethodError: an untested base, ``train_lm_head`` with a tied output head, another PEFT method in the same
            model, or ``visual_tokens="official"`` on a base that it does not apply to.
    """

    prefix = "m2pt_"
    tuner_layer_cls = M2PTLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT declares it so

    # ---- adding an adapter ----

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        self.peft_config[adapter_name] = self._resolved(model, self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        train_in_fp32(model, adapter_name)
        for hooks, register, hook in _hooks(model):
            if hook not in hooks.values():
                register(hook)

    def _resolved(self, model: Any, config: Any) -> M2PTConfig:
        """Check the config against the model and return a copy with ``auto`` resolved."""
        architecture = read_architecture(model)
        others = {
            type(module).__name__
            for module in model.modules()
            if isinstance(module, BaseTunerLayer) and not isinstance(module, M2PTLayer)
        }
        if others:
            raise not_alone(others)
        check_official_tokens(config, architecture)
        if config.train_lm_head and model.lm_head.weight is model.get_input_embeddings().weight:
            raise MethodError(
                "train_lm_head=True needs an output head of its own, but this base shares it with the embeddings",
                "leave train_lm_head at False",
            )
        config = copy.copy(config)
        config.use_family(architecture.family)
        config.interaction = resolve(config, architecture, model)
        if config.interaction == "mean" and architecture.merged == 1:
            raise MethodError(
                f"interaction='mean' needs a base that merges patches, and a {architecture.base} does not",
                "use interaction='residual'",
            )
        # PEFT can't train a wrapped module whole, nor a wrapper beside a module that is trained whole.
        refused: dict[str, type[nn.Module]] = {
            "residual": ModulesToSaveWrapper,
            "mean": ModulesToSaveWrapper,
            "projector": ResidualInteraction,
        }
        if type(model.get_submodule(architecture.family.projector)) is refused.get(config.interaction):
            raise MethodError(
                "adapters with interaction='projector' and with 'residual' or 'mean' can't share a model",
                "load them into two models, or give both the same interaction",
            )
        return config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: Any,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        architecture = read_architecture(self.model)
        family = architecture.family
        layer = target if isinstance(target, M2PTLayer) else None
        if current_key == family.projector:
            if layer is None and peft_config.interaction not in ("residual", "mean"):
                return
            layer = layer or ResidualInteraction(target, architecture)
            layer.add_layer(adapter_name, peft_config)
        elif current_key.startswith(f"{family.text.path}."):
            layer = layer or PromptedAttention(
                target, parent, family.text.norm, architecture.text_width, rotation=self._rotation()
            )
            layer.add_prompts(adapter_name, peft_config, peft_config.num_textual_prompts)
        else:
            is_idle = int(current_key.split(".")[-2]) >= architecture.layers_run
            if target_name == family.vision.mlp:
                if not is_idle:
                    return
                layer = layer or IdleMLP(target)
                layer.add(adapter_name, peft_config)
            else:
                layer = layer or PromptedAttention(
                    target,
                    parent,
                    family.vision.norm,
                    architecture.vision_width,
                    is_idle=is_idle and family.vision.mlp is not None,
                )
                layer.add_prompts(adapter_name, peft_config, peft_config.num_visual_prompts)
        setattr(parent, target_name, layer)

    def _rotation(self) -> PromptRotation:
        """One for all layers of the language model: that of a layer that has prompts already, or a new one."""
        text = model_family(self.model).text
        for attention in attentions_of(self.model, text):
            if isinstance(attention, PromptedAttention) and attention.rotation is not None:
                return attention.rotation
        return PromptRotation(self.model.get_submodule(text.path).rotary_emb)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if adapter_of(name) is None:
                parameter.requires_grad = False

    # ---- changes of PEFT's behaviour ----

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            MethodError: several names are given.
        """
        if not isinstance(adapter_name, str) and len(adapter_name) > 1:
            raise MethodError(f"one M²PT adapter can be active at a time, not {', '.join(adapter_name)}")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def unload(self) -> nn.Module:
        """Remove every adapter and return the base, exactly as it was before."""
        for hooks, _, hook in _hooks(self.model):
            for key in [key for key, value in hooks.items() if value is hook]:
                del hooks[key]
        restore_originals(self.model)
        for module in list(self.model.modules()):
            if isinstance(module, PromptedAttention):
                module.detach()
        return super().unload()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version handles the module's `weight`, which attention modules don't have.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        refuse_merge()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # PEFT loads with strict=False and only warns, but torch raises for entries of error_msgs.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        owned = {prefix + name for name, _ in self.named_parameters() if adapter_of(name) is not None}
        given = {key for key in state_dict if "m2pt_" in key or adapter_of(key) is not None}
        named = {adapter_of(key) for key in given}
        missing = {key for key in owned - given if adapter_of(key) in named or not state_dict}
        for kind, keys in (("missing", sorted(missing)), ("unexpected", sorted(given - owned))):
            if keys:
                error_msgs.append(f"{len(keys)} {kind} key(s) of an M²PT adapter, the first is {keys[0]}")

    # ---- for callers that run the model themselves ----

    @property
    def num_textual_prompts(self) -> int:
        """k_t of the active adapter, 0 while adapters are disabled."""
        config = attentions_of(self.model, model_family(self.model).text)[0].active_config
        return 0 if config is None else int(config.num_textual_prompts)

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Any:
        # PEFT would silently ignore the argument.
        if kwargs.get("adapter_names") is not None:
            raise MethodError(
                "M²PT answers all rows of a batch with one adapter; adapter_names= is not supported",
                "ask the rows of each adapter apart, after `model.set_adapter(name)`",
            )
        return nullcontext()


def _hooks(model: Any) -> Iterator[tuple[dict[int, Any], Callable[..., Any], Callable[..., Any]]]:
    """Yield, for each hook of the method, the module's hooks, the function that registers a hook, and the hook.

    The hooks receive the module as an argument and hold no reference to it, so that copies of the model work too.
    """
    family = model_family(model)
    for module, hook in (
        (model, check_alone),
        (model.model, check_images),
        (model.model, check_text),
    ):
        yield module._forward_pre_hooks, partial(module.register_forward_pre_hook, with_kwargs=True), hook
    if family is not LLAVA:
        return
    tower = model.get_submodule(family.vision.path)
    yield tower._forward_hooks, tower.register_forward_hook, add_visual_tokens
