"""Skipping unused computation changes neither logits nor caches, and layers get the expected positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures.models import batch_for, fill_adapter, tiny_llava, tiny_llava_next
from peft import get_peft_model

from m2pt_cli.generation.partial_forward import partial_forward
from m2pt_cli.method import preset
from m2pt_cli.method.architecture import read_architecture
from m2pt_cli.method.calls import cache_argument

CACHE = cache_argument(tiny_llava())
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2, siglip": {"decoder": "qwen2", "tower": "siglip"},
    "mistral, eager": {"decoder": "mistral", "attention": "eager"},
    "an early feature layer": {"feature_layer": 1},
    "the last feature layer": {"feature_layer": -1},
    "two feature layers": {"feature_layer": [1, -2]},
}


def with_adapter(base: Any, method: str) -> Any:
    if method == "bare":
        return base
    config: Any = preset(method, base.config, num_visual_prompts=2, num_textual_prompts=3)
    model = get_peft_model(base, config)
    fill_adapter(model, scale=0.1 if method == "lora" else 0.5)
    return model.eval()


@torch.inference_mode()
def assert_same(model: Any, inputs: dict[str, torch.Tensor], columns: list[int] | None) -> None:
    """Logits and cache inside `partial_forward` are those outside, and the model comes out of it as it went in."""
    del inputs["labels"]
    whole = model(**inputs, use_cache=True)
    kept = None if columns is None else torch.tensor(columns)
    with partial_forward(model, kept):
        spared = model(**inputs, use_cache=True, logits_to_keep=0 if kept is None else kept)
    wanted = whole.logits if kept is None else whole.logits[:, kept]
    assert spared.logits.shape == wanted.shape
    torch.testing.assert_close(spared.logits, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(spared[CACHE].layers, whole[CACHE].layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.values, theirs.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(**inputs, use_cache=True).logits, whole.logits)


@pytest.mark.parametrize("method", ["bare", "m2pt", "lora"])
@pytest.mark.parametrize("name", BASES)
def test_logits_and_cache_are_those_of_the_whole_model(name: str, method: str) -> None:
    model = with_adapter(tiny_llava(**BASES[name]), method)
    inputs = batch_for(model, [6, 11, 8], padding="left")
    width = inputs["input_ids"].shape[1]
    for columns in ([width - 1], [width - 4, width - 2, width - 1], None):
        assert_same(model, dict(inputs), columns)


def test_a_row_without_padding_and_a_base_with_tiles_are_no_exception() -> None:
    model = with_adapter(tiny_llava(), "m2pt")
    inputs = batch_for(model, [7])
    assert_same(model, inputs, [inputs["input_ids"].shape[1] - 1])
    text = batch_for(tiny_llava_next(), [9], images=[0])
    assert_same(tiny_llava_next(), text, [text["input_ids"].shape[1] - 1])


@pytest.mark.parametrize("method", ["bare", "m2pt", "lora"])
def test_layers_above_the_features_are_not_run_and_the_last_mlp_sees_few_columns(method: str) -> None:
    model = with_adapter(tiny_llava(), method)
    llava: Any = model if method == "bare" else model.get_base_model()
    inputs = batch_for(model, [7, 9], padding="left")
    del inputs["labels"]
    seen: list[tuple[str, torch.Size]] = []

    def note(name: str) -> Any:
        return lambda module, args, output: seen.append((name, args[0].shape))

    tower, decoder = llava.model.vision_tower.encoder.layers, llava.model.language_model.layers
    run = read_architecture(llava).layers_run
    assert run == len(tower) - 1
    for i, layer in enumerate(tower):
        layer.layer_norm2.register_forward_hook(note(f"vision {i}"))
    for i, layer in enumerate(decoder):
        layer.mlp.gate_proj.register_forward_hook(note(f"text {i}"))
    width = inputs["input_ids"].shape[1]
    with torch.inference_mode(), partial_forward(model, torch.tensor([width - 3, width - 1])):
        model(**inputs, use_cache=True)
    names = [name for name, _ in seen]
    assert [name for name in names if name.startswith("vision")] == [f"vision {i}" for i in range(run)]
    columns = {name: shape[1] for name, shape in seen if name.startswith("text")}
    assert columns == {f"text {i}": width for i in range(len(decoder) - 1)} | {f"text {len(decoder) - 1}": 2}


def test_a_forward_that_was_replaced_before_is_put_back() -> None:
    model: Any = tiny_llava()
    layer = model.model.vision_tower.encoder.layers[-1]
    own = layer.forward
    layer.forward = own
    with partial_forward(model, None):
        assert layer.forward is not own
    assert layer.__dict__["forward"] is own
    del layer.forward
    with partial_forward(model, None):
        pass
    assert "forward" not in layer.__dict__
