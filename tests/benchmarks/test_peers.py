"""The baselines of the benchmarks compute what they claim, and FLOPs match torch's counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import train_step
from concatenation import ConcatenatedPrompts
from fixtures.models import fill_adapter, prompts_of, tiny_llava
from flops import step_flops
from geometries import GEOMETRIES, TEXT_TOKENS, build
from peft import get_peft_model
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from train_step import SUPERVISED, make_batch, needed, shared_copy

from m2pt_cli.method import preset
from m2pt_cli.models.catalog import geometry_from_config
from m2pt_cli.training import norms
from m2pt_cli.training.loss import supervised_loss


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_concatenation_is_the_same_method(projector: str) -> None:
    base = tiny_llava(projector=projector)
    model = get_peft_model(shared_copy(base), preset("m2pt", base.config, num_visual_prompts=3, num_textual_prompts=4))
    fill_adapter(model)
    peer = ConcatenatedPrompts(shared_copy(base), visual=3, textual=4)
    ours = dict(model.named_parameters())
    with torch.no_grad():
        for theirs, is_tower in ((peer.visual, True), (peer.textual, False)):
            for parameter, prompts in zip(theirs, prompts_of(model, is_tower), strict=True):
                parameter.copy_(prompts)
        for name, parameter in peer.beside.named_parameters():
            own = [p for full, p in ours.items() if "projector" in full and full.endswith(name) and p.requires_grad]
            parameter.copy_(own[0])
    batch = make_batch(base, 2)
    losses = [supervised_loss(m.train(), batch) for m in (model, peer)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for theirs, is_tower in ((peer.visual, True), (peer.textual, False)):
        for parameter, prompts in zip(theirs, prompts_of(model, is_tower), strict=True):
            if prompts.grad is not None:
                torch.testing.assert_close(parameter.grad, prompts.grad, atol=1e-5, rtol=1e-3)


def test_flops_are_those_that_torch_counts() -> None:
    """Eager attention computes the square of which the triangle counts, and the last vision layer."""
    base = tiny_llava(attention="eager")
    batch = make_batch(base, 2)
    geometry = geometry_from_config(base.config.to_dict())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        supervised_loss(base, batch)
    flops = step_flops(geometry, rows=2, text_tokens=TEXT_TOKENS, supervised=SUPERVISED)
    text, vision = geometry.text, geometry.vision
    length, tokens = vision.num_patches + TEXT_TOKENS, vision.num_patches + 1
    square = 4 * 2 * text.num_layers * text.num_heads * text.head_dim * (length**2 - length * (length + 1) / 2)
    width = vision.hidden_size
    last = 2 * 2 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 4 * 2 * width * tokens**2
    # Some versions of transformers turn positions into angles by a product.
    assert flops.forward + square + last == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_needs_at_7b() -> None:
    """Two operations a weight and token and pass; the vision tower adds a few percent."""
    geometry = GEOMETRIES["llava-v1-7b"]
    flops = step_flops(geometry, rows=16, text_tokens=60, supervised=5, visual_prompts=20, textual_prompts=10)
    matrices = sum(
        weight.size for weight in geometry.text.weights() if len(weight.shape) == 2 and "embed" not in weight.name
    )
    tokens = 16 * (256 + 60)
    assert 1.0 < needed("forward alone", flops) / (2 * matrices * tokens) < 1.07
    assert needed("lora, our loss", flops) < needed("m2pt", flops) < 1.05 * needed("lora, our loss", flops)
    assert needed("full, usual recipe", flops) / needed("lora, our loss", flops) == pytest.approx(1.5, abs=0.03)


def test_random_bases_have_the_catalogues_geometry() -> None:
    base = build(GEOMETRIES["small"], torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert base.config.vision_config.image_size == 112 and base.config.text_config.intermediate_size == 1376
    assert [GEOMETRIES[name].vision.num_patches for name in ("llava-v1-7b", "llava-1.5-7b")] == [256, 576]


def test_every_row_is_the_step_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, with the forms that CUDA has: which rows fuse norms, do without a mask, compute all logits, cast."""
    monkeypatch.setattr(norms, "FUSED_DEVICES", ("cpu",))
    base = tiny_llava().to(torch.bfloat16)
    batch = make_batch(base, 2)
    original, models = train_step.adapted, {}

    def adapted(name: str, base: Any) -> Any:
        models[name] = original(name, base)
        return models[name]

    monkeypatch.setattr(train_step, "adapted", adapted)
    masks: dict[str, set[torch.dtype | None]] = {}
    attend = functional.scaled_dot_product_attention

    def attention(*args: Any, attn_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        masks.setdefault(next(reversed(models)), set()).add(None if attn_mask is None else attn_mask.dtype)
        return attend(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    losses = {name: train_step.step_of(name, base, batch)().item() for name in train_step.VARIANTS}
    fused = {name for name, m in models.items() if any(isinstance(x, norms.FusedRMSNorm) for x in m.modules())}
    assert fused == {"m2pt", "m2pt, explicit mask", "m2pt, concatenation", "lora, m2pt train"}
    # The vision tower has none anywhere.
    assert masks.pop("m2pt, explicit mask") == {None, torch.bool}
    assert set().union(*masks.values()) == {None}
    wide = {
        name for name, m in models.items() if any("lora_A" in n and p.dtype == torch.float32
        for n, p in m.named_parameters())
    }  # fmt: skip
    assert wide == {"lora, usual recipe", "lora, our loss", "lora, m2pt train"}
    # LoRA begins as the base; a mean over five tokens in bf16.
    bare = losses["forward alone"]
    assert all(loss == pytest.approx(bare, rel=0.01) for name, loss in losses.items() if not name.startswith("m2pt")), (
        losses
    )
    assert not any(isinstance(m, norms.FusedRMSNorm) for m in base.modules())
