"""Attach and detach an adapter with the method's own strict loader, without PEFT's warnings on stderr."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import MethodError, check_prompts, load_adapter_strictly
from m2pt_cli.method.checkpoint import take_out

if TYPE_CHECKING:
    from m2pt_cli.models.adapters import AdapterInfo


def load_peft_model(
    model: Any, info: AdapterInfo, *, name: str, report: Callable[[str], None] | None = None
) -> PeftModel:
    """Attach an adapter to a base without wrappers. If it does not fit, the base is unchanged.

    Args:
        report: called with a line about settings of the adapter that are ignored.

    Raises:
        AdapterError: the config or a weight does not fit the base (the message names both), or the prompts do not act.
    """
    with warnings.catch_warnings():
        # PEFT only warns about problems that this loader checks and raises.
        warnings.simplefilter("ignore")
        try:
            peft_model = load_adapter_strictly(model, info.folder, name, report=report)
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
    """Remove every adapter and restore the base exactly."""
    take_out(peft_model)
