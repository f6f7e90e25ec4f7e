"""Registers ``M2PT`` as a PEFT method, once per process."""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

NAME = "M2PT"


def add_peft_type(name: str) -> PeftType:
    """Return the member of PEFT's enum of methods; add it if missing, since Python forbids to subclass the enum."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
    # `type.__setattr__` bypasses the checks of EnumMeta.
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # Newer Python versions also keep a list of values, for `in`.
    getattr(PeftType, "_hashable_values_", []).append(name)
    return member


M2PT = add_peft_type(NAME)


def register(config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Register the method with PEFT; repeated calls change nothing."""
    if M2PT not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_class, model_cls=model_class)
