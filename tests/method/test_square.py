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
        counted.append(hidden.shape[1])
        return original(self, hidden, **kwargs)

    monkeypatch.setattr(prefix, "SQUARE_DEVICES", ("cpu",))
    monkeypatch.setattr(TextualPrompts, "_square", counting)
    yield counted


def text_case(decoder: str = "llama", **options: Any) -> Case:
    return make_case(tiny_llava(decoder=decoder, **options), num_visual_prompts=3, num_textual_prompts=TEXTUAL)


@pytest.mark.parametrize("variant", ["official", "drop"])
def test_the_authors_numbers(variant: str, squares: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def adapted(variant: str) -> Any:
        model = original(variant)
        model.get_base_model().model.language_model.config.use_cache = False
        return model

    original = golden.adapted
    monkeypatch.setattr(golden, "adapted", adapted)
    test_golden.test_logits_features_and_loss(variant, "sdpa")
    assert len(squares) == 4 * 5  # inputs and layers
    test_golden.test_gradients(variant)
    assert len(squares) == 5 * 5


@pytest.mark.parametrize("case", test_matrix.pairwise(), ids=lambda case: "-".join(map(str, case.values())))
def test_the_reference(case: dict[str, Any], squares: list[int]) -> None:
    test_matrix.check(case)
    possible = case["attention"] == "sdpa" and case["padding"] == "right" and case["textual"]
    assert bool(squares) == bool(possible)


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("lengths", [[9, 9], [9, 6, 12], [1]])
def test_equal_to_the_explicit_mask(decoder: str, lengths: list[int], squares: list[int]) -> None:
    case = text_case(decoder)
    images = [0] if lengths == [1] else None
    batch = batch_for(case.base, lengths, images=images)
    real, labels = batch["attention_mask"].bool(), batch.pop("labels")
    found = case.model(**batch, use_cache=False).logits
    assert len(squares) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "SQUARE_DEVICES", ())
        expected = case.model(**batch, use_cache=False).logits
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    if lengths == [1]:
        return
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

    batch = batch_for(case.base, [9, 6])
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    case.model(**batch, use_cache=False)
    length = batch["input_ids"].shape[1] + TEXTUAL
    assert seen[-3:] == [(length, length, None, True)] * 3


def test_where_the_mask_is_needed_it_stays(squares: list[int]) -> None:
    case = text_case()
    right, left = batch_for(case.base, [9, 6]), batch_for(case.base, [9, 6], padding="left")
    case.model(**left, use_cache=False)
    case.model(**right, use_cache=True)
    hole = dict(right, attention_mask=right["attention_mask"].clone())
    hole["attention_mask"][0, 2] = 0
    case.model(**hole, use_cache=False)
    packed = torch.ones(2, 1, 18, 18, dtype=torch.bool).tril()
    case.model(**dict(right, attention_mask=packed), use_cache=False)
    eager = text_case(attention="eager")
    eager.model(**right, use_cache=False)
    assert not squares
    with case.model.disable_adapter():
        case.model(**right, use_cache=False)
    assert not squares
    case.model(**right, use_cache=False)
    assert len(squares) == 3


def test_generation_keeps_its_cache(squares: list[int]) -> None:
    """Every greedy token of the cached way, with masks, is the best one of the way without cache and mask."""
    case = text_case()
    batch = batch_for(case.base, [12], images=[0])
    del batch["labels"]
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    tokens = case.model.generate(**batch, **options)
    assert not squares
    logits = case.model(input_ids=tokens[:, :-1], use_cache=False).logits
    assert len(squares) == 3
    logits[..., IMAGE_TOKEN] = -torch.inf
    assert torch.equal(logits[:, -6:].argmax(-1), tokens[:, -6:])
