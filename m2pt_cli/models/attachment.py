"""Attaches and detaches an adapter, with the method's strict loader and without PEFT's warnings on stderr."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import MethodError, check_prompts, load_adapter_strictly
from m2pt_cli.method.interaction import restore_originals

if TYPE_CHECKING:
    from m2pt_cli.models.adapters import AdapterInfo


def load_peft_model(model: Any, info: AdapterInfo, *, name: str) -> PeftModel:
    """Attach an adapter to a bare base. If it does not fit, the base is left unchanged.

    Raises:
        AdapterError: config or weights do not fit the base (the message names both), or the prompts have no effect.
    """
    with warnings.catch_warnings():
        # PEFT warns about problems that the loader checks and raises for.
        warnings.simplefilter("ignore")
        try:
            peft_model = load_adapter_strictly(model, info.folder, name)
        except MethodError as error:
            hint = f"it was trained on {info.base}: name that with --base" if info.base else None
            raise AdapterError(
                f"the adapter {info.name} does not fit this base: {error.message}", error.hint or hint
            ) from None
    peft_model.requires_grad_(False)
    peft_model.eval()
    try:
        check_prompts(peft_model, info.name)
    except AdapterError:
        unload(peft_model)
        raise
    return peft_model


def unload(peft_model: Any) -> None:
    """Remove every adapter; the base is exactly as it was before."""
    # PEFT leaves the copies of modules that are trained in full (LoRA's projector) in the base.
    restore_originals(peft_model)
    peft_model.unload()
