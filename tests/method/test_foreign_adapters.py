"""LoRA adapters from elsewhere give what PEFT itself gives, bit for bit, or say why they can't."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.models import batch_for, fill_adapter, tiny_llava
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import load_adapter_strictly
from m2pt_cli.method.checkpoint import take_out

PREFIX = "base_model.model."
ATTENTION = ["q_proj", "v_proj"]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write(folder: Path, *, save_embedding_layers: Any = "auto", **options: Any) -> Tensor:
    """Save a trained LoRA; its logits."""
    model = get_peft_model(tiny_llava(), LoraConfig(r=4, lora_alpha=8, **({"target_modules": ATTENTION} | options)))
    fill_adapter(model)
    model.eval().save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return logits(model)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch_for(model, [8, 6])).logits
    return found


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename(folder: Path, old: Callable[[str], str]) -> None:
    """Save the weights again under other names (without PEFT's prefix)."""
    tensors = load_file(folder / WEIGHTS)
    save_file({PREFIX + old(name.removeprefix(PREFIX)): t for name, t in tensors.items()}, folder / WEIGHTS)


def of_4_51(name: str) -> str:
    """Names of transformers < 4.52: no ``model`` around the parts, whole models inside."""
    name = name.removeprefix("model.")
    for new, old in (("language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
                     ("vision_tower.", "vision_tower.vision_model.")):  # fmt: skip
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def of_4_52(name: str) -> str:
    """Names from transformers 4.52 on, until the vision tower lost its inner model."""
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


def is_as_before(base: Any) -> bool:
    fresh = tiny_llava().state_dict()
    own = base.state_dict()
    return own.keys() == fresh.keys() and all(torch.equal(own[name], fresh[name]) for name in fresh)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "use_rslora": True},
        {"modules_to_save": ["multi_modal_projector", "lm_head", "embed_tokens"]},
        {"target_modules": r"model\.language_model\.layers\.[01]\.self_attn\.(q|k)_proj"},
        {"target_modules": r".*vision_tower.*(q_proj|fc1)"},
        {"target_modules": "all-linear", "exclude_modules": ["lm_head"]},
        {"target_modules": ["lm_head", "embed_tokens", "patch_embedding"]},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.1.*v_proj": 7}},
        {"bias": "all"},
        {"lora_bias": True, "trainable_token_indices": [3, 4]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"save_embedding_layers": True},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_as_peft_loads_it_and_out_again(tmp_path: Path, options: dict[str, Any]) -> None:
    trained = write(tmp_path, **options)
    base = tiny_llava()
    loaded = load_adapter_strictly(base, tmp_path)
    assert torch.equal(logits(loaded), logits(PeftModel.from_pretrained(tiny_llava(), tmp_path).eval()))
    assert torch.equal(logits(loaded), trained) and not torch.equal(trained, logits(tiny_llava()))
    take_out(loaded)
    assert is_as_before(base)


def test_embeddings_that_are_not_the_bases_are_loaded_as_peft_loads_them(tmp_path: Path) -> None:
    write(tmp_path, save_embedding_layers=True)
    tensors = load_file(tmp_path / WEIGHTS)
    head = next(name for name in tensors if name.endswith("lm_head.weight"))
    save_file({**tensors, head: tensors[head] + 1}, tmp_path / WEIGHTS)
    base = tiny_llava()
    loaded = load_adapter_strictly(base, tmp_path)
    assert torch.equal(logits(loaded), logits(PeftModel.from_pretrained(tiny_llava(), tmp_path).eval()))
    with pytest.raises(AdapterError, match="changes weights of the base itself"):
        load_adapter_strictly(loaded, tmp_path, "second")
    take_out(loaded)
    assert is_as_before(base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [of_4_51, of_4_52])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "target_modules": ["q_proj", "fc1", "down_proj"]},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"vision_tower.*v_proj": 7}},
    ],
    ids=["plain", "dora", "patterns"],
)
def test_names_of_older_transformers_as_peft_loads_them(tmp_path: Path, options: Any, old: Any) -> None:
    trained = write(tmp_path, **options)
    rename(tmp_path, old)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llava(), tmp_path).eval()), trained)
    assert torch.equal(logits(load_adapter_strictly(tiny_llava(), tmp_path)), trained)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (
            {"target_modules": r".*language_model\.layers\.[01]\.self_attn\.q_proj"},
            {"target_modules": r"^language_model\.model\.layers\.[01]\.self_attn\.q_proj$"},
        ),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {"layers.1.self_attn.q_proj": 2},
             "alpha_pattern": {"model.language_model.layers.0.self_attn.q_proj": 5}},
            {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2},
             "alpha_pattern": {"language_model.model.layers.0.self_attn.q_proj": 5}},
        ),
        ({"target_modules": "all-linear"}, {}),  # of which PEFT leaves out the projector
        (
            {"modules_to_save": ["multi_modal_projector", "lm_head"]},
            {"modules_to_save": ["multi_modal_projector", "language_model.lm_head"]},
        ),
    ],
    ids=["regex", "patterns", "all-linear", "modules_to_save"],
)  # fmt: skip
def test_old_names_on_which_peft_fails(tmp_path: Path, options: Any, changes: Any) -> None:
    trained = write(tmp_path, **options)
    rename(tmp_path, of_4_51)
    change_config(tmp_path, **changes)
    assert torch.equal(logits(load_adapter_strictly(tiny_llava(), tmp_path)), trained)


def test_settings_that_this_peft_does_not_know(tmp_path: Path) -> None:
    trained = write(tmp_path)
    told: list[str] = []
    change_config(tmp_path, shiny=None)
    assert torch.equal(logits(load_adapter_strictly(tiny_llava(), tmp_path, report=told.append)), trained)
    assert told == []
    change_config(tmp_path, newer={"a": 1}, runtime_config={})
    with pytest.warns(UserWarning):
        expected = logits(PeftModel.from_pretrained(tiny_llava(), tmp_path).eval())
    assert torch.equal(logits(load_adapter_strictly(tiny_llava(), tmp_path, report=told.append)), expected)
    assert len(told) == 1 and "which are left out: newer, runtime_config;" in told[0]


def test_a_random_start_is_said(tmp_path: Path) -> None:
    write(tmp_path, init_lora_weights="pissa_niter_4")
    told: list[str] = []
    base = tiny_llava()
    take_out(load_adapter_strictly(base, tmp_path, report=told.append))
    assert len(told) == 1 and "a random decomposition" in told[0]
    assert is_as_before(base)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens is not supported", "m2pt reads LoRA"),
        ({"init_lora_weights": "corda"}, "eigens", "path_initial_model_for_weight_conversion"),
        ({"r": "x"}, "does not fit the model: '<='", "save it again"),
        ({"bias": "some"}, "Requested bias: some", "save it again"),
        ({"target_modules": "(("}, "missing \\)", "save it again"),
        ({"trainable_token_indices": [9999]}, "out of bounds", "save it again"),
    ],
)
def test_configs_that_peft_refuses(tmp_path: Path, changes: Any, said: str, hint: str) -> None:
    write(tmp_path)
    change_config(tmp_path, **changes)
    base = tiny_llava()
    with pytest.raises(AdapterError, match=said) as caught:
        load_adapter_strictly(base, tmp_path)
    assert hint in (caught.value.hint or "") and "\n" not in caught.value.message
    assert is_as_before(base)


def first(tensors: dict[str, Tensor], part: str) -> str:
    return min(name for name in tensors if part in name)


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        (lambda t: t.update({first(t, "lora_A"): torch.zeros(0)}), "without being gathered", "zero_to_fp32"),
        (
            lambda t: {n.replace(".weight", ".default.weight"): v for n, v in t.items()},
            r"lora_A\.default\.weight\): they are those of state_dict",
            "model.save_pretrained",
        ),
        (
            lambda t: {n.replace("model.language_model.", "model."): v for n, v in t.items()},
            "a language model alone, or to the original LLaVA code",
            "does not convert",
        ),
        (
            lambda t: t.update({PREFIX + "lm_head.weight": torch.zeros(100, 24)}),
            "a vocabulary of 100 tokens, this one has 96",
            "resized embeddings",
        ),
        (lambda t: t.update({first(t, "language_model"): torch.zeros(4, 32)}), r"other widths: .*\[4, 32\]", "--base"),
        (
            lambda t: t.update(
                {PREFIX + "model.language_model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(1)}
            ),
            r"modules that this base does not have \(model.language_model.layers.7.self_attn.q_proj\)",
            "--base",
        ),
        (lambda t: t.pop(first(t, "lora_B")), "1 missing", "the same save_pretrained"),
    ],
    ids=["zero3", "state_dict", "language model", "vocabulary", "width", "depth", "missing"],
)
def test_the_cause_and_a_step_that_helps(tmp_path: Path, change: Any, said: str, hint: str) -> None:
    write(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, tmp_path / WEIGHTS)
    base = tiny_llava()
    with pytest.raises(AdapterError, match=said) as caught:
        load_adapter_strictly(base, tmp_path)
    assert hint in (caught.value.hint or "") and "copy" not in (caught.value.hint or "")
    assert is_as_before(base)


def test_an_adapter_of_m2pt_keeps_its_own_settings_strict(tmp_path: Path) -> None:
    from m2pt_cli.method import M2PTConfig

    get_peft_model(tiny_llava(), M2PTConfig(num_visual_prompts=2, num_textual_prompts=2)).save_pretrained(tmp_path)
    change_config(tmp_path, shiny=None)
    load_adapter_strictly(tiny_llava(), tmp_path)
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    change_config(copy, shiny=2)
    with pytest.raises(AdapterError, match="unknown setting 'shiny'"):
        load_adapter_strictly(tiny_llava(), copy)
