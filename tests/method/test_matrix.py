"""The method against the reference (concatenate and overwrite): values and gradients over all combinations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fixtures import reference
from fixtures.cases import gradients, make_case
from fixtures.models import batch_for, checkpoint, tiny_llava

AXES: dict[str, tuple[Any, ...]] = {
    "padding": ("right", "left"),
    "attention": ("sdpa", "eager"),
    "checkpointing": ("off", "reentrant", "not reentrant"),
    "visual": (0, 3),
    "textual": (0, 2),
    "interaction": ("projector", "residual", "none"),
}
PRODUCT = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def pairwise() -> list[dict[str, Any]]:
    """A few combinations in which every pair of values of any two axes occurs."""
    pairs = set().union(*(_pairs(case) for case in PRODUCT if _trains_something(case)))
    chosen = []
    while pairs:
        best = max(filter(_trains_something, PRODUCT), key=lambda case: len(_pairs(case) & pairs))
        chosen.append(best)
        pairs -= _pairs(best)
    return chosen


def _pairs(case: dict[str, Any]) -> set[Any]:
    return set(itertools.combinations(case.items(), 2))


def _trains_something(case: dict[str, Any]) -> bool:
    return bool(case["visual"] or case["textual"] or case["interaction"] != "none")


def check(case: dict[str, Any]) -> None:
    base = tiny_llava(attention=case["attention"])
    adapted = make_case(
        base,
        num_visual_prompts=case["visual"],
        num_textual_prompts=case["textual"],
        interaction=case["interaction"],
    )
    batch = batch_for(base, [9, 6, 12], padding=case["padding"])
    real = batch["attention_mask"].bool()
    expected = adapted.reference_logits(batch)
    trained = adapted.trained()
    expected_gradients = gradients(trained, reference.loss(expected, batch["labels"]))

    for use_cache in (False, True):
        with torch.no_grad():
            found = adapted.model(**batch, use_cache=use_cache).logits
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-5)

    if case["checkpointing"] != "off":
        checkpoint(adapted.model.get_base_model(), reentrant=case["checkpointing"] == "reentrant")
    adapted.model.train()
    adapted.model(**batch).loss.backward()
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            gradient, expected_gradients[name], atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert sum(gradient.abs().max() > 1e-6 for gradient in expected_gradients.values()) >= len(trained) - 1


@pytest.mark.parametrize("case", pairwise(), ids=lambda case: "-".join(str(value) for value in case.values()))
def test_pairwise(case: dict[str, Any]) -> None:
    check(case)


@pytest.mark.slow
def test_full_product() -> None:
    for case in filter(_trains_something, PRODUCT):
        check(case)


def test_pairwise_covers_every_pair() -> None:
    covered = set().union(*map(_pairs, pairwise()))
    assert covered == set().union(*(_pairs(case) for case in PRODUCT if _trains_something(case)))
    assert len(pairwise()) < 16
