"""An adapter into a base and out of it again: the method's own strict loader, without PEFT's advice on stderr."""

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
    """Attach an adapter to a bare base. Where it does not fit, the base is left as it was.

    Args:
        report: told of settings of the adapter that are left out.

    Raises:
        AdapterError: the config or a weight does not fit the base, which names both sides; or the prompts do not act.
    """
    with warnings.catch_warnings():
        # PEFT warns of what the loader checks and raises.
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
    """Take every adapter out again: the base is exactly what it was."""
    take_out(peft_model)
