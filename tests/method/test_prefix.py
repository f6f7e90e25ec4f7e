"""Positions, masks and caches around the language model: generation in every form, calls that would lose prompts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_TOKEN, batch_for, tiny_llava
from torch import Tensor
from transformers import DynamicCache, StaticCache

from m2pt_cli.method import MethodError, PromptedCache, prefix_cache, real_positions

from . import reference
from .cases import Case, gradients, make_case

TEXTUAL = 4
TOKENS = 6


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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_greedy_is_that_of_the_reference(decoder: str, attention: str) -> None:
    case = make_case(
        tiny_llava(decoder=decoder, attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL
    )
    batch = ask(case)
    expected = expected_tokens(case, batch)
    assert expected.unique().numel() > 5
    assert torch.equal(generate(case, batch), expected)
    assert torch.equal(generate(case, batch, use_cache=False), expected)
    with case.model.disable_adapter():
        assert not torch.equal(generate(case, batch), expected)


def test_beams_and_sampling_do_not_depend_on_the_cache(case: Case) -> None:
    batch = ask(case)
    beams = [generate(case, batch, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)
    several = [generate(case, batch, num_beams=3, num_return_sequences=3, use_cache=c) for c in (True, False)]
    assert torch.equal(*several)
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
    for options in ({}, {"use_cache": False}, {"past_key_values": case.model.base_model.prefix_cache(3)}):
        assert torch.equal(generate(case, given, **options), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_gradients_through_given_embeddings_under_checkpointing(reentrant: bool, every: int) -> None:
    base = tiny_llava()
    case = make_case(base, num_visual_prompts=0, num_textual_prompts=TEXTUAL, interaction="none")
    batch = batch_for(base, [9, 6], images=[0, 0])
    expected = gradients(case.trained(), reference.loss(case.reference_logits(batch), batch["labels"]))
    layers = case.model.base_model.model.model.language_model.layers
    case.model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for index, layer in enumerate(layers):  # some layers alone, as newer versions of transformers offer
        layer.gradient_checkpointing = index % every == every - 1
    embeddings = case.base.get_input_embeddings()(batch.pop("input_ids")).detach()
    case.model.train()(inputs_embeds=embeddings, **batch).loss.backward()
    assert not embeddings.requires_grad
    for name, parameter in case.trained().items():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-3)


def test_a_cache_filled_beforehand_loses_no_token(case: Case) -> None:
    """`generate` cuts the ids by the cache's length: counting the prompts it would drop the first k tokens unseen."""
    batch = ask(case)
    expected = expected_tokens(case, batch)
    cache = case.model.base_model.prefix_cache(3)
    assert isinstance(cache, PromptedCache) and cache.get_seq_length() == 0
    assert cache.layers[0].keys.shape[2] == TEXTUAL
    assert torch.equal(generate(case, batch, past_key_values=copy.deepcopy(cache)), expected)
    same = prefix_cache(case.model.base_model.model.model.language_model, 3, torch.float32)
    assert torch.equal(generate(case, batch, past_key_values=same), expected)
    one = {
        name: tensor[:1, batch["attention_mask"][0] == 1] if tensor.ndim == 2 else tensor[:1]
        for name, tensor in batch.items()
    }
    assert torch.equal(generate(case, one, past_key_values=case.model.base_model.prefix_cache(1)), expected[:1])
    # An extended mask says that its author counts the prompts too: refused, with padding and without.
    for given in (batch, one):
        longer = dict(given)
        rows = given["input_ids"].shape[0]
        longer["attention_mask"] = torch.cat(
            [given["attention_mask"].new_ones(rows, TEXTUAL), given["attention_mask"]], 1
        )
        with pytest.raises(MethodError, match=r"columns for \d+ tokens|as if the attention mask"):
            generate(case, longer, past_key_values=case.model.base_model.prefix_cache(rows))


def test_a_conversation_goes_on_from_its_cache(case: Case) -> None:
    batch = {name: tensor[2:] for name, tensor in ask(case).items()}
    first = case.model.generate(
        **batch, max_new_tokens=3, do_sample=False, suppress_tokens=[IMAGE_TOKEN], return_dict_in_generate=True
    )
    more = torch.cat([first.sequences, torch.tensor([[7, 8, 9, 10]])], 1)
    whole = {**batch, "input_ids": more, "attention_mask": torch.ones_like(more)}
    expected = generate(case, whole)
    assert first.past_key_values.get_seq_length() == batch["input_ids"].shape[1] + 2
    follow = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    assert torch.equal(generate(case, follow, past_key_values=first.past_key_values), expected)


def test_the_cache_that_was_given_is_the_one_that_grows(case: Case) -> None:
    batch = ask(case)
    cache = DynamicCache()
    with torch.no_grad():
        out = case.model(**batch, past_key_values=cache)
        assert out.past_key_values is cache and cache.get_seq_length() == batch["input_ids"].shape[1]
        step = {"input_ids": torch.full((3, 1), 5)}
        mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1)
        found = case.model(**step, attention_mask=mask, past_key_values=cache).logits
        ids = torch.cat([batch["input_ids"], step["input_ids"]], 1)
        expected = case.reference_logits({**batch, "input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(found, expected[:, -1:], atol=1e-4, rtol=1e-5)


def test_caches_that_would_go_wrong(case: Case) -> None:
    batch = ask(case)
    with torch.no_grad():
        filled = case.model(**batch, use_cache=True).past_key_values
        case.model.add_adapter("other", case.config)
        step = {"input_ids": torch.full((3, 1), 5)}
        with case.model.disable_adapter():
            bare = case.model(**batch, use_cache=True).past_key_values
            with pytest.raises(MethodError, match="prompts of adapter 'default', but no adapter is active"):
                case.model(**step, past_key_values=filled)
        with pytest.raises(MethodError, match="never saw the prompts"):
            case.model(**step, past_key_values=bare)
        case.model.set_adapter("other")
        with pytest.raises(MethodError, match="prompts of adapter 'default', but 'other' is active"):
            case.model(**step, past_key_values=filled)
        case.model.set_adapter("default")
        with pytest.raises(MethodError, match="StaticCache"):
            generate(case, batch, cache_implementation="static")
        static = StaticCache(config=case.base.config.text_config, max_cache_len=64)
        with pytest.raises(MethodError, match="growing cache"):
            case.model(**batch, past_key_values=static)
        with case.model.disable_adapter(), pytest.raises(MethodError, match="no adapter with textual prompts"):
            case.model.base_model.prefix_cache(1)
        assert case.model.base_model.num_textual_prompts == TEXTUAL
    case.model.base_model.model.gradient_checkpointing_enable()
    case.model.train()
    for options in ({"past_key_values": filled}, {"use_cache": True}):
        with pytest.raises(MethodError, match="runs without a cache"):
            case.model(**step, **options)
    with pytest.raises(MethodError, match="runs without a cache"):
        generate(case, batch)
    assert generate(case, batch, use_cache=False).shape == (3, TOKENS)


def test_a_cache_that_was_reset_serves_any_adapter_and_the_base(case: Case) -> None:
    cache = case.model.base_model.prefix_cache(3)
    cache.reset()
    # What `reset` does to the layers differs between versions of transformers.
    cache.layers = DynamicCache(config=case.base.config.text_config).layers
    batch = ask(case)
    with torch.no_grad():
        with case.model.disable_adapter():
            expected = case.base(**batch).logits
            assert torch.equal(case.model(**batch, past_key_values=cache).logits, expected)
            assert cache.get_seq_length() == batch["input_ids"].shape[1]
        cache.layers = DynamicCache(config=case.base.config.text_config).layers
        expected = case.model(**batch).logits
        assert torch.equal(case.model(**batch, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 4}])
def test_other_ways_to_generate(case: Case, options: dict[str, Any]) -> None:
    ids = torch.tensor([[1, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7]])
    expected = generate(case, {"input_ids": ids}, max_new_tokens=12)
    assert torch.equal(generate(case, {"input_ids": ids}, max_new_tokens=12, **options), expected)


def packed_mask(lengths: list[int]) -> Tensor:
    """Each text of a row sees itself alone: ``(1, 1, n, n)``."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return ((owner[:, None] == owner) & torch.ones(len(owner), len(owner)).tril().bool())[None, None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("counts_prompts", [False, True])
def test_four_dimensional_masks(attention: str, kind: str, counts_prompts: bool) -> None:
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    lengths = [5, 8]
    rows = [batch_for(case.base, [length], images=[0], seed=length) for length in lengths]
    with torch.no_grad():
        expected = torch.cat([case.reference_logits(row) for row in rows], 1)
    mask = packed_mask(lengths)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    if counts_prompts:
        mask, positions = torch.nn.functional.pad(mask, (TEXTUAL, 0), value=True), positions + TEXTUAL
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    ids = torch.cat([row["input_ids"] for row in rows], 1)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        for use_cache in (False, True):
            found = case.model(**given, use_cache=use_cache).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    case.model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    found = case.model.train()(**given).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("counts_prompts", [False, True])
def test_packed_questions_behind_a_shared_cache(attention: str, counts_prompts: bool) -> None:
    """Two questions in one row behind the prompts and a common prefix, as the answer engine asks them."""
    case = make_case(tiny_llava(attention=attention), num_visual_prompts=3, num_textual_prompts=TEXTUAL)
    whole = batch_for(case.base, [14])
    ids, past = whole["input_ids"], 18
    tails = [ids[:, past:], torch.tensor([[11, 12, 13]])]
    with torch.no_grad():
        cache = case.model(input_ids=ids[:, :past], pixel_values=whole["pixel_values"], use_cache=True).past_key_values
        lengths = [tail.shape[1] for tail in tails]
        mask = torch.cat([torch.ones(1, 1, sum(lengths), past, dtype=torch.bool), packed_mask(lengths)], -1)
        positions = torch.cat([torch.arange(past, past + length) for length in lengths])[None]
        if counts_prompts:
            mask, positions = torch.nn.functional.pad(mask, (TEXTUAL, 0), value=True), positions + TEXTUAL
        found = case.model(
            input_ids=torch.cat(tails, 1), attention_mask=mask, position_ids=positions, past_key_values=cache
        ).logits
        for tail, part in zip(tails, found.split(lengths, 1), strict=True):
            asked = torch.cat([ids[:, :past], tail], 1)
            expected = case.reference_logits(
                {"input_ids": asked, "attention_mask": torch.ones_like(asked), "pixel_values": whole["pixel_values"]}
            )
            torch.testing.assert_close(part, expected[:, past:], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_additive_mask_of_another_precision(attention: str) -> None:
    base = tiny_llava(dtype=torch.bfloat16, attention=attention)
    case = make_case(base, num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    row = batch_for(case.base, [6], images=[0])
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(1, 1, 6, 6).masked_fill(~packed_mask([6]), lowest)
    # The same with the prompts counted and a token of padding at the end, which sees nothing at all.
    padded = torch.full((1, 1, 7, TEXTUAL + 7), lowest)
    padded[..., :6, :-1] = torch.nn.functional.pad(mask, (TEXTUAL, 0))
    ids = torch.nn.functional.pad(row["input_ids"], (0, 1))
    with torch.no_grad():
        expected = case.model(**row).logits
        found = case.model(input_ids=ids[:, :6], attention_mask=mask).logits
        positions = torch.arange(TEXTUAL, TEXTUAL + 7)[None]
        behind = case.model(input_ids=ids, attention_mask=padded, position_ids=positions).logits
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)
    torch.testing.assert_close(behind[:, :6], expected, atol=0.1, rtol=0.05)


def test_masks_that_fit_nothing(case: Case) -> None:
    ids = torch.full((1, 5), 7)
    for mask, message in (
        (torch.ones(1, 5 + TEXTUAL, dtype=torch.long), "9 columns for 5 tokens"),
        (torch.ones(1, 3, dtype=torch.long), "3 columns for 5 tokens"),
        (torch.ones(1, 1, 5, 7, dtype=torch.bool), "7 columns for 5 tokens"),
        (torch.ones(1, 1, 5, 5, dtype=torch.long), "bool or float"),
        (torch.ones(1, 5, 5), "2 or 4 dimensions"),
    ):
        with pytest.raises(MethodError, match=message):
            case.model(input_ids=ids, attention_mask=mask)


def test_attention_implementation_never_tested(case: Case) -> None:
    case.model.base_model.model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(MethodError, match="flex_attention"):
        case.model(input_ids=torch.full((1, 5), 7))


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("mistral", {"sliding_window": 20}),
        ("qwen2", {"sliding_window": 20, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_a_window_shorter_than_the_text(decoder: str, options: dict[str, Any]) -> None:
    """Where the window holds prompts and text the numbers are right; one token more is refused."""
    case = make_case(tiny_llava(decoder=decoder, **options), num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    free = make_case(tiny_llava(decoder=decoder), num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    fits = batch_for(case.base, [16], images=[0])
    with torch.no_grad():
        for use_cache in (False, True):
            found = case.model(**fits, use_cache=use_cache).logits
            torch.testing.assert_close(found, free.model(**fits).logits, atol=1e-5, rtol=1e-5)
        with pytest.raises(MethodError, match="attends to the last 20 tokens alone, and 4 prompts and 17 tokens"):
            case.model(**batch_for(case.base, [17], images=[0]))
        with pytest.raises(MethodError, match="out of sight"):
            generate(case, {"input_ids": fits["input_ids"]}, max_new_tokens=3)
        with case.model.disable_adapter():
            assert generate(case, {"input_ids": fits["input_ids"]}, max_new_tokens=3).shape == (1, 3)


def test_a_window_that_no_layer_uses() -> None:
    options = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    case = make_case(tiny_llava(decoder="qwen2", **options), num_visual_prompts=0, num_textual_prompts=TEXTUAL)
    batch = batch_for(case.base, [16], images=[0])
    with torch.no_grad():
        torch.testing.assert_close(case.model(**batch).logits, case.reference_logits(batch), atol=1e-4, rtol=1e-5)


def test_positions_of_real_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert real_positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_positions_that_are_given(case: Case) -> None:
    batch = ask(case, padding="left")
    with torch.no_grad():
        expected = case.model(**batch).logits
        given = case.model(**batch, position_ids=real_positions(batch["attention_mask"])).logits
        shifted = case.model(**batch, position_ids=real_positions(batch["attention_mask"]) + 3).logits
    assert torch.equal(given, expected)
    assert (shifted - expected).abs().max() > 1e-2
