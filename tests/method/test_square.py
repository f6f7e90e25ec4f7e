"""The form without a mask, meant for CUDA's flash kernel, run here on the CPU: the same numbers as with the mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_TOKEN, batch_for, tiny_llava
from torch import Tensor

from m2pt_cli.method import prefix
from m2pt_cli.method.prompts import TextualPrompts

from . import golden, reference, test_golden, test_matrix
from .cases import Case, gradients, make_case

TEXTUAL = 4


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Chooses the form on the CPU; the list grows by one for every attention that runs so."""
    counted: list[int] = []
    original = TextualPrompts._square

    def counting(self: TextualPrompts, hidden: Tensor, **kwargs: Any) -> Any:
        assert kwargs["past_key_values"] is None or kwargs["past_key_values"].is_square
        counted.append(hidden.shape[1])
        return original(self, hidden, **kwargs)

    monkeypatch.setattr(prefix, "FLASH_DEVICES", ("cpu",))
    monkeypatch.setattr(TextualPrompts, "_square", counting)
    yield counted


def text_case(decoder: str = "llama", **options: Any) -> Case:
    return make_case(tiny_llava(decoder=decoder, **options), num_visual_prompts=3, num_textual_prompts=TEXTUAL)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("variant", ["official", "drop"])
def test_the_authors_numbers(
    variant: str, use_cache: bool, squares: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapted(variant: str) -> Any:
        model = original(variant)
        model.get_base_model().model.language_model.config.use_cache = use_cache
        return model

    original = golden.adapted
    monkeypatch.setattr(golden, "adapted", adapted)
    test_golden.test_logits_features_and_loss(variant, "sdpa")
    assert len(squares) == 4 * 5  # inputs and layers
    test_golden.test_gradients(variant)
    assert len(squares) == 5 * 5
    test_golden.test_greedy_tokens(variant, True)
    assert len(squares) == 8 * 5  # one text for each of three samples; further tokens come one by one


@pytest.mark.parametrize("case", test_matrix.pairwise(), ids=lambda case: "-".join(map(str, case.values())))
def test_the_reference(case: dict[str, Any], squares: list[int]) -> None:
    test_matrix.check(case)
    possible = case["attention"] == "sdpa" and case["padding"] == "right" and case["textual"]
    assert bool(squares) == bool(possible)


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("lengths", [[9, 9], [9, 6, 12]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_equal_to_the_explicit_mask(decoder: str, lengths: list[int], use_cache: bool, squares: list[int]) -> None:
    case = text_case(decoder)
    batch = batch_for(case.base, lengths)
    real, labels = batch["attention_mask"].bool(), batch.pop("labels")
    found = case.model(**batch, use_cache=use_cache).logits
    assert len(squares) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "FLASH_DEVICES", ())
        expected = case.model(**batch, use_cache=use_cache).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    parameters = case.trained()
    ours, theirs = (gradients(parameters, reference.loss(logits, labels)) for logits in (found, expected))
    for name in parameters:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_the_kernel_gets_as_many_keys_as_queries(squares: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = text_case(), []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.append((query.shape[2], key.shape[2], options["attn_mask"], options["is_causal"]))
        return kernel(query, key, value, **options)

    batch = batch_for(case.base, [10, 7])
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    length = batch["input_ids"].shape[1] + TEXTUAL
    for use_cache in (False, True):
        out = case.model(**batch, use_cache=use_cache)
        assert seen[-3:] == [(length, length, None, True)] * 3
    one = {"input_ids": batch["input_ids"][:, -1:], "past_key_values": out.past_key_values}
    full = torch.ones(2, length - TEXTUAL + 1, dtype=torch.long)
    case.model(**one, attention_mask=full)
    assert seen[-3:] == [(1, length + 1, None, False)] * 3  # a further token that sees everything
    full[1, -2] = 0
    case.model(**one, attention_mask=torch.nn.functional.pad(full, (0, 1), value=1))
    (*_, mask, _) = seen[-1]
    assert (length + 2) % 8 != 0
    assert mask.dtype == torch.float32 and mask.shape == (2, 1, 1, length + 2)
    assert mask.stride(0) % 8 == 0 and mask.stride(2) % 8 == 0, "the kernel would copy it in every layer"


def test_where_the_mask_is_needed_it_stays(squares: list[int]) -> None:
    case = text_case()
    right, left = batch_for(case.base, [9, 6]), batch_for(case.base, [9, 6], padding="left")
    hole = dict(right, attention_mask=right["attention_mask"].clone())
    hole["attention_mask"][0, 2] = 0
    packed = dict(right, attention_mask=torch.ones(2, 1, 18, 18, dtype=torch.bool).tril())
    eager = text_case(attention="eager")
    for use_cache in (False, True):
        for batch in (left, hole, packed):
            case.model(**batch, use_cache=use_cache)
        eager.model(**right, use_cache=use_cache)
    positions = torch.arange(18)[None]
    case.model(**right, position_ids=positions, use_cache=False)
    assert not squares
    cache = case.model(**right, position_ids=positions, use_cache=True).past_key_values
    assert len(squares) == 3
    case.model(input_ids=torch.full((2, 3), 7), past_key_values=cache)
    with case.model.disable_adapter():
        case.model(**right, use_cache=False)
    assert len(squares) == 3


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_generation(decoder: str, padding: str, squares: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens and the cache's rows are those of the explicit mask, with and without padding."""
    case = text_case(decoder)
    lengths = [9, 6, 12] if padding == "left" else [12, 12]
    batch = batch_for(case.base, lengths, padding=padding)
    del batch["labels"]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    found = case.model.generate(**batch, **options, return_dict_in_generate=True)
    assert len(squares) == (0 if padding == "left" else 3)
    monkeypatch.setattr(prefix, "FLASH_DEVICES", ())
    expected = case.model.generate(**batch, **options, return_dict_in_generate=True)
    assert torch.equal(found.sequences, expected.sequences)
    assert found.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    real = torch.nn.functional.pad(batch["attention_mask"].bool(), (TEXTUAL, 5), value=True)
    for ours, theirs in zip(found.past_key_values.layers, expected.past_key_values.layers, strict=True):
        for kind in ("keys", "values"):
            rows = [getattr(layer, kind).transpose(1, 2)[real] for layer in (ours, theirs)]
            torch.testing.assert_close(*rows, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_compiled_model_keeps_its_mask(use_cache: bool, squares: list[int]) -> None:
    """Under `torch.compile` transformers makes a mask where none is given, one that knows of no prompts."""
    case = text_case()
    inputs = {name: value for name, value in batch_for(case.base, [9, 9]).items() if name != "labels"}
    with torch.no_grad():
        expected = case.model(**inputs, use_cache=use_cache).logits
        assert squares
        found = torch.compile(case.model, backend="eager")(**inputs, use_cache=use_cache).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
