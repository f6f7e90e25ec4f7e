"""Config of an M²PT adapter: number of prompts, interaction layer, visual tokens passed to the language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig

from m2pt_cli.errors import SettingsError
from m2pt_cli.families.family import LLAVA, Family
from m2pt_cli.method.card import is_unwritten, method_card
from m2pt_cli.method.registration import M2PT
from m2pt_cli.settings.base import INITS, INTERACTIONS, VISUAL_TOKENS

LM_HEAD = "lm_head"


class MethodError(SettingsError, ValueError):
    """M²PT refuses a request: an invalid value, an untested base, or a call that would give wrong results.

    Also a `ValueError`, because callers of PEFT and transformers expect that.
    """


@dataclass
class M2PTConfig(PeftConfig):
    """Settings of one M²PT adapter (paper, section 3; the paper's best: 20 visual and 10 textual prompts).

    Args:
        num_visual_prompts: prompt vectors k_v in every layer of the vision tower; 0 for none.
        num_textual_prompts: prompt vectors k_t in every layer of the language model; 0 for none.
        interaction: the trained linear map between the two. ``projector`` trains the base's own projector;
            ``residual`` puts a zero-initialised linear layer beside it, ``projector(x) + f(x)``; ``mean``, for
            bases that merge patches into one token, does so with the mean of the merged patches, ``projector(x) +
            f(mean(x))``; ``auto`` is ``projector`` where that is a single linear layer (LLaVA v1), ``residual``
            elsewhere (LLaVA-1.5), and ``mean`` where one linear layer from the merged patches would exceed 0.2 % of
            the base (SmolVLM); ``none`` trains neither.
        visual_tokens: ``patches`` hands the image patches alone to the language model; ``official`` also hands it
            ``k_v - 1`` prompts of the last vision layer and the class token, as the authors' code does.
        train_lm_head: also train the output head, as the authors' script does (1.9 % of a 7B base instead of 0.09 %).
        init: first values of the prompts: ``xavier`` (the paper's), ``normal`` (standard deviation 0.02) or ``zeros``.
        chat_template: name of the template the adapter was trained with.
        image_fit: how images were fitted to the vision tower in training, ``crop`` or ``pad``.
        base_fingerprint: fingerprint of the base the adapter was trained on, None if unknown.

    Raises:
        MethodError: a value is out of range, or nothing would be trained.

    Example::

        model = get_peft_model(llava, M2PTConfig(num_visual_prompts=20, num_textual_prompts=10))
    """

    num_visual_prompts: int = field(default=20, metadata={"help": "Prompts per layer of the vision tower."})
    num_textual_prompts: int = field(default=10, metadata={"help": "Prompts per layer of the language model."})
    interaction: str = field(default="auto", metadata={"help": "auto, projector, residual, mean or none."})
    visual_tokens: str = field(default="patches", metadata={"help": "patches or official."})
    train_lm_head: bool = field(default=False, metadata={"help": "Also train the output head."})
    init: str = field(default="xavier", metadata={"help": "xavier, normal or zeros."})
    chat_template: str | None = field(default=None, metadata={"help": "Template the adapter was trained with."})
    image_fit: str | None = field(default=None, metadata={"help": "Image fit the adapter was trained with."})
    base_fingerprint: str | None = field(default=None, metadata={"help": "Fingerprint of the base."})

    # What PEFT's walk over the modules stops at, and the projector's name; no settings, because the method has no other
    # places. The tuner sets them to those of the base's family.
    target_modules: ClassVar[str] = LLAVA.targets
    projector_name: ClassVar[str] = LLAVA.projector_name

    def use_family(self, family: Family) -> None:
        """Set `target_modules` and `projector_name` for a base of this family."""
        vars(self).update(target_modules=family.targets, projector_name=family.projector_name)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = M2PT
        for name in ("num_visual_prompts", "num_textual_prompts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise MethodError(f"{name} must be a whole number of at least 0, not {value!r}")
        for name, allowed in (("interaction", INTERACTIONS), ("visual_tokens", VISUAL_TOKENS), ("init", INITS)):
            value = getattr(self, name)
            if value not in allowed:
                raise MethodError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if not isinstance(self.train_lm_head, bool):
            raise MethodError(f"train_lm_head must be True or False, not {self.train_lm_head!r}")
        for name in ("chat_template", "image_fit", "base_fingerprint"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise MethodError(f"{name} must be a string or None, not {value!r}")
        if self.interaction == "none" and not (
            self.num_visual_prompts or self.num_textual_prompts or self.train_lm_head
        ):
            raise MethodError(
                "nothing to train: num_visual_prompts=0, num_textual_prompts=0, interaction='none' and no lm_head",
                "give at least one of them another value",
            )

    @property
    def modules_to_save(self) -> list[str] | None:
        """Modules of the base that are trained whole and saved with the adapter (PEFT's name for them)."""
        modules = [self.projector_name] if self.interaction == "projector" else []
        if self.train_lm_head:
            modules.append(LM_HEAD)
        return modules or None

    @property
    def extra_image_tokens(self) -> int:
        """Image tokens per image in addition to the patches: k_v with ``visual_tokens="official"``, else 0."""
        return self.num_visual_prompts if self.visual_tokens == "official" else 0

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, and a card in place of the empty template that PEFT left beside it.

        `PeftModel.save_pretrained` writes its card first and calls this last; a card that somebody wrote stays.
        """
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if is_unwritten(card):
            card.write_text(method_card(self.to_dict()), encoding="utf-8")
