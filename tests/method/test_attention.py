"""Prompts inside attention: generation, padding, masks, caches, kept prompt states, and no silent loss of prompts."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fixtures import reference
from fixtures.cases import Case, gradients, make_case
from fixtures.models import IMAGE_TOKEN, batch_for, checkpoint, prompts_of, tiny_llava, tiny_llava_next
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from m2pt_cli.method import MethodError
from m2pt_cli.method.attention import CALLS, WATCHER, attention_weights, few_tokens
from m2pt_cli.method.calls import cache_argument
from m2pt_cli.method.prompts import PromptedAttention, PromptStates

TEXTUAL = 4
TOKENS = 6
CACHE = cache_argument(tiny_llava())


@pytest.fixture
def case() -> Case:
    return make_case(tiny_llava(), num_visual_prompts=3, num_textual_prompts=TEXTUAL)


def ask(case: Case, padding: str = "left") -> dict[str, Tensor]:
    batch = batch_for(case.base, [9, 6, 12], padding=padding)
    del batch["labels"]
    return batch


def generate(case: Case, batch: dict[str, Any], **options: Any) -> Tensor:
    length = batch["input_ids"].shape[1] if "input_ids" in batch else 0
    # The image token would be read as an image.
    options = {"max_new_tokens": TOKENS, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN], **options}
    return case.model.generate(**batch, **options)[:, length:]


def expected_tokens(case: Case, batch: dict[str, Tensor]) -> Tensor:
    def step(grown: dict[str, Tensor]) -> Tensor:
        found = case.reference_logits(grown)
        found[..., IMAGE_TOKEN] = -torch.inf
        return found

    with torch.no_grad():
        return reference.greedy(step, batch, TOKENS)


def cached(cache: Any) -> dict[str, Any]:
    """A cache as an argument: transformers 5.24 gave it another name."""
    return {CACHE: cache}


def attentions(case: Case) -> list[PromptedAttention]:
    return [module for module in case.model.modules() if isinstance(module, PromptedAttention)]


# ---- generation ----


WAYS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_greedy_is_that_of_the_reference(decoder: str, attention: str) -> None:
    case = make_case(
        tiny_llava(decoder=decoder, attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL
    )
    batch = ask(case)
    expected = expected_tokens(case, batch)
    assert expected.unique().numel() > 5
    for way in ("dynamic cache", "no cache", "static cache"):
        assert torch.equal(generate(case, batch, **WAYS[way]), expected), way
    with case.model.disable_adapter():
        assert not torch.equal(generate(case, batch), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_generate(way: str, attention: str) -> None:
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    row = {"input_ids": torch.tensor([[1, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7]])}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    assert torch.equal(generate(case, row, **WAYS[way]), expected_tokens(case, row))


def test_llava_next_against_the_reference() -> None:
    case = make_case(tiny_llava_next(), num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    row = {"input_ids": torch.tensor([[1, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7]])}
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    expected = expected_tokens(case, row)
    for way, options in WAYS.items():
        assert torch.equal(generate(case, row, **options), expected), way


def test_beams_and_sampling_do_not_depend_on_the_cache(case: Case) -> None:
    batch = ask(case)
    for options in ({}, {"num_return_sequences": 3}):
        beams = [generate(case, batch, num_beams=3, use_cache=cached, **options) for cached in (True, False)]
        assert torch.equal(*beams)
    sampled = []
    for cached in (True, False):
        torch.manual_seed(0)
        sampled.append(generate(case, batch, do_sample=True, temperature=1.5, top_k=0, use_cache=cached))
    assert torch.equal(*sampled)


def test_a_row_alone_and_in_a_padded_batch(case: Case) -> None:
    batch = ask(case)
    together = generate(case, batch)
    for row in range(3):
        real = batch["attention_mask"][row].bool()
        alone = {
            "input_ids": batch["input_ids"][row, real][None],
            "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
            "pixel_values": batch["pixel_values"][row : row + 1],
        }
        assert torch.equal(generate(case, alone), together[row : row + 1])
        del alone["attention_mask"]
        assert torch.equal(generate(case, alone), together[row : row + 1])


def test_embeddings_instead_of_ids(case: Case) -> None:
    batch = ask(case)
    expected = expected_tokens(case, batch)
    llava = case.model.base_model.model.model
    with torch.no_grad():
        embeddings = llava.get_input_embeddings()(batch["input_ids"])
        features = torch.cat(llava.get_image_features(batch["pixel_values"], return_dict=True).pooler_output)
    embeddings[batch["input_ids"] == IMAGE_TOKEN] = features
    given = {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}
    for options in ({}, {"use_cache": False}, cached(DynamicCache())):
        assert torch.equal(generate(case, given, **options), expected)


# ---- caches ----


def test_a_conversation_goes_on_from_its_cache(case: Case) -> None:
    batch = {name: tensor[2:] for name, tensor in ask(case).items()}
    first = case.model.generate(
        **batch, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE_TOKEN], return_dict_in_generate=True
    )
    more = torch.cat([first.sequences, torch.tensor([[7, 8, 9, 10]])], 1)
    whole = {**batch, "input_ids": more, "attention_mask": torch.ones_like(more)}
    expected = generate(case, whole)
    # The cache holds tokens alone.
    assert first[CACHE].get_seq_length() == batch["input_ids"].shape[1] + 2
    assert first[CACHE].layers[0].keys.shape[2] == batch["input_ids"].shape[1] + 2
    follow = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    assert torch.equal(generate(case, follow, **cached(first[CACHE])), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_cache_that_was_given_is_the_one_that_grows(kind: str, attention: str) -> None:
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    batch = ask(case)
    cache: Any = DynamicCache()
    if kind == "static":
        cache = StaticCache(config=case.base.config.text_config, max_cache_len=64)
    with torch.no_grad():
        out = case.model(**batch, **cached(cache))
        assert out[CACHE] is cache and int(cache.get_seq_length()) == batch["input_ids"].shape[1]
        mask = batch["attention_mask"]
        torch.testing.assert_close(
            out.logits[mask.bool()], case.reference_logits(batch)[mask.bool()], atol=1e-4, rtol=1e-5
        )
        ids = batch["input_ids"]
        for new in (1, 3, 1):  # one token alone, and several behind a cache
            step = torch.randint(3, IMAGE_TOKEN, (3, new))
            mask = torch.cat([mask, torch.ones(3, new, dtype=torch.long)], 1)
            found = case.model(input_ids=step, attention_mask=mask, **cached(cache)).logits
            ids = torch.cat([ids, step], 1)
            expected = case.reference_logits({**batch, "input_ids": ids, "attention_mask": mask})
            torch.testing.assert_close(found, expected[:, -new:], atol=1e-4, rtol=1e-5)


# ---- masks ----


def packed_mask(lengths: list[int]) -> Tensor:
    """Each text of a row sees itself alone: ``(1, 1, n, n)``."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((owner[:, None] == owner) & torch.ones(len(owner), len(owner)).tril().bool())[None, None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bool", "additive", "by positions"])
def test_packed_texts(attention: str, kind: str) -> None:
    """Several texts in one row, apart by a four-dimensional mask or by position ids that begin anew."""
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    lengths = [5, 8]
    rows = [batch_for(case.base, [length], images=[0], seed=length) for length in lengths]
    with torch.no_grad():
        expected = torch.cat([case.reference_logits(row) for row in rows], 1)
    mask: Tensor | None = packed_mask(lengths)
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    given: dict[str, Any] = {"input_ids": torch.cat([row["input_ids"] for row in rows], 1), "position_ids": positions}
    if kind != "by positions":
        given["attention_mask"] = mask
    with torch.no_grad():
        for use_cache in (False, True) if kind != "by positions" else (False,):
            found = case.model(**given, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    checkpoint(case.model.base_model.model, reentrant=True)
    found = case.model.train()(**given, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_questions_behind_a_shared_cache(attention: str) -> None:
    """Two questions in one row behind the prompts and a common prefix, as the answer engine asks them."""
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    whole = batch_for(case.base, [14])
    ids, past = whole["input_ids"], 18
    tails = [ids[:, past:], torch.tensor([[11, 12, 13]])]
    with torch.no_grad():
        cache = case.model(input_ids=ids[:, :past], pixel_values=whole["pixel_values"], use_cache=True)[CACHE]
        lengths = [tail.shape[1] for tail in tails]
        mask = torch.cat([torch.ones(1, 1, sum(lengths), past, dtype=torch.bool), packed_mask(lengths)], -1)
        positions = torch.cat([torch.arange(past, past + length) for length in lengths])[None]
        found = case.model(
            input_ids=torch.cat(tails, 1), attention_mask=mask, position_ids=positions, **cached(cache)
        ).logits
        for tail, part in zip(tails, found.split(lengths, 1), strict=True):
            asked = torch.cat([ids[:, :past], tail], 1)
            expected = case.reference_logits(
                {"input_ids": asked, "attention_mask": torch.ones_like(asked), "pixel_values": whole["pixel_values"]}
            )
            torch.testing.assert_close(part, expected[:, past:], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_additive_mask_of_another_precision(attention: str) -> None:
    case = make_case(
        tiny_llava(dtype=torch.bfloat16, attention=attention), num_visual_prompts=0, num_textual_prompts=TEXTUAL
    )
    row = batch_for(case.base, [6], images=[0])
    mask = torch.zeros(1, 1, 6, 6).masked_fill(~packed_mask([6]), torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = case.model(**row).logits
        found = case.model(input_ids=row["input_ids"], attention_mask=mask).logits
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_masks_that_fit_nothing(case: Case) -> None:
    ids = torch.full((1, 5), 7)
    for mask, message in (
        (torch.ones(1, 5 + TEXTUAL, dtype=torch.long), "9 columns for 5 tokens"),
        (torch.ones(1, 3, dtype=torch.long), "3 columns for 5 tokens"),
        (torch.ones(1, 1, 5, 5 + TEXTUAL, dtype=torch.bool), "9 columns for 5 tokens"),
        (torch.ones(1, 1, 5, 5, dtype=torch.long), "bool or float"),
    ):
        with pytest.raises(MethodError, match=message):
            case.model(input_ids=ids, attention_mask=mask)
    for width, dtype in ((1, torch.long), (2, torch.bool)):
        with pytest.raises(MethodError, match="bool or float" if dtype == torch.long else "2 columns for 1 tokens"):
            case.model(input_ids=ids[:, :1], attention_mask=torch.ones(1, 1, 1, width, dtype=dtype))


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_a_hidden_first_token_needs_positions(kind: str, case: Case) -> None:
    """Padding or several texts in a mask with four dimensions: the mask does not say where a text begins."""
    batch = {name: tensor for name, tensor in ask(case).items() if name != "pixel_values"}
    batch["input_ids"] = batch["input_ids"].clamp(max=IMAGE_TOKEN - 1)
    real, length = batch["attention_mask"].bool(), batch["input_ids"].shape[1]
    with torch.no_grad():
        expected = case.reference_logits(batch)
        mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None, None]
        positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if kind == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        given = {"input_ids": batch["input_ids"], "attention_mask": mask}
        found = case.model(**given, position_ids=positions).logits
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)
        with pytest.raises(MethodError, match="hides the first token from the last one"):
            case.model(**given)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_positions_that_are_given(case: Case, padding: str) -> None:
    """Positions count tokens alone; with padding in front they are made from the mask where none are given."""
    batch = ask(case, padding=padding)
    real = batch["attention_mask"].bool()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = case.reference_logits(batch)
        made = case.model(**batch).logits
        given = case.model(**batch, position_ids=positions).logits
        shifted = case.model(**batch, position_ids=positions + 3).logits
    torch.testing.assert_close(made[real], expected[real], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(given[real], expected[real], atol=1e-4, rtol=1e-5)
    assert (shifted - expected)[real].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_prompts_stay_visible_in_sliding_windows(decoder: str, options: dict[str, Any]) -> None:
    """Of the tokens a layer sees the last ones alone, of the prompts all; so concatenation is no oracle here."""
    case = make_case(tiny_llava(decoder=decoder, **options), num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    batch = batch_for(case.base, [16], images=[0])
    kinds = getattr(case.base.config.text_config, "layer_types", None) or ["sliding_attention"] * 3
    windows = [8 if kind == "sliding_attention" else 99 for kind in kinds]
    assert 8 in windows
    expected = windowed(case, batch, windows)
    with torch.no_grad():
        for use_cache in (False, True):
            found = case.model(**batch, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
        cache = case.model(input_ids=batch["input_ids"][:, :11], use_cache=True)[CACHE]
        for place in range(11, 16):
            found = case.model(input_ids=batch["input_ids"][:, place : place + 1], **cached(cache)).logits
            torch.testing.assert_close(found, expected[:, place : place + 1], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def windowed(case: Case, batch: dict[str, Tensor], windows: list[int]) -> Tensor:
    """The reference for a text without padding, with a window on tokens in some layers."""
    ids, prompts = batch["input_ids"], prompts_of(case.model, False)
    decoder = case.base.model.language_model
    count = TEXTUAL
    hidden = torch.cat([prompts[0][None], decoder.embed_tokens(ids)], 1)
    places = torch.arange(hidden.shape[1])
    rotary = decoder.rotary_emb(hidden, position_ids=places[None])
    for layer, own, window in zip(decoder.layers, prompts, windows, strict=True):
        hidden = torch.cat([own[None], hidden[:, count:]], 1)
        visible = (places <= places[:, None]) & ((places < count) | (places > places[:, None] - window))
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, position_ids=places[None])
    return case.base.lm_head(decoder.norm(hidden)[:, count:])


# ---- the forms of the attention itself ----


def test_a_text_without_padding_needs_no_mask(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With prompts as queries too the kernel gets as many keys as queries and no mask: the flash kernel's condition."""
    seen: list[tuple[Any, ...]] = []
    kernel = nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.append((query.shape[2], key.shape[2], options.get("attn_mask") is None, options.get("is_causal")))
        return kernel(query, key, value, **options)

    batch = batch_for(case.base, [10, 10])
    del batch["labels"]
    length = batch["input_ids"].shape[1]
    expected = case.reference_logits(batch)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    for given in (batch, {name: tensor for name, tensor in batch.items() if name != "attention_mask"}):
        for use_cache in (False, True):
            seen.clear()
            found = case.model(**given, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
            text = [call for call in seen if call[0] > 13]
            assert text == [(length + TEXTUAL, length + TEXTUAL, True, True)] * 3


@pytest.mark.parametrize("kind", ["none", "bool", "additive"])
@pytest.mark.parametrize("new", [1, 3])
def test_few_tokens(new: int, kind: str) -> None:
    random = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, new, 8, generator=random)
    key, value = torch.randn(2, 2, 2, 9, 8, generator=random)
    states = PromptStates(*torch.randn(2, 1, 2, 3, 8, generator=random))
    mask = None
    if kind != "none":
        mask = torch.rand(2, 1, new, 9, generator=random) > 0.4
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = few_tokens(query, key, value, mask, states, 0.3)
    keys, values = (
        torch.cat([front.expand(2, -1, -1, -1), own], 2).repeat_interleave(2, 1)
        for front, own in zip(states, (key, value), strict=True)
    )
    front = None if mask is None else nn.functional.pad(mask, (3, 0), value=True if mask.dtype == torch.bool else 0.0)
    expected = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=front, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_dropout_of_one_token_takes_the_general_form(case: Case) -> None:
    text = case.model.base_model.model.model.language_model
    for layer in text.layers:
        layer.self_attn.base_layer.attention_dropout = 0.5
    one = {"input_ids": torch.full((1, 1), 7)}
    with torch.no_grad():
        calm = [case.model.eval()(**one).logits for _ in range(2)]
        wild = [case.model.train()(**one).logits for _ in range(2)]
    assert torch.equal(*calm) and not torch.equal(*wild)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_watcher_sees_what_explicit_softmax_gives(attention: str) -> None:
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    batch = ask(case)
    seen: list[Tensor] = []
    layer = case.model.base_model.model.model.language_model.layers[0].self_attn
    layer.base_layer.__dict__[WATCHER] = lambda module, weights: seen.append(weights)
    with torch.no_grad():
        expected = case.model(**batch).logits
        del layer.base_layer.__dict__[WATCHER]
        assert torch.equal(case.model(**batch).logits, expected)
    (weights,) = seen
    length = batch["input_ids"].shape[1]
    assert weights.shape == (3, 4, length, TEXTUAL + length)
    real = batch["attention_mask"].bool()
    rows = weights.transpose(1, 2)[real]
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]))
    hidden_keys = ~real[:, None, None, :].expand(-1, 4, length, -1)
    seen_queries = real[:, None, :, None].expand(-1, 4, -1, length)
    assert weights[..., TEXTUAL:][hidden_keys & seen_queries].max() < 1e-6


def test_scores_that_can_not_be_watched() -> None:
    query, key = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2, 4)
    with pytest.raises(MethodError, match="softcap"):
        attention_weights(nn.Identity(), query, key, None, None, softcap=30.0)


def test_output_attentions_have_the_prompts_in_front() -> None:
    case = make_case(tiny_llava(attention="eager"), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    batch = ask(case)
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        out = case.model(**batch, output_attentions=True)
    assert [tuple(weights.shape) for weights in out.attentions] == [(3, 4, length, TEXTUAL + length)] * 3


# ---- gradients ----


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_through_given_embeddings_under_checkpointing(reentrant: bool) -> None:
    base = tiny_llava()
    case = make_case(base, num_visual_prompts=0, num_textual_prompts=TEXTUAL, interaction="none")
    batch = batch_for(base, [9, 6], images=[0, 0])
    expected = gradients(case.trained(), reference.loss(case.reference_logits(batch), batch["labels"]))
    checkpoint(case.model.base_model.model, reentrant=reentrant)
    embeddings = case.base.get_input_embeddings()(batch.pop("input_ids")).detach()
    # A reentrant checkpoint passes gradients on only if its input needs one; transformers sees to that for ids.
    embeddings.requires_grad_(reentrant)
    case.model.train()(inputs_embeds=embeddings, **batch).loss.backward()
    for name, parameter in case.trained().items():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-3)


# ---- nothing silent ----


def test_another_implementation_set_later_keeps_the_prompts(case: Case) -> None:
    batch = ask(case)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = case.reference_logits(batch)
        for name in ("eager", "sdpa", "m2pt_eager", "m2pt_sdpa"):
            case.model.set_attn_implementation(name)
            found = case.model(**batch).logits
            torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)
        for module in attentions(case):
            module.base_layer.config._attn_implementation = "flex_attention"
        with pytest.raises(MethodError, match="never tested on attn_implementation='flex_attention'"):
            case.model(**batch)


def test_an_attention_that_does_not_call_its_function(case: Case) -> None:
    class Deaf(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return torch.zeros_like(hidden_states), None

    for part in ("language_model.layers", "vision_tower.encoder.layers"):
        layer = case.model.base_model.model.model.get_submodule(part)[1].self_attn
        own, layer.base_layer = layer.base_layer, Deaf(layer.base_layer)
        with pytest.raises(MethodError, match="Deaf did not call the attention function"):
            case.model(**ask(case))
        with torch.no_grad(), case.model.disable_adapter():
            assert torch.isfinite(case.model(**ask(case)).logits).all()
        layer.base_layer = own
    assert torch.isfinite(case.model(**ask(case)).logits).all()


def test_the_name_of_the_attention_is_given_back() -> None:
    def names(model: Any) -> set[str]:
        return {model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation}

    for attention in ("sdpa", "eager"):
        case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
        llava = case.model.base_model.model
        assert names(llava) == {f"m2pt_{attention}"}
        assert "m2pt_" not in llava.config.to_json_string()
        case.model.add_adapter("other", case.config)
        case.model.delete_adapter("other")
        assert names(llava) == {f"m2pt_{attention}"}
        case.model.delete_adapter("default")
        assert names(llava) == {attention}
        case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
        bare = case.model.unload()
        assert names(bare) == {attention}
        assert not any(CALLS in module.__dict__ for module in bare.modules())


def test_rows_of_several_adapters_are_refused(case: Case) -> None:
    batch = ask(case)
    with pytest.raises(MethodError, match="adapter_names"):
        case.model(**batch, adapter_names=["default"] * 3)
    with pytest.raises(MethodError, match="adapter_names"):
        generate(case, batch, adapter_names=["default"] * 3)


# ---- states that are kept between calls ----


def test_kept_states_follow_the_weights(case: Case) -> None:
    batch = ask(case)
    real = batch["attention_mask"].bool()

    def assert_current(change: str) -> None:
        with torch.no_grad():
            found = case.model(**batch).logits
            case.base = copy.deepcopy(case.model).unload()  # the reference with the changed weights
            expected = case.reference_logits(batch)
            torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5, msg=change)
            assert torch.equal(case.model(**batch).logits, found), change

    assert_current("first call")
    layer = case.model.base_model.model.model.language_model.layers[1]
    prompts = layer.self_attn.m2pt_prompts["default"]
    prompts.data = prompts.data * 1.5
    assert_current("prompts.data")
    with torch.no_grad():
        prompts.mul_(0.5)
    assert_current("in place")
    with torch.no_grad():
        layer.self_attn.base_layer.v_proj.weight.mul_(2)
    assert_current("weights of the base")
    with torch.no_grad():
        layer.input_layernorm.weight.mul_(2)
    assert_current("norm")
    layer.self_attn.base_layer.k_proj.weight = nn.Parameter(layer.self_attn.base_layer.k_proj.weight * 2)
    assert_current("another parameter")
    case.model.train()
    case.model.eval()
    assert_current("train()")
    case.model.load_state_dict({name: 0.5 * tensor for name, tensor in case.model.state_dict().items()})
    assert_current("load_state_dict")
    case.model.to(torch.float64)
    case.model.to(torch.float32)
    assert_current("to()")


CHANGES: dict[str, Callable[[Any, nn.Module], object]] = {
    "a buffer": lambda layer, linear: linear.scale.mul_(2),
    "another buffer": lambda layer, linear: linear.register_buffer("scale", linear.scale * 2),
    "a module in a module": lambda layer, linear: setattr(linear, "inner", nn.Linear(24, linear.out_features)),
    "another norm": lambda layer, linear: setattr(layer, "input_layernorm", nn.LayerNorm(24)),
    "nothing": lambda layer, linear: None,
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_states_that_come_from_other_things_than_parameters(change: str, case: Case) -> None:
    class Scaled(nn.Module):
        """A linear layer as quantisation makes them: with buffers, and modules inside."""

        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner, self.out_features = inner, inner.out_features
            self.register_buffer("scale", torch.ones(inner.out_features))

        def forward(self, hidden: Tensor) -> Tensor:
            return self.inner(hidden) * self.scale

    batch = ask(case)
    layer = case.model.base_model.model.model.language_model.layers[1]
    linear = layer.self_attn.base_layer.v_proj = Scaled(layer.self_attn.base_layer.v_proj)
    before = case.model(**batch).logits
    CHANGES[change](layer, linear)
    after = case.model(**batch).logits
    assert torch.equal(after, before) == (change == "nothing")
    for attention in attentions(case):
        attention._kept = None
    assert torch.equal(case.model(**batch).logits, after)


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_a_step_of_a_fused_optimiser_is_seen(optimiser: Any, case: Case) -> None:
    """These change parameters without a new version (torch 2.14)."""
    batch = batch_for(case.base, [9, 6])
    real = batch["attention_mask"].bool()
    trained = [p for p in case.model.parameters() if p.requires_grad]
    steps = optimiser(trained, lr=0.1, fused=True)
    for mode in (True, False):
        case.model.train(mode)
        for _ in range(2):
            case.model(**batch).loss.backward()
            steps.step()
            steps.zero_grad()
            with torch.no_grad():
                found = case.model(**batch).logits
                torch.testing.assert_close(found[real], case.reference_logits(batch)[real], atol=1e-4, rtol=1e-4)


def test_frozen_prompts_pass_gradients_to_trained_weights(case: Case) -> None:
    case.model.requires_grad_(False)
    weight = case.model.base_model.model.model.language_model.layers[1].self_attn.base_layer.v_proj.weight
    own = case.base.model.language_model.layers[1].self_attn.v_proj.weight
    batch = batch_for(case.base, [9, 6])
    for one in (weight, own):
        one.requires_grad_(True)
    case.model(**batch).loss.backward()
    reference.loss(case.reference_logits(batch), batch["labels"]).backward()
    torch.testing.assert_close(weight.grad, own.grad, atol=2e-5, rtol=1e-3)


def test_threads_share_a_model(case: Case) -> None:
    """A server answers several at once; prompts of one call must not be taken from another."""
    batch = ask(case)
    with torch.inference_mode():
        expected = case.model(**batch).logits
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def run(number: int) -> float:
        if number % 5 == 0:
            case.model.eval()  # and what is kept is computed again
        with torch.inference_mode():
            return float((case.model(**batch).logits - expected).abs().max())

    try:
        with ThreadPoolExecutor(3) as pool:
            assert max(pool.map(run, range(60))) < 1e-5
    finally:
        sys.setswitchinterval(interval)


def test_a_call_registers_nothing(case: Case) -> None:
    before = [name for name, _ in case.model.named_parameters(remove_duplicate=False)]
    for module in attentions(case):
        module.base_layer.register_forward_hook(lambda *_: names.append(list(case.model.state_dict())))
    names: list[list[str]] = []
    expected = list(case.model.state_dict())
    case.model(**ask(case))
    assert names and all(one == expected for one in names)
    assert [name for name, _ in case.model.named_parameters(remove_duplicate=False)] == before


def test_states_with_gradients_are_never_kept(case: Case) -> None:
    batch = ask(case)
    with torch.inference_mode():
        case.model(**batch)
    for _ in range(2):  # a kept graph would fail in the second backward pass
        case.model(**batch).logits.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in prompts_of(case.model, False))


def test_copies_and_pickles_keep_their_own_prompts(case: Case) -> None:
    batch = ask(case)
    twins = [pickle.loads(pickle.dumps(case.model))]  # before its first call: transformers' own hooks can't be pickled
    with torch.no_grad():
        expected = case.model(**batch).logits
        for twin in (copy.deepcopy(case.model), *twins):
            assert torch.equal(twin(**batch).logits, expected)
            for prompts in prompts_of(twin, False) + prompts_of(twin, True):
                prompts += 1
            assert (twin(**batch).logits - expected).abs().max() > 0.1
            assert torch.equal(case.model(**batch).logits, expected)


# ---- torch.compile ----


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [[9, 9], [9, 6, 12]])
def test_a_compiled_model(case: Case, lengths: list[int]) -> None:
    batch = batch_for(case.base, lengths, padding="left")
    del batch["labels"]
    real = batch["attention_mask"].bool()
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(case.model)(**batch, use_cache=False).logits
    torch.testing.assert_close(found[real], case.reference_logits(batch)[real], atol=1e-4, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
