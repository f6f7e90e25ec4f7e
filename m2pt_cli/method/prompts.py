"""Wrappers of the base's attention modules that hold the prompts of the adapters (paper, sections 3.2, 3.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from m2pt_cli.method.attention import (
    CALLS,
    PromptedCall,
    PromptStates,
    restore_attention,
    this_thread,
    use_prompted_attention,
)
from m2pt_cli.method.config import M2PTConfig, MethodError


class M2PTLayer(nn.Module, BaseTunerLayer):
    """Base class of the wrappers: a module of the base and the configs of the adapters.

    ``m2pt_adapters`` holds the config of every adapter of the model, including those without parameters in this layer.
    """

    other_param_names = ("m2pt_adapters",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.m2pt_adapters: dict[str, M2PTConfig] = {}
        self.merged_adapters: list[str] = []

    def add(self, adapter_name: str, config: M2PTConfig) -> None:
        """Register an adapter in this layer."""
        self.m2pt_adapters[adapter_name] = config

    @property
    def active_name(self) -> str | None:
        """Name of the active adapter, None while adapters are disabled.

        Raises:
            MethodError: this is a replica made by `torch.nn.DataParallel`, which loses the prompts.
        """
        if "_is_replica" in self.__dict__:
            raise MethodError(
                "torch.nn.DataParallel loses the prompts of M²PT in its replicas",
                "start one process per GPU instead, for example with `torchrun`, or show one GPU alone",
            )
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.m2pt_adapters), None)

    @property
    def active_config(self) -> M2PTConfig | None:
        name = self.active_name
        return None if name is None else self.m2pt_adapters[name]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise MethodError(f"one M²PT adapter can be active at a time, not {', '.join(adapter_names)}")
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        refuse_merge()

    def unmerge(self) -> None:
        """Do nothing: adapters are never merged."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT would also cast to the base's dtype, but the adapter must stay in fp32.
        target = device or next(self.base_layer.parameters()).device
        for container in self.adapter_layer_names:
            values = getattr(self, container)
            if adapter_name in values:
                values[adapter_name] = values[adapter_name].to(target)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class PromptedAttention(M2PTLayer):
    """The attention of one layer with its prompts: one fp32 parameter ``[k, d]`` per adapter.

    The attention is called as without prompts; the function registered in `attention` gets the prompts' keys and values
    from this layer. They are computed by running the attention itself on the normed prompts, so that fused projections,
    query and key norms, biases, grouped heads and quantised weights need no code here.

    Outside training, if no gradient is needed, keys and values are cached between calls as long as the tensors they
    depend on keep their version, storage, device and dtype. After changes that these do not reveal, such as
    ``weight.data.copy_()``, call ``model.eval()``, which clears the cache.

    Args:
        base_layer: the attention module.
        layer: the transformer layer that contains it.
        norm: name in ``layer`` of the norm before the attention, which is applied to prompts as to every token.
        width: d, from the configuration.
        rotation: rotary embedding of the prompts' keys; None if keys have no position (LLaVA's vision towers).
        is_idle: whether no image feature depends on this layer. It then returns zeros, which leaves the hidden states
            unchanged; its prompts are kept, counted and saved, as the paper does.
    """

    adapter_layer_names = ("m2pt_prompts",)

    def __init__(
        self,
        base_layer: nn.Module,
        layer: nn.Module,
        norm: str,
        width: int,
        *,
        rotation: PromptRotation | None = None,
        is_idle: bool = False,
    ) -> None:
        super().__init__(base_layer)
        self.m2pt_prompts = nn.ParameterDict()
        self.width = width
        self.rotation = rotation
        self.is_idle = is_idle
        self.is_muted = False
        self._layer = (layer,)  # in a tuple, because registering the parent as a submodule would make a cycle
        self._norm_name = norm
        self._kept: CachedStates | None = None
        self._calls: dict[int, PromptedCall] = {}  # by thread
        base_layer.__dict__[CALLS] = self._calls

    def add_prompts(self, adapter_name: str, config: M2PTConfig, count: int) -> None:
        """Add an adapter with ``count`` prompts in this layer; 0 adds no parameter."""
        use_prompted_attention(self.base_layer.config)
        self.add(adapter_name, config)
        if count:
            device = next(self.base_layer.parameters()).device
            prompts = torch.empty(count, self.width, device=device, dtype=torch.float32)
            self.m2pt_prompts[adapter_name] = nn.Parameter(initialise(prompts, config.init))

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.m2pt_adapters.pop(adapter_name, None)
        if not self.m2pt_adapters:
            restore_attention(self.base_layer.config)

    def detach(self) -> None:
        """Restore the base attention as it was before any adapter."""
        self.base_layer.__dict__.pop(CALLS, None)
        restore_attention(self.base_layer.config)

    @property
    def active_prompts(self) -> nn.Parameter | None:
        """Prompts ``[k, d]`` of the active adapter, None if it has none in this layer."""
        name = self.active_name
        if self.is_muted or name is None or name not in self.m2pt_prompts:
            return None
        return cast(nn.Parameter, self.m2pt_prompts[name])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base attention with the prompts; arguments and results are those of the base attention.

        Raises:
            MethodError: the attention did not call the registered function, which would lose the prompts.
        """
        if self.is_idle and self.active_name is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            return torch.zeros_like(hidden), None
        prompts = self.active_prompts
        if prompts is None:
            return self.base_layer(*args, **kwargs)
        use_prompted_attention(self.base_layer.config)  # another implementation may have been set since
        return self._run(PromptedCall(lambda query: self._states(prompts, query)), *args, **kwargs)

    def _run(self, call: PromptedCall, *args: Any, **kwargs: Any) -> Any:
        """Run the base attention while ``call`` is set for its attention function in this thread."""
        thread = this_thread()
        before = self._calls.get(thread)
        self._calls[thread] = call
        try:
            output = self.base_layer(*args, **kwargs)
        finally:
            if before is None:
                del self._calls[thread]
            else:
                self._calls[thread] = before
        if not call.was_called:
            raise MethodError(
                f"{type(self.base_layer).__name__} did not call the attention function that holds the prompts, which "
                "would have been lost",
                "call `model.set_attn_implementation('sdpa')`, and put no other attention into the model",
            )
        return output

    def _states(self, prompts: nn.Parameter, query: Tensor) -> PromptStates:
        """Return keys and values of ``prompts`` for these queries, each ``(1, key heads, k, head width)``."""
        norm = cast(nn.Module, self._layer[0]._modules[self._norm_name])
        is_cast = torch.is_autocast_enabled(query.device.type)
        dtype = next(norm.parameters()).dtype if is_cast else query.dtype
        needs_grad = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (prompts, *norm.parameters(), *self.base_layer.parameters())
        )
        # Not cached in training: some optimisers change values without incrementing the version.
        if needs_grad or self.training or torch.compiler.is_compiling():
            self._kept = None
            return self._compute(prompts, norm, dtype)
        precision = (dtype, is_cast)
        kept = self._kept  # another thread may clear it
        if kept is not None and kept.is_current(prompts, norm, precision):
            return kept.states
        # Not inference tensors, even in inference mode: a later call may need other gradients.
        with torch.inference_mode(False), torch.no_grad():
            states = self._compute(prompts, norm, dtype)
        self._kept = CachedStates(states, prompts, (norm, self.base_layer), precision)
        return states

    def _compute(self, prompts: Tensor, norm: nn.Module, dtype: torch.dtype) -> PromptStates:
        normed = norm(prompts.to(dtype)[None])  # (1, k, d)
        call = PromptedCall()
        if self.rotation is None:
            self._run(call, normed)
        else:
            position_embeddings = self.rotation(normed)
            self._run(call, hidden_states=normed, position_embeddings=position_embeddings, attention_mask=None)
        assert call.recorded is not None  # otherwise `_run` has raised
        return call.recorded

    # ---- clear the cached states whenever weights may change without a new version ----

    def train(self, mode: bool = True) -> Self:
        self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        if self.rotation is not None:
            self.rotation.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)


class PromptRotation:
    """Computes the rotary embedding of prompts at positions -k .. -1, directly before the first token at 0.

    The model's rotary module is copied, because the type ``dynamic`` changes its frequencies with the positions it is
    given. The copy gives the frequencies of short texts; `calls.check_text` refuses longer texts.

    Args:
        rotary: the module that computes cosines and sines, ``rotary(hidden, position_ids)``.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = (rotary,)
        self._kept: dict[Any, Any] = {}

    def __call__(self, prompts: Tensor) -> Any:
        """Return cosines and sines for ``prompts`` ``(1, k, d)``."""
        count = prompts.shape[1]
        key = (count, prompts.device, prompts.dtype)
        if key not in self._kept:
            positions = torch.arange(-count, 0, device=prompts.device)[None]
            with torch.inference_mode(False), torch.no_grad():
                self._kept[key] = copy.deepcopy(self._rotary[0])(torch.zeros_like(prompts), positions)
        return self._kept[key]

    def forget(self) -> None:
        """Clear the cache, because the model was moved or cast."""
        self._kept.clear()


class IdleMLP(M2PTLayer):
    """The MLP of a vision layer that no image feature depends on; returns zeros while an adapter is active."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.base_layer(hidden_states) if self.active_name is None else torch.zeros_like(hidden_states)


class CachedStates:
    """Cached prompt states, valid as long as nothing that they were computed from has changed.

    Args:
        states: the cached keys and values.
        prompts: the prompts that they were computed from.
        modules: the modules that computed them, the norm first.
        precision: any further value that they depend on, compared with ``==``.
    """

    def __init__(
        self, states: PromptStates, prompts: nn.Parameter, modules: Sequence[nn.Module], precision: object
    ) -> None:
        self.states = states
        self.precision = precision
        self._norm = modules[0]
        self._prompts = prompts
        submodules = [part for module in modules for part in module.modules()]
        self._children = [(part._modules, name, child) for part in submodules for name, child in part._modules.items()]
        holders: list[Mapping[str, Tensor | None]] = [{"prompts": prompts}]
        for part in submodules:
            holders += [part._parameters, part._buffers]
        self._tensors = [
            (holder, name, tensor, _tensor_state(tensor))
            for holder in holders
            for name, tensor in holder.items()
            if tensor is not None
        ]

    def is_current(self, prompts: nn.Parameter, norm: nn.Module, precision: object) -> bool:
        """Whether the states are still valid for ``prompts``; checked for every new token in every layer."""
        if prompts is not self._prompts or norm is not self._norm or precision != self.precision:
            return False
        for children, name, child in self._children:
            if children.get(name) is not child:
                return False
        for holder, name, tensor, state in self._tensors:
            if holder.get(name) is not tensor or _tensor_state(tensor) != state:
                return False
        return True


def _tensor_state(tensor: Tensor) -> tuple[int | None, int, torch.device, torch.dtype]:
    """Return what changes with a tensor's values, storage, device or dtype; inference tensors have no version."""
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.data_ptr(), tensor.device, tensor.dtype


def initialise(prompts: Tensor, init: str) -> Tensor:
    """Initialise ``[k, d]`` in place; ``xavier`` is uniform within sqrt(6 / ((k + 1) d)), as in the authors' code."""
    count, width = prompts.shape
    if init == "xavier":
        bound = math.sqrt(6 / ((count + 1) * width))
        return nn.init.uniform_(prompts, -bound, bound)
    if init == "normal":
        return nn.init.normal_(prompts, std=0.02)
    return nn.init.zeros_(prompts)


def refuse_merge() -> None:
    """Refuse to merge: prompts are not a change of weights.

    Raises:
        MethodError: always.
    """
    raise MethodError(
        "M²PT prompts can't be merged into the weights of the base",
        "keep the adapter, which costs k keys and values a layer; `unload()` gives the bare base back",
    )
