"""Vision towers, feature layers, several images and tiles, and the authors' visual tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixtures import reference
from fixtures.cases import Case, gradients, make_case
from fixtures.models import (
    IMAGE_SIZE,
    IMAGE_TOKEN,
    PATCHES,
    batch_for,
    checkpoint,
    fill_adapter,
    prompts_of,
    tiny_llava,
    tiny_llava_next,
)
from peft import get_peft_model
from torch import Tensor

from m2pt_cli.method import M2PTConfig, MethodError

SMALL = {"num_visual_prompts": 3, "num_textual_prompts": 2}


def check(case: Case, batch: dict[str, Tensor]) -> None:
    real = batch["attention_mask"].bool()
    expected = case.reference_logits(batch)
    trained = case.trained()
    expected_gradients = gradients(trained, reference.loss(expected, batch["labels"]))
    out = case.model(**batch)
    torch.testing.assert_close(out.logits[real], expected[real], atol=1e-4, rtol=1e-5)
    found = gradients(trained, out.loss)
    for name in trained:
        torch.testing.assert_close(found[name], expected_gradients[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_towers_and_decoders(tower: str, decoder: str) -> None:
    case = make_case(tiny_llava(tower=tower, decoder=decoder), **SMALL, train_lm_head=True)
    check(case, batch_for(case.base, [9, 6], padding="left"))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("feature_layer", [-1, -2, -3, 1, [1, 3], [-2, -4]])
def test_feature_layers(tower: str, feature_layer: Any) -> None:
    base = tiny_llava(tower=tower, feature_layer=feature_layer)
    case = make_case(base, **SMALL)
    check(case, batch_for(base, [9, 6]))
    run = max(i % 5 for i in ([feature_layer] if isinstance(feature_layer, int) else feature_layer))
    case.model(**batch_for(base, [9, 6])).loss.backward()
    assert [prompts.grad is not None for prompts in prompts_of(case.model, True)] == [i < run for i in range(4)]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("interaction", ["projector", "residual", "none"])
def test_official_tokens(interaction: str, padding: str) -> None:
    case = make_case(tiny_llava(), **SMALL, visual_tokens="official", interaction=interaction)
    batch = batch_for(case.base, [9, 6], padding=padding, image_tokens=PATCHES + 3)
    assert case.config.extra_image_tokens == 3
    check(case, batch)
    checkpoint(case.model.base_model.model, reentrant=True)
    case.model.train()(**batch).loss.backward()
    last = prompts_of(case.model, True)[-1].grad
    assert last is not None and not last[0].any() and last[1:].any()


def test_official_tokens_without_prompts_are_the_patches() -> None:
    options = {"num_visual_prompts": 0, "num_textual_prompts": 2, "visual_tokens": "official"}
    case = make_case(tiny_llava(), **options)
    assert case.config.extra_image_tokens == 0
    check(case, batch_for(case.base, [9, 6]))


def test_image_tokens_of_another_adapter() -> None:
    case = make_case(tiny_llava(), **SMALL, visual_tokens="official")
    official = batch_for(case.base, [9, 6], image_tokens=PATCHES + 3)
    patches = batch_for(case.base, [9, 6])
    with pytest.raises(MethodError, match=r"holds 18 image tokens for 2 image.*adapter 'default' an image has 12"):
        case.model(**patches)
    with case.model.disable_adapter():
        with pytest.raises(MethodError, match=r"holds 24 image tokens for 2 image.*without an adapter an image has 9"):
            case.model(**official)
        assert torch.isfinite(case.model(**patches).loss)
    case.model.add_adapter("patches", M2PTConfig(**SMALL))
    case.model.set_adapter("patches")
    assert torch.isfinite(case.model(**patches).loss)
    with pytest.raises(MethodError, match="adapter 'patches' an image has 9"):
        case.model(**official)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_several_images_in_one_text_and_none(padding: str) -> None:
    case = make_case(tiny_llava(), **SMALL)
    check(case, batch_for(case.base, [9, 12, 7], images=[2, 3, 0], padding=padding))
    check(case, batch_for(case.base, [9, 12], images=[0, 0], padding=padding))


def test_another_feature_layer_than_the_adapters() -> None:
    case = make_case(tiny_llava(), **SMALL)
    batch = batch_for(case.base, [9])
    with pytest.raises(MethodError, match="vision_feature_layer=-2, not -1"):
        case.model(**batch, vision_feature_layer=-1)
    with pytest.raises(MethodError, match="vision_feature_select_strategy='default', not 'full'"):
        case.model(**batch, vision_feature_select_strategy="full")
    assert torch.isfinite(case.model(**batch, vision_feature_layer=-2).loss)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tower": "siglip"}, "SiglipVisionModel has no class token"),
        ({"feature_layer": -1}, "the feature layer is the last one"),
        ({"feature_layer": [-2, -3]}, "2 feature layers"),
    ],
)
def test_official_tokens_where_they_mean_nothing(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(MethodError, match=reason):
        get_peft_model(tiny_llava(**options), M2PTConfig(visual_tokens="official"))


def next_batch(model: Any, sizes: list[list[int]]) -> dict[str, Tensor]:
    """One image a row, cut into tiles as LLaVA-NeXT's processor does."""
    random = torch.Generator().manual_seed(0)
    best = {(12, 24): 3, (24, 12): 3, (24, 24): 5}
    tiles = [best[tuple(size)] for size in sizes]
    pixels = torch.zeros(len(sizes), max(tiles), 3, IMAGE_SIZE, IMAGE_SIZE)
    for row, count in enumerate(tiles):
        pixels[row, :count] = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=random)
    # The whole image, then the rows of the tiles' patches, each with one newline.
    counts = [PATCHES + (size[0] // 4) * (size[1] // 4 + 1) for size in sizes]
    rows = [[1, 5, *[IMAGE_TOKEN] * count, 8, 9, 10] for count in counts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels,
        "image_sizes": torch.tensor(sizes),
    }


@pytest.mark.parametrize("sizes", [[[24, 24]], [[12, 24], [24, 24], [24, 12]]])
def test_llava_next_with_any_number_of_tiles(sizes: list[list[int]]) -> None:
    base = tiny_llava_next()
    batch = next_batch(base, sizes)
    bare = base.model.get_image_features(batch["pixel_values"], batch["image_sizes"], return_dict=True).pooler_output
    case = make_case(base, **SMALL, interaction="none")
    llava = case.model.base_model.model.model

    def packed(tower: Any) -> list[Tensor]:
        """LLaVA-NeXT's own packing of features that the oracle computes tile by tile."""
        tiles = [{(12, 24): 3, (24, 12): 3, (24, 24): 5}[tuple(size)] for size in sizes]
        features = [
            case.base.model.multi_modal_projector(
                reference.image_features(case.base, batch["pixel_values"][row, :count], tower)
            )
            for row, count in enumerate(tiles)
        ]
        return case.base.model.pack_image_features(
            features, batch["image_sizes"], "default", case.base.model.image_newline
        )[0]

    with torch.no_grad():
        found = llava.get_image_features(batch["pixel_values"], batch["image_sizes"], return_dict=True).pooler_output
        for own, expected, without in zip(found, packed(prompts_of(case.model, True)), bare, strict=True):
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-5)
            assert (own - without).abs().max() > 0.1
        embeddings = case.base.get_input_embeddings()(batch["input_ids"])
        embeddings[batch["input_ids"] == IMAGE_TOKEN] = torch.cat(found)
        out = case.model(**batch).logits
        same = case.model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(out[real], same[real], atol=1e-5, rtol=1e-5)
        tokens = [
            case.model.generate(**batch, max_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE_TOKEN], use_cache=c)
            for c in (True, False)
        ]
    assert torch.equal(*tokens)


def test_llava_next_trains_and_refuses_official_tokens() -> None:
    model = get_peft_model(tiny_llava_next(), M2PTConfig(**SMALL)).train()
    fill_adapter(model)
    batch = next_batch(model, [[24, 24], [12, 24]])
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert [prompts.grad is not None for prompts in prompts_of(model, True)] == [True, True, True, False]
    assert all(prompts.grad.any() for prompts in prompts_of(model, False))
    with pytest.raises(MethodError, match="LlavaNextForConditionalGeneration"):
        get_peft_model(tiny_llava_next(), M2PTConfig(visual_tokens="official"))
