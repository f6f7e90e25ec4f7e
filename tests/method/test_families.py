"""Every family beyond LLaVA against explicit concatenation, from ids and pixels to logits; and PEFT's habits on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.families import FAMILIES, family_processor, needs_packages, tiny_family
from fixtures.models import checkpoint, fill_adapter
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import M2PTConfig, MethodError, check_prompts, load_adapter_strictly, parts_of, preset, select_full
from m2pt_cli.method.architecture import attentions_of, layers_of, model_family, read_architecture
from m2pt_cli.method.calls import cache_argument
from m2pt_cli.method.prompts import PromptedAttention

KV, KT = 2, 3


def is_oldest_transformers() -> bool:
    from m2pt_cli.version import TESTED

    return version("transformers").startswith(f"{TESTED['transformers'][0]}.")


each_family = pytest.mark.parametrize("name", [pytest.param(name, marks=needs_packages(name)) for name in FAMILIES])


def batch(name: str, *, side: str = "left") -> dict[str, Tensor]:
    """Two rows, one with two images of different sizes, padded on one side."""
    processor = family_processor(name)
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((90, 60), (40, 40), (60, 90))]
    rows = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "One more!"}]}],
    ]
    texts = [processor.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in rows]
    return dict(
        processor(
            text=texts,
            images=[pictures[:1], pictures[1:]],
            padding=True,
            return_tensors="pt",
            padding_side=side,
        )
    )


def adapted(name: str, *, attention: str = "sdpa", seed: int = 1, **options: Any) -> PeftModel:
    """A tiny model with an adapter whose every weight matters, in evaluation mode."""
    config = M2PTConfig(num_visual_prompts=KV, num_textual_prompts=KT, **options)
    model = get_peft_model(tiny_family(name, attention=attention), config)
    fill_adapter(model, seed=seed)
    return model.eval()


def wrapped(model: PeftModel, side: str) -> list[PromptedAttention]:
    base = model.get_base_model()
    found = attentions_of(base, getattr(model_family(base), side))
    assert all(isinstance(one, PromptedAttention) for one in found)
    return found


@contextmanager
def concatenated(model: PeftModel) -> Iterator[None]:
    """The definition: prompts stand in the sequences, are overwritten before every layer and dropped at the end."""
    base: Any = model.get_base_model()
    family = model_family(base)
    handles, visual, textual = [], wrapped(model, "vision"), wrapped(model, "text")
    prompts: dict[str, list[Any]] = {
        "v": [one.active_prompts for one in visual],
        "t": [one.active_prompts for one in textual],
    }
    for one in (*visual, *textual):
        one.is_muted = True

    def longer(module: Any, args: Any, kwargs: Any) -> Any:
        embeds = kwargs["inputs_embeds"]
        rows, length = embeds.shape[:2]
        mask = kwargs.get("attention_mask")
        mask = torch.ones(rows, length, dtype=torch.long) if mask is None else mask
        mask = torch.cat([mask.new_ones(rows, KT), mask], 1)
        kwargs["inputs_embeds"] = torch.cat([prompts["t"][0].expand(rows, -1, -1), embeds], 1)
        kwargs["attention_mask"] = mask
        kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return args, kwargs

    def shorter(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, KT:]
        return output

    text = base.get_submodule(family.text.path)
    handles += [text.register_forward_pre_hook(longer, with_kwargs=True), text.register_forward_hook(shorter)]

    def before(kind: str, i: int) -> Any:
        def change(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            own = prompts[kind][i].expand(hidden.shape[0], -1, -1)
            if kind == "t":
                hidden = torch.cat([own, hidden[:, KT:]], 1)
            else:
                hidden = torch.cat([hidden if i == 0 else hidden[:, :-KV], own], 1)
                kwargs = dict(kwargs)
                if kwargs.get("attention_mask") is not None:
                    patches = kwargs["attention_mask"][..., : hidden.shape[1] - KV, : hidden.shape[1] - KV]
                    value = True if patches.dtype == torch.bool else 0.0
                    kwargs["attention_mask"] = nn.functional.pad(patches, (0, KV, 0, KV), value=value)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return change

    for kind, stack in (("v", family.vision), ("t", family.text)):
        for i, layer in enumerate(layers_of(base, stack)):
            handles.append(layer.register_forward_pre_hook(before(kind, i), with_kwargs=True))

    def dropped(module: Any, args: Any, output: Any) -> Any:
        return (output[0][:, :-KV], *output[1:]) if isinstance(output, tuple) else output[:, :-KV]

    def trimmed(module: Any, args: Any, output: Any) -> Any:
        count = output.last_hidden_state.shape[1]
        if getattr(output, "hidden_states", None) is not None:  # recorded before `dropped`
            output.hidden_states = tuple(None if state is None else state[:, :count] for state in output.hidden_states)
        return output

    handles.append(layers_of(base, family.vision)[-1].register_forward_hook(dropped))
    handles.append(base.get_submodule(family.vision.path).register_forward_hook(trimmed))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for one in (*visual, *textual):
            one.is_muted = False


def real(logits: Tensor, mask: Tensor) -> Tensor:
    return logits[mask.bool()]


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_explicit_concatenation(name: str, attention: str, side: str) -> None:
    inputs, model = batch(name, side=side), adapted(name, attention=attention)
    with torch.no_grad():
        found = model(**inputs, use_cache=False).logits
        with concatenated(model):
            wanted = model(**inputs, use_cache=False).logits
        with model.disable_adapter():
            bare = model(**inputs, use_cache=False).logits
    mask = inputs["attention_mask"]
    torch.testing.assert_close(real(found, mask), real(wanted, mask), atol=2e-4, rtol=2e-4)
    assert (real(found, mask) - real(bare, mask)).abs().max() > 0.1


@each_family
def test_gradients_are_those_of_explicit_concatenation_and_checkpointing_changes_none(name: str) -> None:
    inputs, model = batch(name), adapted(name)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(**inputs, use_cache=False).logits
        real(logits, inputs["attention_mask"]).logsumexp(-1).sum().backward()
        return {n: p.grad.clone() for n, p in named.items() if p.grad is not None}

    found = gradients()
    with concatenated(model):
        wanted = gradients()
    assert found.keys() == wanted.keys() == named.keys()
    for key, gradient in found.items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradient, wanted[key], atol=2e-3, rtol=2e-3)
    checkpoint(model.get_base_model(), reentrant=False)
    model.train()
    again = gradients()
    for key, gradient in found.items():
        torch.testing.assert_close(again[key], gradient, atol=1e-4, rtol=1e-4)


@each_family
def test_every_way_to_generate_gives_the_same_tokens(name: str) -> None:
    inputs, model = batch(name), adapted(name)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    image_token = model.config.image_token_id
    wanted: list[Tensor] = []
    with torch.no_grad(), concatenated(model):
        rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
        for _ in range(5):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **rest).logits
            logits[:, :, image_token] = -torch.inf  # an answer that holds it would ask for one more image
            wanted.append(logits[:, -1].argmax(-1))
            ids = torch.cat([ids, wanted[-1][:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    expected = torch.stack(wanted, 1)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    options["suppress_tokens"] = [image_token]
    start = inputs["input_ids"].shape[1]
    for extra in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        tokens = model.generate(**inputs, **options, **extra)[:, start:]
        assert torch.equal(tokens, expected), extra

    def beams(cached: bool) -> Tensor:
        return model.generate(**inputs, **options, num_beams=3, use_cache=cached)

    with model.disable_adapter():
        base_agrees = torch.equal(beams(True), beams(False))
    # The oldest version of transformers mixes up the images of beams without a cache, with or without an adapter.
    assert base_agrees or is_oldest_transformers()
    if base_agrees:
        assert torch.equal(beams(True), beams(False))


@each_family
def test_disabling_and_unloading_give_the_base_back(name: str) -> None:
    inputs, model = batch(name), adapted(name)
    bare = tiny_family(name)
    with torch.no_grad():
        wanted = bare(**inputs, use_cache=False).logits
        with model.disable_adapter():
            assert torch.equal(model(**inputs, use_cache=False).logits, wanted)
        back = model.unload()
        assert torch.equal(back(**inputs, use_cache=False).logits, wanted)
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in bare.named_parameters()]


@each_family
def test_adapters_are_saved_loaded_strictly_and_live_side_by_side(name: str, tmp_path: Path) -> None:
    inputs, first, second = batch(name), adapted(name), adapted(name, seed=2)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    family = model_family(first.get_base_model())
    paths = [f"{stack.layers_path}.0.{stack.attention}.m2pt_prompts" for stack in (family.vision, family.text)]
    assert {f"base_model.model.{path}" for path in paths} <= weights.keys()
    assert f"base_model.model.{family.projector}.m2pt_interaction.weight" in weights
    model = PeftModel.from_pretrained(tiny_family(name), str(tmp_path / "a"), adapter_name="a").eval()
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    with torch.no_grad():
        for key, one in (("a", first), ("b", second), ("a", first)):
            model.set_adapter(key)
            torch.testing.assert_close(
                model(**inputs, use_cache=False).logits, one(**inputs, use_cache=False).logits, atol=1e-5, rtol=1e-5
            )
    check_prompts(model, "a")
    key = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != key}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="missing key"):
        PeftModel.from_pretrained(tiny_family(name), str(tmp_path / "a"))
    with pytest.raises(AdapterError, match="1 missing"):
        load_adapter_strictly(tiny_family(name), tmp_path / "a")


@each_family
@pytest.mark.parametrize("interaction", ["residual", "mean", "projector"])
def test_every_interaction_layer(name: str, interaction: str) -> None:
    inputs = batch(name)
    architecture = read_architecture(tiny_family(name))
    if interaction == "mean" and architecture.merged == 1:
        with pytest.raises(MethodError, match="merges patches"):
            get_peft_model(tiny_family(name), M2PTConfig(interaction=interaction))
        return
    config = M2PTConfig(num_visual_prompts=0, num_textual_prompts=0, interaction=interaction)
    model = get_peft_model(tiny_family(name), config).eval()
    parts = parts_of(model)
    assert set(parts.values()) == {"interaction"}
    width = architecture.vision_width if interaction == "mean" else architecture.feature_width
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if n in parts}
    if interaction != "projector":
        assert sorted(trained.values()) == [(architecture.text_width,), (architecture.text_width, width)]
    with torch.no_grad():
        bare = tiny_family(name)(**inputs, use_cache=False).logits
        assert torch.equal(model(**inputs, use_cache=False).logits, bare)  # nothing changes before the first step
        fill_adapter(model)
        assert (model(**inputs, use_cache=False).logits - bare).abs().max() > 1e-3


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_packages(n)) for n in FAMILIES if n != "llava_onevision"])
def test_mean_reads_the_mean_of_the_patches_that_become_one_token(name: str) -> None:
    architecture = read_architecture(tiny_family(name))
    model = get_peft_model(tiny_family(name), M2PTConfig(interaction="mean", num_visual_prompts=0)).eval()
    layer = model.get_base_model().get_submodule(architecture.family.projector)
    weights = layer.m2pt_interaction["default"]
    nn.init.eye_(weights.weight)
    side, width = 4, architecture.vision_width
    hidden = torch.randn(1, side * side, width)
    seen = {}
    handle = layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    base: Any = model.get_base_model().model
    if architecture.family.name == "SmolVLM":
        base.connector(hidden)
    else:
        shuffled = base.pixel_shuffle(hidden.view(1, side, side, width), scale_factor=0.5)
        base.multi_modal_projector(shuffled.flatten(1, 2))
    handle.remove()
    added = seen["y"] - layer.base_layer(seen["x"])
    pooled = nn.functional.avg_pool2d(hidden.mT.view(1, width, side, side), 2).flatten(2).mT
    torch.testing.assert_close(added[..., :width], pooled, atol=1e-5, rtol=1e-5)


@each_family
def test_lora_and_full_train_the_familys_own_layers(name: str) -> None:
    model = tiny_family(name)
    config = preset("lora", model.config, lora_rank=2)
    assert config is not None
    lora = get_peft_model(model, config)
    names = [n for n, p in lora.named_parameters() if p.requires_grad]
    family = model_family(model)
    assert sum("lora_A" in n for n in names) == 7 * 3
    assert not any(f".{family.vision.path}." in n for n in names)
    assert any("modules_to_save" in n and family.projector in n for n in names)
    full = tiny_family(name)
    select_full(full)
    frozen = {n for n, p in full.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in full.named_parameters() if n.startswith(f"{family.vision.path}.")}


@each_family
def test_a_cache_given_by_the_caller_holds_tokens_alone(name: str) -> None:
    inputs, model = batch(name), adapted(name)
    argument = cache_argument(model)
    config = model.config.get_text_config()
    length = inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole = model(**inputs, use_cache=False).logits[:, -1]
        for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=length + 4)):
            out = model(**inputs, use_cache=True, **{argument: cache}).logits[:, -1]
            assert int(cache.get_seq_length()) == length
            torch.testing.assert_close(out, whole, atol=1e-4, rtol=1e-4)
