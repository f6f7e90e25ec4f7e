"""Collected attention equals that of the reference implementation (concatenate and overwrite prompts)."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import reference
from fixtures.cases import Case, make_case
from fixtures.models import PATCHES, batch_for, fill_adapter, tiny_llava, tiny_llava_next
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from m2pt_cli.analysis import attention
from m2pt_cli.analysis.attention import collect_language, collect_vision
from m2pt_cli.method.attention import WATCHER

ANSWER = 4


def oracle(base: Any, run: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's weights ``(heads, k + n, k + n)`` of the vision tower and of the language model, prompts first."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    handles = []
    for kept, layers in zip(
        found, (base.model.vision_tower.encoder.layers, base.model.language_model.layers), strict=True
    ):
        for layer in layers:
            handles.append(layer.self_attn.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out[1][0])))
    base.set_attn_implementation("eager")
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def collected(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Any:
    ids = batch["input_ids"][0].tolist()
    # The last ANSWER queries: the answer's last token, here 7, is never one.
    prompt, answer = ids[: len(ids) - ANSWER + 1], [*ids[len(ids) - ANSWER + 1 :], 7]
    images = {key: batch[key] for key in ("pixel_values", "image_sizes") if key in batch}
    return collect_language(model, prompt, answer, images, vision=True, **options)


def compare(
    model: nn.Module, batch: dict[str, Tensor], weights: tuple[list[Tensor], list[Tensor]], **sizes: int
) -> None:
    language, vision = collected(model, batch)
    assert (language.num_prompts, vision.num_prompts) == (sizes["textual"], sizes["visual"])
    assert len(language.received) == len(weights[1])
    for layer, expected in enumerate(weights[1]):
        real = expected[:, sizes["textual"] :].mean(0)  # (queries, keys), prompts have no queries
        np.testing.assert_allclose(language.received[layer, 0], real.mean(0), atol=1e-5)
        np.testing.assert_allclose(language.answer[layer, 0], real[-ANSWER:], atol=1e-5)
    # The last vision layer influences nothing and is left out.
    assert len(vision.received) == len(weights[0]) - 1
    for layer, expected in enumerate(weights[0][:-1]):
        real = expected[:, sizes["visual"] :].mean(0)
        np.testing.assert_allclose(vision.received[layer, 0], real.mean(0), atol=1e-5)
        np.testing.assert_allclose(vision.from_patches[layer, 0], real[-PATCHES:].mean(0), atol=1e-5)
    for array in (language.received, language.answer, vision.received, vision.from_patches):
        np.testing.assert_allclose(array.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("visual_tokens", ["patches", "official"])
@pytest.mark.parametrize(("decoder", "projector"), [("llama", "mlp"), ("mistral", "linear"), ("qwen2", "mlp")])
def test_an_adapter_attends_as_by_concatenation(visual_tokens: str, decoder: str, projector: str) -> None:
    base = tiny_llava(decoder=decoder, projector=projector)
    case = make_case(base, num_visual_prompts=3, num_textual_prompts=4, visual_tokens=visual_tokens)
    tokens = PATCHES + (3 if visual_tokens == "official" else 0)
    batch = batch_for(case.model, [14], image_tokens=tokens)
    weights = oracle(case.base, lambda: case.reference_logits(batch))
    compare(case.model, batch, weights, textual=4, visual=3)


def test_a_tower_without_class_token() -> None:
    case = make_case(tiny_llava(tower="siglip"), num_visual_prompts=3, num_textual_prompts=2)
    batch = batch_for(case.model, [12])
    compare(case.model, batch, oracle(case.base, lambda: case.reference_logits(batch)), textual=2, visual=3)


@pytest.mark.parametrize("kind", ["visual", "textual"])
def test_an_adapter_of_one_kind_of_prompts(kind: str) -> None:
    sizes = {"visual": 0, "textual": 0, kind: 5}
    case = make_case(tiny_llava(), num_visual_prompts=sizes["visual"], num_textual_prompts=sizes["textual"])
    batch = batch_for(case.model, [12])
    compare(case.model, batch, oracle(case.base, lambda: case.reference_logits(batch)), **sizes)


def plain_logits(base: Any, batch: dict[str, Tensor]) -> Tensor:
    none = [torch.zeros(0, 16)] * 4, [torch.zeros(0, 24)] * 3
    return reference.logits(base, batch, *none, base.model.multi_modal_projector)


def test_the_bare_base() -> None:
    base = tiny_llava()
    batch = batch_for(base, [12])
    other = copy.deepcopy(base)
    compare(base, batch, oracle(other, lambda: plain_logits(other, batch)), textual=0, visual=0)


def test_a_lora_adapter() -> None:
    model = get_peft_model(tiny_llava(), LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    fill_adapter(model, scale=0.2)  # at larger weights merging alone rounds to 1e-5
    batch = batch_for(model, [12])
    merged: Any = copy.deepcopy(model).merge_and_unload()
    weights = oracle(merged, lambda: plain_logits(merged, batch))
    compare(model.eval(), batch, weights, textual=0, visual=0)
    bare = oracle(base := tiny_llava(), lambda: plain_logits(base, batch))
    assert (weights[1][1] - bare[1][1]).abs().max() > 1e-2, "an adapter without effect would prove nothing"


@pytest.fixture
def case() -> Case:
    return make_case(tiny_llava(), num_visual_prompts=3, num_textual_prompts=4)


def test_heads_are_kept_apart_where_they_are_asked_for(case: Case) -> None:
    batch = batch_for(case.model, [12])
    expected = oracle(case.base, lambda: case.reference_logits(batch))[1]
    language, _ = collected(case.model, batch, heads=[2, 0])
    assert language.received.shape[:2] == (3, 2)
    for layer in range(3):
        for place, head in enumerate((2, 0)):
            real = expected[layer][head, 4:]
            np.testing.assert_allclose(language.received[layer, place], real.mean(0), atol=1e-5)
            np.testing.assert_allclose(language.answer[layer, place], real[-ANSWER:], atol=1e-5)


def test_heads_of_the_tower(case: Case) -> None:
    batch = batch_for(case.model, [12])
    expected = oracle(case.base, lambda: case.reference_logits(batch))[0]
    _, together = collected(case.model, batch, vision_heads=[1, 0])
    alone = collect_vision(case.model, {"pixel_values": batch["pixel_values"]}, heads=[1, 0])
    for vision in (together, alone):
        assert vision.received.shape == vision.from_patches.shape == (3, 2, 3 + 1 + PATCHES)
        for layer in range(3):
            for place, head in enumerate((1, 0)):
                real = expected[layer][head, 3:]
                np.testing.assert_allclose(vision.received[layer, place], real.mean(0), atol=1e-5)
                np.testing.assert_allclose(vision.from_patches[layer, place], real[1:].mean(0), atol=1e-5)


def test_a_map_is_dropped_before_its_layer_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    maps: list[weakref.ref[Tensor]] = []
    watched = attention._watched

    def counting(layers: Any, reduce: Any) -> Any:
        def checked(module: nn.Module, weights: Tensor) -> None:
            nothing_held()
            maps.append(weakref.ref(weights))
            reduce(module, weights)

        return watched(layers, checked)

    def nothing_held(*_: Any) -> None:
        assert [one for one in maps if one() is not None] == []

    monkeypatch.setattr(attention, "_watched", counting)
    base = case.model.get_base_model()
    layers = [*base.model.vision_tower.encoder.layers, *base.model.language_model.layers]
    handles = [layer.mlp.register_forward_pre_hook(nothing_held) for layer in layers]
    collected(case.model, batch_for(case.model, [12]))
    assert len(maps) == 3 + 3
    assert len(handles) == 4 + 3


@pytest.mark.parametrize("adapted", [True, False])
def test_watching_changes_nothing_and_leaves_nothing_behind(adapted: bool) -> None:
    """Whatever implementation the parts run in, they run in it while they are watched, too."""
    case = make_case(tiny_llava(), num_visual_prompts=3, num_textual_prompts=4)
    model = case.model if adapted else tiny_llava()
    base = model.get_base_model() if adapted else model
    names = ("m2pt_sdpa", "m2pt_sdpa") if adapted else ("sdpa", "sdpa")
    tower, decoder = base.model.vision_tower, base.model.language_model
    batch = batch_for(model, [12])
    seen = []

    def note(*_: Any) -> None:
        seen.append((tower.config._attn_implementation, decoder.config._attn_implementation))

    handles = [tower.register_forward_hook(note), decoder.register_forward_hook(note)]
    ids = batch["input_ids"][0].tolist()
    before = model(**batch).logits
    seen.clear()
    collect_language(model, ids, [7], {"pixel_values": batch["pixel_values"]})
    assert seen == [(names[0], "m2pt_sdpa")] * 2
    seen.clear()
    collect_vision(model, {"pixel_values": batch["pixel_values"]})
    assert seen == [("m2pt_sdpa", names[1])]
    with pytest.raises((RuntimeError, ValueError)):
        collect_language(model, ids, [7], {"pixel_values": torch.zeros(1, 3, 5, 5)})
    for handle in handles:
        handle.remove()
    assert torch.equal(model(**batch).logits, before)
    assert (tower.config._attn_implementation, decoder.config._attn_implementation) == names
    assert not any(WATCHER in module.__dict__ for module in model.modules())


def test_the_tower_alone_attends_as_with_the_language_model(case: Case) -> None:
    batch = batch_for(case.model, [12])
    _, together = collected(case.model, batch)
    alone = collect_vision(case.model, {"pixel_values": batch["pixel_values"]})
    np.testing.assert_array_equal(alone.received, together.received)
    np.testing.assert_array_equal(alone.from_patches, together.from_patches)


def test_tiles_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-NeXT: an overview and tiles, a row of the tower's batch each."""
    case = make_case(tiny_llava_next(), num_visual_prompts=2, num_textual_prompts=3)
    random = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 3, 3, 12, 12, generator=random)
    images = {"pixel_values": pixels, "image_sizes": torch.tensor([[12, 24]])}
    whole = collect_vision(case.model, images)
    assert whole.received.shape == (3, 1, 2 + 1 + PATCHES)
    np.testing.assert_allclose(whole.received.sum(-1), 1, atol=1e-5)
    parts = [
        collect_vision(
            case.model, {"pixel_values": part[:, None].repeat(1, 3, 1, 1, 1), "image_sizes": torch.tensor([[12, 24]])}
        )
        for part in pixels[0][:, None]
    ]
    np.testing.assert_allclose(whole.received, np.mean([part.received for part in parts], 0), atol=1e-5)
