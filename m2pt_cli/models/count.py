"""Counts the parameters that a method trains, by arithmetic: no weights, no torch.

`trained_weights` lists every trained tensor by its name in the saved adapter; counts, percentages and the size of the
file follow from that list. A test compares it with PEFT models built on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2pt_cli.errors import AdapterError, SettingsError
from m2pt_cli.families.family import LARGEST_INTERACTION, Family, family_of
from m2pt_cli.families.geometry import Geometry, Weight
from m2pt_cli.files.safetensors import saved_bytes
from m2pt_cli.models.adapters import AdapterInfo
from m2pt_cli.records import ParameterCounts
from m2pt_cli.settings import INTERACTIONS, METHODS, VISUAL_TOKENS, closest, raise_faults
from m2pt_cli.settings.base import MOST_PROMPTS, shown_number

GROUPS = ("visual_prompts", "textual_prompts", "interaction", "lm_head", "vision_tower", "projector", "language_model")
# Prefix of the base in the names that PEFT saves.
_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train; named as in `TrainSettings`.

    Raises:
        SettingsError: a value is invalid; the message lists all.
    """

    method: str = "m2pt"
    visual_prompts: int = 20
    textual_prompts: int = 10
    interaction: str = "auto"
    visual_tokens: str = "patches"
    train_lm_head: bool = False
    lora_rank: int = 16

    def __post_init__(self) -> None:
        faults = [
            f"--{flag} {value!r} is not one of {', '.join(choices)}{closest(value, choices)}"
            for flag, value, choices in (
                ("method", self.method, METHODS),
                ("interaction", self.interaction, INTERACTIONS),
                ("visual-tokens", self.visual_tokens, VISUAL_TOKENS),
            )
            if value not in choices
        ]
        for flag, number, least in (
            ("visual-prompts", self.visual_prompts, 0),
            ("textual-prompts", self.textual_prompts, 0),
            ("lora-rank", self.lora_rank, 1),
        ):
            if not least <= number <= MOST_PROMPTS:
                said = f"at least {least}" if number < least else f"at most {MOST_PROMPTS:,}"
                faults.append(f"--{flag} {shown_number(number)} must be {said}")
        raise_faults(faults)

    @property
    def is_prompted(self) -> bool:
        """Whether the method is M²PT or one of its parts."""
        return self.method not in ("lora", "full")

    @property
    def prompts(self) -> tuple[int, int]:
        """Number of visual and textual prompts that the method uses."""
        visual = self.visual_prompts if self.method in ("m2pt", "visual") else 0
        return visual, self.textual_prompts if self.method in ("m2pt", "textual") else 0

    def resolved_interaction(self, geometry: Geometry) -> str:
        """Resolve ``auto``: train the projector if it is linear, else add a linear layer in parallel to it."""
        if self.interaction != "auto":
            return self.interaction
        if geometry.merged > 1:
            size = geometry.feature_size * geometry.text.hidden_size
            if size > LARGEST_INTERACTION * geometry.total_parameters:
                return "mean"
        return "projector" if geometry.projector == "linear" else "residual"


def trained_weights(geometry: Geometry, recipe: Recipe) -> Iterator[Weight]:
    """Yield every trained tensor: its group, its name in the saved file, its shape.

    Raises:
        SettingsError: the recipe can't be trained on this base.
    """
    if recipe.method == "full":
        # As in LLaVA's own recipe, the vision tower stays frozen.
        yield from (weight for weight in geometry.weights() if weight.group != "vision_tower")
    elif recipe.method == "lora":
        yield from _lora(geometry, recipe.lora_rank, with_projector=recipe.interaction != "none")
    else:
        yield from _prompted(geometry, recipe)


def _prompted(geometry: Geometry, recipe: Recipe) -> Iterator[Weight]:
    visual, textual = recipe.prompts
    vision, text, family = geometry.vision, geometry.text, family_of(geometry.model_type)
    if visual:
        for i in range(vision.num_layers):
            name = f"{family.vision.layers_path}.{i}.{family.vision.attention}.m2pt_prompts"
            yield Weight("visual_prompts", _PREFIX + name, (visual, vision.hidden_size))
    if textual:
        for i in range(text.num_layers):
            name = f"{family.text.layers_path}.{i}.{family.text.attention}.m2pt_prompts"
            yield Weight("textual_prompts", _PREFIX + name, (textual, text.hidden_size))
    interaction = recipe.resolved_interaction(geometry)
    if interaction == "projector":
        yield from _projector(geometry, "interaction")
    elif interaction in ("residual", "mean"):
        if interaction == "mean" and geometry.merged == 1:
            raise SettingsError("--interaction mean: this base merges no patches", "use --interaction residual")
        name, width = f"{_PREFIX}{family.projector}.m2pt_interaction", text.hidden_size
        read = vision.hidden_size if interaction == "mean" else geometry.feature_size
        yield Weight("interaction", f"{name}.weight", (width, read))
        yield Weight("interaction", f"{name}.bias", (width,))
    if recipe.train_lm_head:
        if geometry.tied_lm_head:
            raise SettingsError(
                "--train-lm-head: the lm_head of this base is tied to its token embedding", "leave it out"
            )
        yield Weight("lm_head", f"{_PREFIX}lm_head.weight", (text.vocab_size, text.hidden_size))
    if not (visual or textual or recipe.train_lm_head) and interaction == "none":
        raise SettingsError(
            "nothing is left to train: no prompts, no interaction layer, no lm_head",
            "raise --visual-prompts or --textual-prompts, or leave out --interaction none",
        )


def _lora(geometry: Geometry, rank: int, *, with_projector: bool) -> Iterator[Weight]:
    """LoRA on every linear layer of the language model's blocks, and the whole projector if wanted."""
    for weight in geometry.weights():
        if weight.group == "language_model" and weight.name.endswith("_proj.weight"):
            name, (outputs, inputs) = _PREFIX + weight.name.removesuffix(".weight"), weight.shape
            yield Weight("language_model", f"{name}.lora_A.weight", (rank, inputs))
            yield Weight("language_model", f"{name}.lora_B.weight", (outputs, rank))
    if with_projector:
        yield from _projector(geometry, "projector")


def _projector(geometry: Geometry, group: str) -> Iterator[Weight]:
    for weight in geometry.weights():
        if weight.group == "projector":
            yield Weight(group, _PREFIX + weight.name, weight.shape)


def count_parameters(base: str, geometry: Geometry, recipe: Recipe) -> ParameterCounts:
    """Count what ``recipe`` trains on a base of this geometry.

    ``bytes`` is the exact size of ``adapter_model.safetensors``; for ``full``, which saves a model folder, it is the
    size of all weights in fp32.

    Raises:
        SettingsError: the recipe can't be trained on this base.
    """
    weights = list(trained_weights(geometry, recipe))
    saved = list(geometry.weights()) if recipe.method == "full" else weights
    return _counts(
        base,
        recipe.method,
        geometry,
        weights,
        without_effect=without_effect(geometry, recipe),
        size=saved_bytes({weight.name: weight.shape for weight in saved}),
    )


def count_adapter(base: str, geometry: Geometry, info: AdapterInfo) -> ParameterCounts:
    """Count the weights of a saved adapter from its file's header, relative to the base named ``base``."""
    family = family_of(geometry.model_type)
    weights = [Weight(_group(tensor.name, info, family), tensor.name, tensor.shape) for tensor in info.tensors()]
    recipe = Recipe(
        method=info.method,
        visual_prompts=info.num_visual_prompts,
        textual_prompts=info.num_textual_prompts,
        interaction=info.interaction,
        visual_tokens=info.visual_tokens,
        train_lm_head=info.train_lm_head,
    )
    if recipe.is_prompted:
        _require_fit(base, geometry, recipe, weights, info)
    return _counts(
        base,
        info.method,
        geometry,
        weights,
        without_effect=without_effect(geometry, recipe) if recipe.is_prompted else 0,
        size=info.bytes,
    )


def without_effect(geometry: Geometry, recipe: Recipe) -> int:
    """Return the number of trained parameters without effect: prompts of vision layers whose output is not used.

    The features are the input of layer i, so prompts from layer i on have no effect; with ``visual_tokens="official"``
    layer i's prompts are part of that input, except the first prompt, which is dropped.
    """
    visual, width = recipe.prompts[0], geometry.vision.hidden_size
    unread = geometry.vision.num_layers - max(geometry.feature_indices)
    if not (visual and recipe.is_prompted and unread > 0):
        return 0
    if recipe.visual_tokens == "official":
        return (unread - 1) * visual * width + width
    return unread * visual * width


def _counts(
    base: str, method: str, geometry: Geometry, weights: list[Weight], *, without_effect: int, size: int
) -> ParameterCounts:
    groups = dict.fromkeys(GROUPS, 0)
    for weight in weights:
        groups[weight.group] += weight.size
    trainable, total = sum(weight.size for weight in weights), geometry.total_parameters
    assert sum(groups.values()) == trainable, "the groups must add up to the whole"
    return ParameterCounts(
        base=base,
        method=method,
        total=total,
        trainable=trainable,
        percent=100 * trainable / total,
        groups=groups,
        without_effect=without_effect,
        bytes=size,
    )


def _group(name: str, info: AdapterInfo, family: Family) -> str:
    """Return the group of a saved weight, by its name."""
    is_visual = f".{family.vision.path}." in name
    if "m2pt_prompts" in name:
        return "visual_prompts" if is_visual else "textual_prompts"
    if f".{family.projector}." in name:
        return "projector" if info.peft_type == "LORA" else "interaction"
    if "lm_head." in name:
        return "lm_head"
    return "vision_tower" if is_visual else "language_model"


def _require_fit(base: str, geometry: Geometry, recipe: Recipe, weights: list[Weight], info: AdapterInfo) -> None:
    """Raise an AdapterError unless an M²PT adapter holds exactly the weights that its config needs on this base."""
    wanted = {weight.name: weight.shape for weight in trained_weights(geometry, recipe)}
    found = {weight.name: weight.shape for weight in weights}
    if wanted != found:
        odd = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise AdapterError(
            f"the adapter {info.name} does not fit {base}: {odd} has shape {list(found.get(odd, ()))}, "
            f"expected {list(wanted.get(odd, ()))}",
            f"m2pt count-params --adapter {info.folder} --base BASE, with the base it was trained on",
        )
