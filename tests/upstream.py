"""Which names of transformers and PEFT this package relies on; run it against a new release.

    python -m pip install --target /tmp/new --no-deps transformers==X
    PYTHONPATH=/tmp/new python tests/upstream.py

No model is run: classes are inspected, and a tiny base is built without weights. Each line of `checks` is one name that
a release may change, and the file of this package that relies on it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module, metadata
from typing import Any

# ---- checks: each raises or returns False if the name has changed ----

Check = Callable[[], object]


def thing(path: str) -> Any:
    """``module:name.attribute``, imported."""
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in filter(None, names.split(".")):
        found = getattr(found, name)
    return found


def takes(path: str, *arguments: str) -> Check:
    """The function or method has parameters of these names."""

    def check() -> bool:
        parameters = inspect.signature(thing(path)).parameters
        missing = [name for name in arguments if name not in parameters]
        if missing:
            raise LookupError(f"no parameter {', '.join(missing)}")
        return True

    return check


def has(path: str, *attributes: str) -> Check:
    """The class or module has attributes of these names."""

    def check() -> bool:
        found = thing(path)
        missing = [name for name in attributes if not hasattr(found, name)]
        if missing:
            raise LookupError(f"no attribute {', '.join(missing)}")
        return True

    return check


def says(path: str, *words: str) -> Check:
    """The source contains these strings: for names that are set or called inside a function."""

    def check() -> bool:
        source = inspect.getsource(thing(path))
        missing = [word for word in words if word not in source]
        if missing:
            raise LookupError(f"its source does not hold {', '.join(missing)}")
        return True

    return check


@cache
def base(tower: str = "CLIP", decoder: str = "Llama", kind: str = "Llava") -> Any:
    """A tiny base without weights."""
    import torch

    vision = thing(f"transformers:{tower}VisionConfig")(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = thing(f"transformers:{decoder}Config")(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=32, pad_token_id=0,
    )  # fmt: skip
    config = thing(f"transformers:{kind}Config")(vision_config=vision, text_config=text, image_token_index=31)
    with torch.device("meta"):
        return thing(f"transformers:{kind}ForConditionalGeneration")(config)


def part(path: str, *names: str, **kind: str) -> Check:
    """A base has a module at ``path`` with these attributes."""

    def check() -> bool:
        found = base(**kind)
        for name in path.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        missing = [name for name in names if not hasattr(found, name)]
        if missing:
            raise LookupError(f"no attribute {', '.join(missing)}")
        return True

    return check


DECODERS = ("llama", "mistral", "qwen2")
TOWERS = ("clip", "siglip")
NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "clip": "CLIP", "siglip": "Siglip"}


def file_of(model: str) -> str:
    return f"transformers.models.{model}.modeling_{model}"


def checks() -> Iterator[tuple[str, str, Check]]:
    """Yield the file of this package, the name it relies on, and the check for it."""
    # The one seam: attention functions by name.
    seam = "method/attention.py"
    yield seam, "AttentionInterface.register", takes("transformers:AttentionInterface.register", "key", "value")
    yield seam, "AttentionMaskInterface.register", takes("transformers:AttentionMaskInterface.register", "key", "value")
    yield (
        seam,
        "masks by name",
        lambda: {"sdpa", "eager"} <= set(thing("transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS").valid_keys()),
    )
    lookup = "transformers.modeling_utils:AttentionInterface.get_interface"
    yield seam, "functions by name", takes(lookup, "attn_implementation", "default")
    yield seam, "config._attn_implementation", has("transformers:PreTrainedConfig", "_attn_implementation")
    sdpa = "transformers.integrations.sdpa_attention:sdpa_attention_forward"
    yield (
        seam,
        "arguments of sdpa",
        takes(sdpa, "module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal"),
    )
    yield seam, "sdpa reads module.is_causal", says(sdpa, '"is_causal"')
    for model in (*DECODERS, *TOWERS):
        attention = f"{file_of(model)}:{NAMES[model]}Attention"
        yield seam, f"{model}: eager_attention_forward", has(file_of(model), "eager_attention_forward")
        yield (
            seam,
            f"{model}: looks its function up",
            says(f"{attention}.forward", ".get_interface(", "self.config._attn_implementation"),
        )
        yield seam, f"{model}: is_causal, config", says(f"{attention}.__init__", "self.is_causal", "self.config")
    for model in DECODERS:
        attention = f"{file_of(model)}:{NAMES[model]}Attention.forward"
        names = "hidden_states", "position_embeddings", "attention_mask"
        yield "method/prompts.py", f"{model}: arguments of attention", takes(attention, *names)
        rotary = f"{file_of(model)}:{NAMES[model]}RotaryEmbedding.forward"
        yield "method/prompts.py", f"{model}: rotary(x, position_ids)", takes(rotary, "x", "position_ids")
        norm = f"{file_of(model)}:{NAMES[model]}RMSNorm.__init__"
        yield "training/norms.py", f"{model}: RMS norm", says(norm, "self.weight", "self.variance_epsilon")
        kind = {"decoder": NAMES[model]}
        yield "method/tuner.py", f"{model}: layers", part("model.language_model", "layers", "rotary_emb", **kind)
        layer = "model.language_model.layers.0"
        yield "method/tuner.py", f"{model}: layer", part(layer, "self_attn", "input_layernorm", "mlp", **kind)
        linears = ("q_proj", "k_proj", "v_proj", "o_proj")
        yield "method/presets.py", f"{model}: attention's linears", part(f"{layer}.self_attn", *linears, **kind)
        yield (
            "method/presets.py",
            f"{model}: MLP's linears",
            part(f"{layer}.mlp", "gate_proj", "up_proj", "down_proj", **kind),
        )
    yield (
        "method/architecture.py",
        "rope_parameters",
        lambda: "rope_type" in thing("transformers:LlamaConfig")().rope_parameters,
    )
    yield (
        "method/architecture.py",
        "dynamic frequencies go by position_ids",
        says(
            "transformers.modeling_rope_utils:dynamic_rope_update",
            "max_seq_len_cached",
            "original_inv_freq",
            "longrope",
        ),
    )
    for model in TOWERS:
        layer, kind = "model.vision_tower.encoder.layers.0", {"tower": NAMES[model]}
        yield "method/tuner.py", f"{model}: layer", part(layer, "self_attn", "layer_norm1", "mlp", **kind)
    for kind in ("Llava", "LlavaNext"):
        parts = "vision_tower", "language_model", "multi_modal_projector"
        yield "method/architecture.py", f"{kind}: parts", part("model", *parts, kind=kind)
        names = "input_ids", "pixel_values", "attention_mask", "position_ids", "inputs_embeds", "logits_to_keep"
        path = f"transformers:{kind}ForConditionalGeneration.forward"
        yield "generation, training", f"{kind}: arguments", takes(path, *names)
        model_path = f"{file_of({'Llava': 'llava', 'LlavaNext': 'llava_next'}[kind])}:{kind}Model"
        names = "input_ids", "pixel_values", "attention_mask", "position_ids", "inputs_embeds"
        yield "method/calls.py", f"{kind}Model: arguments", takes(f"{model_path}.forward", *names)
        yield (
            "method/calls.py",
            f"{kind}Model: feature layer of a call",
            says(model_path, "vision_feature_layer", "vision_feature_select_strategy"),
        )
        yield "method/visual_tokens.py", f"{kind}Model: features of a hidden state", says(model_path, ".hidden_states[")
        yield "analysis/attention.py", f"{kind}: get_image_features", has(model_path, "get_image_features")

    # Caches and generation.
    yield "method/calls.py", "Cache.get_seq_length", has("transformers:Cache", "get_seq_length")
    yield "generation/prefix_sharing.py", "DynamicCache", has("transformers:DynamicCache", "batch_select_indices")
    yield "generation/prefix_sharing.py", "DynamicCache(config=)", takes("transformers:DynamicCache.__init__", "config")
    yield (
        "generation/prefix_sharing.py",
        "the cache's argument",
        lambda: (
            {"cache", "past_key_values"}
            & set(inspect.signature(thing("transformers:LlavaForConditionalGeneration.forward")).parameters)
        ),
    )
    yield "generation/stream.py", "BaseStreamer", has("transformers.generation.streamers:BaseStreamer", "put", "end")

    yield (
        "tests",
        "StaticCache(config=, max_cache_len=)",
        takes("transformers:StaticCache.__init__", "config", "max_cache_len"),
    )
    config = "transformers:PreTrainedConfig"
    yield "everywhere", "get_text_config", has(config, "get_text_config")
    yield "everywhere", "image_token_id", lambda: hasattr(base().config, "image_token_id")
    yield (
        "training/loss.py",
        "get_output_embeddings",
        has("transformers:LlavaForConditionalGeneration", "get_output_embeddings"),
    )
    yield (
        "method/tuner.py",
        "get_input_embeddings",
        has("transformers:LlavaForConditionalGeneration", "get_input_embeddings"),
    )
    yield (
        "method/check.py",
        "output_hidden_states of a tower",
        says("transformers.models.clip.modeling_clip", "hidden_states"),
    )
    yield (
        "method/architecture.py",
        "original_max_position_embeddings",
        says("transformers.modeling_rope_utils", "original_max_position_embeddings", "max_position_embeddings"),
    )

    # Loading.
    yield (
        "models/load.py",
        "from_pretrained",
        says(
            "transformers:PreTrainedModel.from_pretrained", "output_loading_info", "local_files_only", "use_safetensors"
        ),
    )
    for kind in ("Llava", "LlavaNext"):
        yield "families/processor.py", f"{kind}Processor", takes(
            f"transformers:{kind}Processor.__init__", "patch_size", "vision_feature_select_strategy",
            "num_additional_image_tokens",
        )  # fmt: skip
    yield (
        "families/processor.py",
        "backend='pil'",
        says("transformers.models.auto.image_processing_auto:AutoImageProcessor.from_pretrained", "backend"),
    )
    tokens = "transformers:LlavaNextProcessor._get_num_multimodal_tokens"
    yield "data/collate.py", "tokens of tiles", takes(tokens, "image_sizes")

    # Training.
    trainer = "transformers:Trainer"
    for method, arguments in {
        "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
        "create_optimizer": (),
        "evaluate": (),
        "floating_point_ops": ("inputs",),
        "get_decay_parameter_names": ("model",),
        "get_optimizer_cls_and_kwargs": ("args",),
        "log": ("logs", "start_time"),
        "remove_callback": ("callback",),
        "training_step": ("model", "inputs", "num_items_in_batch"),
        "_get_train_sampler": ("train_dataset",),
        "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
        "_prepare_inputs": ("inputs",),
        "_save_checkpoint": ("model", "trial"),
        "_save_optimizer_and_scheduler": ("output_dir",),
        "_save_rng_state": ("output_dir",),
        "_save_scaler": ("output_dir",),
    }.items():
        yield "training/trainer.py", f"Trainer.{method}", takes(f"{trainer}.{method}", *arguments)
    yield "training/trainer.py", "PrinterCallback", has("transformers.trainer_callback", "PrinterCallback")
    yield (
        "training/trainer.py",
        "model_accepts_loss_kwargs",
        says(f"{trainer}.training_step", "model_accepts_loss_kwargs"),
    )
    checkpointing = "transformers:PreTrainedModel"
    yield (
        "training/setup.py",
        "checkpointing",
        lambda: (
            hasattr(thing(checkpointing), "activation_checkpointing_enable")
            or hasattr(thing(checkpointing), "gradient_checkpointing_enable")
        ),
    )

    # PEFT.
    tuner = "peft.tuners.tuners_utils:BaseTuner"
    for method, arguments in {
        "inject_adapter": ("model", "adapter_name"),
        "_create_and_replace": (
            "peft_config", "adapter_name", "target", "target_name", "parent", "current_key", "parameter_name",
        ),
        "_mark_only_adapters_as_trainable": ("model",),
        "_replace_module": ("parent", "child_name", "new_module", "child"),
        "_check_merge_allowed": (),
        "set_adapter": ("adapter_name", "inference_mode"),
        "unload": (),
    }.items():  # fmt: skip
        yield "method/tuner.py", f"BaseTuner.{method}", takes(f"{tuner}.{method}", *arguments)
    yield "method/tuner.py", "BaseTuner.prefix, tuner_layer_cls", says(tuner, "prefix", "tuner_layer_cls")
    layer = "peft.tuners.tuners_utils:BaseTunerLayer"
    names = "active_adapters", "disable_adapters", "adapter_layer_names", "other_param_names", "delete_adapter"
    yield "method/prompts.py", "BaseTunerLayer", has(layer, *names, "_move_adapter_to_device_of_base_layer")
    yield (
        "method/prompts.py",
        "BaseTunerLayer.set_adapter",
        takes(f"{layer}.set_adapter", "adapter_names", "inference_mode"),
    )
    yield (
        "method/interaction.py",
        "ModulesToSaveWrapper",
        says("peft.utils:ModulesToSaveWrapper", "original_module", "modules_to_save"),
    )
    yield "method/registration.py", "PeftType is an enum of str", lambda: issubclass(thing("peft:PeftType"), str)
    yield (
        "method/registration.py",
        "register_peft_method",
        takes("peft.utils:register_peft_method", "name", "config_cls", "model_cls"),
    )
    yield "method/registration.py", "the methods by type", has("peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING")
    yield "method/tuner.py", "adapter_names=", says("peft:PeftModel.forward", "_enable_peft_forward_hooks")
    yield "method/tuner.py", "generate(adapter_names=)", says("peft:PeftModel.generate", "_enable_peft_forward_hooks")
    yield from of_families()
    state = "peft:get_peft_model_state_dict"
    yield "method/checkpoint.py", "an adapter's tensors", takes(state, "adapter_name", "save_embedding_layers")
    yield (
        "training/setup.py",
        "LoraLayer.cast_input_dtype_enabled",
        says("peft.tuners.lora:LoraLayer", "cast_input_dtype_enabled"),
    )


def of_families() -> Iterator[tuple[str, str, Check]]:
    """The paths and names in the description of every family, in the model that its default config builds."""
    from m2pt_cli.families.family import FAMILIES

    def layers(model_type: str, name: str, stack: Any) -> Check:
        def check() -> bool:
            layer = built(model_type, name).get_submodule(stack.layers_path)[0]
            return all(hasattr(layer, part) for part in (stack.attention, stack.norm))

        return check

    for family in FAMILIES:
        for model_type, name in family.classes.items():
            place = f"families/family.py, {model_type}"
            yield place, "vision layers, attention and norm", layers(model_type, name, family.vision)
            yield place, "text layers, attention and norm", layers(model_type, name, family.text)
            path = family.projector
            yield place, "projector", lambda m=model_type, n=name, p=path: built(m, n).get_submodule(p) is not None
            yield place, "processor", has("transformers", family.processors[model_type])
    for kind in ("Idefics3Processor", "InternVLProcessor", "LlavaOnevisionProcessor"):
        method = f"transformers:{kind}._get_num_multimodal_tokens"
        yield "data/collate.py", f"tokens of an image of {kind}", says(method, "num_image_tokens", "num_image_patches")


@cache
def built(model_type: str, name: str) -> Any:
    """A model of its class's default config, one layer deep, without weights."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(model_type)
    config.get_text_config().pad_token_id = 0  # one default lies outside its vocabulary in old versions
    for part in (config.vision_config, config.get_text_config()):
        part.num_hidden_layers = 1
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1]
    with torch.device("meta"):
        return getattr(transformers, name)(config)


def moved() -> list[str]:
    """Return a line for every name that is missing."""
    lines = []
    for file, name, check in checks():
        try:
            problem = None if check() else "it is not there"
        except Exception as error:  # whatever a release does to it
            problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if problem is not None:
            lines.append(f"{file}: {name}: {problem}")
    return lines


def main() -> int:
    for module in ("transformers.modeling_utils", "peft"):
        try:
            import_module(module)
        except ImportError as error:
            print(f"{module} can't be imported: {str(error).splitlines()[0]}")
            return 1
    lines = moved()
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "peft", "torch"))
    print("\n".join(lines) or f"all {len(list(checks()))} are where they were", f"({libraries})")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
