"""PEFT's behaviour: names, training, saving, several adapters, disabling, copies, transformers' own loader."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from fixtures.cases import make_case
from fixtures.models import batch_for, fill_adapter, prompts_of, tiny_llava
from packaging.version import Version
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version

from m2pt_cli.method import M2PTConfig, M2PTModel, MethodError, adapter_of, adapter_parameters
from m2pt_cli.method.registration import add_peft_type, register

try:
    check_peft_version(min_version=MIN_PEFT_VERSION)
    own_loader = True
except ValueError:
    own_loader = False
# transformers 5.24 asks for a PEFT that is not released yet; what goes through PEFT itself is not concerned.
transformers_loader = pytest.mark.skipif(not own_loader, reason=f"transformers' loader wants PEFT {MIN_PEFT_VERSION}")

SMALL = {"num_visual_prompts": 3, "num_textual_prompts": 2}


def small(**options: object) -> M2PTConfig:
    return M2PTConfig(**{**SMALL, **options})


def logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_registered_once() -> None:
    members = list(PeftType)
    register(M2PTConfig, M2PTModel)
    assert list(PeftType) == members
    assert add_peft_type("M2PT") is PeftType("M2PT") is PeftType["M2PT"] is PeftType.M2PT
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.M2PT] is PEFT_TYPE_TO_CONFIG_MAPPING["M2PT"] is M2PTConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["M2PT"] is M2PTModel


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_names_in_the_file(projector: str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_llava(projector=projector), small(train_lm_head=True))
    model.save_pretrained(tmp_path)
    start = "base_model.model.model"
    interaction = f"{start}.multi_modal_projector" + ("" if projector == "linear" else ".m2pt_interaction")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {
        **{f"{start}.vision_tower.encoder.layers.{i}.self_attn.m2pt_prompts": (3, 16) for i in range(4)},
        **{f"{start}.language_model.layers.{i}.self_attn.m2pt_prompts": (2, 24) for i in range(3)},
        f"{interaction}.weight": (24, 16),
        f"{interaction}.bias": (24,),
        "base_model.model.lm_head.weight": (96, 24),
    }
    in_memory = [name for name, _ in model.named_parameters() if "m2pt_prompts" in name]
    assert "base_model.model.model.vision_tower.encoder.layers.3.self_attn.m2pt_prompts.default" in in_memory


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("options", [{}, {"num_visual_prompts": 0}, {"train_lm_head": True}, {"interaction": "none"}])
def test_trained_counted_and_saved_agree(projector: str, options: dict[str, object], tmp_path: Path) -> None:
    model = get_peft_model(tiny_llava(projector=projector), small(**options))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name for name, _ in adapter_parameters(model, "default")}
    assert trained == chosen == {name for name, _ in model.named_parameters() if adapter_of(name) == "default"}
    counted = sum(p.numel() for _, p in adapter_parameters(model, "default"))
    assert model.get_nb_trainable_parameters()[0] == counted
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == counted
    assert set(saved) == {re.sub(r"(\.modules_to_save)?\.default", "", name) for name in trained}


def test_status_and_count_as_peft_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    model = get_peft_model(tiny_llava(), small())
    model.print_trainable_parameters()
    trained = 4 * 3 * 16 + 3 * 2 * 24 + 16 * 24 + 24
    assert f"trainable params: {trained:,}" in capsys.readouterr().out
    status = model.get_model_status()
    assert status.trainable_params == trained
    assert (status.enabled, status.active_adapters) == (True, ["default"])
    assert status.peft_types == {"default": "M2PT"}


def test_prompts_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    config = M2PTConfig(num_visual_prompts=200, num_textual_prompts=50, interaction="residual")
    model = get_peft_model(tiny_llava(), config)
    for prompts in prompts_of(model, True):
        bound = (6 / (201 * 16)) ** 0.5
        assert 0.95 * bound < prompts.abs().max() <= bound
    first, second = prompts_of(model, False)[:2]
    assert not torch.equal(first, second)
    assert first.abs().max() <= (6 / (51 * 24)) ** 0.5
    assert not any(p.any() for name, p in model.named_parameters() if "m2pt_interaction" in name)
    normal = get_peft_model(tiny_llava(), M2PTConfig(num_textual_prompts=500, init="normal"))
    assert 0.019 < prompts_of(normal, False)[0].std() < 0.021
    zeros = get_peft_model(tiny_llava(), M2PTConfig(init="zeros"))
    assert not any(p.any() for p in prompts_of(zeros, True) + prompts_of(zeros, False))


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_by_peft(
    projector: str, low_cpu_mem_usage: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = make_case(tiny_llava(projector=projector), **SMALL, train_lm_head=True).model
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        tiny_llava(projector=projector), str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage
    )
    batch = batch_for(model, [8, 6])
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not [str(w.message) for w in recwarn if "missing" in str(w.message)]


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_several_adapters_of_different_lengths(projector: str) -> None:
    base = tiny_llava(projector=projector)
    batch = batch_for(base, [8, 6], padding="left")
    expected = {}
    shapes = {"a": (3, 2), "b": (1, 4), "visual": (2, 0), "textual": (0, 3)}
    model: PeftModel | None = None
    for seed, (name, (visual, textual)) in enumerate(shapes.items()):
        config = M2PTConfig(num_visual_prompts=visual, num_textual_prompts=textual)
        alone = get_peft_model(tiny_llava(projector=projector), config, adapter_name=name)
        fill_adapter(alone, seed=seed)
        expected[name] = logits(alone.eval(), batch)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name).eval()
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        fill_adapter(model, seed=seed)
    assert model is not None
    llava = model.base_model.model
    assert [len(module._forward_pre_hooks) for module in (llava, llava.model)] == [1, 2]
    for name in ("b", "textual", "a", "visual"):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model, batch), expected[name], atol=1e-5, rtol=1e-5)
        assert {adapter_of(n) for n, p in model.named_parameters() if p.requires_grad} == {name}
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), logits(tiny_llava(projector=projector), batch))
    model.delete_adapter("visual")
    assert model.active_adapters == ["a"]
    torch.testing.assert_close(logits(model, batch), expected["a"], atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in model.named_parameters() if adapter_of(name) == "visual"]
    with pytest.raises(MethodError, match="one M²PT adapter can be active at a time, not a, b"):
        model.base_model.set_adapter(["a", "b"])


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_disabled_deleted_and_unloaded_are_the_base(projector: str) -> None:
    base = tiny_llava(projector=projector)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    batch = batch_for(base, [8, 6])
    expected = logits(base, batch)
    model = make_case(base, **SMALL, train_lm_head=True).model
    assert (logits(model, batch) - expected).abs().max() > 0.1
    tower = model.base_model.model.model.vision_tower
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), expected)
        # Also of the layer that no image feature depends on.
        found = tower(batch["pixel_values"]).last_hidden_state
        bare_tower = tiny_llava(projector=projector).model.vision_tower
        assert torch.equal(found, bare_tower(batch["pixel_values"]).last_hidden_state)
        assert torch.equal(
            model.generate(**batch, max_new_tokens=4),
            tiny_llava(projector=projector).generate(**batch, max_new_tokens=4),
        )
    bare = model.unload()
    after = bare.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_pre_hooks for module in bare.modules())
    assert torch.equal(logits(bare, batch), expected)
    again = get_peft_model(bare, small())
    assert torch.isfinite(logits(again, batch)).all()
    again.delete_adapter("default")
    assert torch.equal(logits(again.base_model.model, batch), expected)


@transformers_loader
def test_transformers_own_loader(tmp_path: Path) -> None:
    # transformers 5.17 does not load modules that are trained whole, and reports them as missing; 5.23 does.
    projectors = ("linear", "mlp") if Version(transformers.__version__) >= Version("5.23") else ("mlp",)
    for projector in projectors:
        case = make_case(tiny_llava(projector=projector), **SMALL)
        other = make_case(tiny_llava(projector=projector), num_visual_prompts=1, num_textual_prompts=5)
        batch = batch_for(case.base, [8, 6])
        folders = tmp_path / projector / "a", tmp_path / projector / "b"
        case.model.save_pretrained(folders[0])
        other.model.save_pretrained(folders[1])
        model = tiny_llava(projector=projector)
        expected = logits(model, batch)
        report = model.load_adapter(str(folders[0]), adapter_name="first")
        assert not report.missing_keys and not report.unexpected_keys
        torch.testing.assert_close(logits(model, batch), logits(case.model, batch))
        model.load_adapter(str(folders[1]), adapter_name="second")
        model.set_adapter("second")
        torch.testing.assert_close(logits(model, batch), logits(other.model, batch))
        model.set_adapter("first")
        torch.testing.assert_close(logits(model, batch), logits(case.model, batch))
        with pytest.raises(MethodError, match="one M²PT adapter can be active at a time, not first, second"):
            model.set_adapter(["first", "second"])
        model.set_adapter("first")
        model.disable_adapters()
        assert torch.equal(logits(model, batch), expected)
        model.enable_adapters()
        model.delete_adapter(["first", "second"])
        assert torch.equal(logits(model, batch), expected)


@transformers_loader
def test_transformers_own_loader_reports(tmp_path: Path) -> None:
    make_case(tiny_llava(), **SMALL).model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    lost = tensors.pop("base_model.model.model.language_model.layers.1.self_attn.m2pt_prompts")
    tensors["base_model.model.model.language_model.layers.9.self_attn.m2pt_prompts"] = lost
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    report = tiny_llava().load_adapter(str(tmp_path))
    assert any("layers.1." in key for key in report.missing_keys)
    assert any("layers.9." in key for key in report.unexpected_keys)


def test_loading_by_peft_is_strict(tmp_path: Path) -> None:
    make_case(tiny_llava(), **SMALL).model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    name = "base_model.model.model.language_model.layers.{}.self_attn.m2pt_prompts"
    changes = {
        "1 missing": {name.format(1): None},
        "1 unexpected": {name.format(9): torch.zeros(2, 24)},
        "size mismatch": {name.format(1): torch.zeros(3, 24)},
        "9 missing": dict.fromkeys(whole),
    }
    for message, change in changes.items():
        tensors = {key: tensor for key, tensor in {**whole, **change}.items() if tensor is not None}
        save_file(tensors, file)
        with pytest.raises(RuntimeError, match=message):
            PeftModel.from_pretrained(tiny_llava(), str(tmp_path))
    save_file(whole, file)
    model = PeftModel.from_pretrained(tiny_llava(), str(tmp_path), adapter_name="first")
    model.load_adapter(str(tmp_path), adapter_name="second")
    model.load_state_dict(model.state_dict())


def test_trainer(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llava(), small())
    before = {name: p.clone() for name, p in model.named_parameters()}
    batch = batch_for(model, [8, 8])
    rows = [{key: value[i] for key, value in batch.items()} for i in range(2)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    last = "vision_tower.encoder.layers.3.self_attn.m2pt_prompts.default"
    assert changed == {n for n, _ in adapter_parameters(model, "default") if not n.endswith(last)}


def test_copies_are_independent() -> None:
    model = make_case(tiny_llava(), **SMALL).model
    batch = batch_for(model, [8, 6])
    expected = logits(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, batch), expected)
    with torch.no_grad():
        for prompts in prompts_of(twin, False) + prompts_of(twin, True):
            prompts += 1
    assert torch.equal(logits(model, batch), expected)
    changed = logits(twin, batch)
    assert (changed - expected).abs().max() > 0.1
    with torch.no_grad():
        for prompts in prompts_of(model, False) + prompts_of(model, True):
            prompts += 1
    assert torch.equal(logits(model, batch), changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_fp32_adapter_on_a_narrow_base(dtype: torch.dtype, projector: str, tmp_path: Path) -> None:
    wide = make_case(tiny_llava(projector=projector), **SMALL, train_lm_head=True).model
    wide.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_llava(projector=projector, dtype=dtype), str(tmp_path), is_trainable=True)
    for (name, p), (_, q) in zip(
        adapter_parameters(model, "default"), adapter_parameters(wide, "default"), strict=True
    ):
        assert p.dtype == torch.float32 and torch.equal(p, q), name
    batch = batch_for(model, [8, 6])
    real = batch["attention_mask"].bool()
    found = model(**batch)
    assert found.logits.dtype == dtype
    expected = logits(wide, {**batch, "pixel_values": batch["pixel_values"].float()})
    error = (found.logits.float() - expected)[real].abs().max() / expected[real].abs().max()
    assert error < (0.1 if dtype == torch.bfloat16 else 0.01)
    found.loss.backward()
    last = "vision_tower.encoder.layers.3.self_attn.m2pt_prompts.default"
    for name, p in adapter_parameters(model, "default"):
        assert name.endswith(last) or (p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all()), name
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert tokens.shape[1] == batch["input_ids"].shape[1] + 3


def test_fp32_values_survive_lazy_loading_onto_a_narrow_base(tmp_path: Path) -> None:
    wide = make_case(tiny_llava(projector="linear"), **SMALL, interaction="residual").model
    wide.save_pretrained(tmp_path)
    base = tiny_llava(projector="linear", dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, str(tmp_path), low_cpu_mem_usage=True)
    for (_, p), (name, q) in zip(
        adapter_parameters(model, "default"), adapter_parameters(wide, "default"), strict=True
    ):
        assert p.dtype == torch.float32 and torch.equal(p, q), name


def test_the_base_may_be_moved_later() -> None:
    """The prompts pass the layer norm that the base has now, not one it had when the adapter was put in."""
    model = make_case(tiny_llava(), **SMALL).model
    batch = batch_for(model, [8, 6])
    expected = logits(model, batch)
    batch["pixel_values"] = batch["pixel_values"].double()
    torch.testing.assert_close(logits(model.double(), batch).float(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    model = make_case(tiny_llava(dtype=dtype), **SMALL).model.train()
    batch = batch_for(model, [8, 6])
    wide = model(**batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(**batch).loss
    narrow.backward()
    assert abs(narrow - wide) < 0.1 * wide
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_two_methods_in_one_model_are_refused() -> None:
    lora = LoraConfig(target_modules=["gate_proj"])
    with pytest.raises(MethodError, match="another PEFT method"):
        get_peft_model(get_peft_model(tiny_llava(), lora).base_model.model, small())
    if own_loader:
        model = tiny_llava()
        model.add_adapter(small(), adapter_name="prompts")
        model.add_adapter(lora, adapter_name="lora")
        with pytest.raises(MethodError, match="LORA"):
            model(**batch_for(model, [8]))
    with pytest.raises(ValueError, match="peft type"):
        get_peft_model(tiny_llava(), small()).add_adapter("lora", lora)


def test_what_prompts_can_not_do() -> None:
    model = get_peft_model(tiny_llava(), small())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(MethodError, match="can't be merged"):
            merge()
    with pytest.raises(MethodError, match="output head of its own"):
        get_peft_model(tiny_llava(tied=True), small(train_lm_head=True))
    assert get_peft_model(tiny_llava(tied=True), small()).get_nb_trainable_parameters()[0]
    replica = model.base_model.model.model.language_model.layers[0].self_attn._replicate_for_data_parallel()
    with pytest.raises(MethodError, match="DataParallel"):
        replica(torch.zeros(1, 2, 24))
    with pytest.raises(MethodError, match="'projector' and with 'residual'"):
        model.add_adapter("whole", small(interaction="projector"))
    whole = get_peft_model(tiny_llava(), small(interaction="projector"))
    with pytest.raises(MethodError, match="'projector' and with 'residual'"):
        whole.add_adapter("beside", small(interaction="residual"))
    assert list(whole.peft_config) == ["default"]


def test_auto_is_written_as_what_it_stands_for(tmp_path: Path) -> None:
    config = small()
    for projector, kind in (("linear", "projector"), ("mlp", "residual")):
        model = get_peft_model(tiny_llava(projector=projector), config)
        assert model.peft_config["default"].interaction == kind
    assert config.interaction == "auto"


def test_the_layer_that_no_feature_depends_on_is_not_run() -> None:
    case = make_case(tiny_llava(), **SMALL)
    tower = case.model.base_model.model.model.vision_tower
    batch = batch_for(case.base, [8])
    runs: list[int] = []
    for index, layer in enumerate(tower.encoder.layers):
        for part in (layer.self_attn, layer.mlp):
            inner = getattr(part, "base_layer", part)
            inner.register_forward_hook(lambda *_, index=index: runs.append(index))
    skipped = logits(case.model, batch)
    assert sorted(set(runs)) == [0, 1, 2]
    for part in (tower.encoder.layers[3].self_attn, tower.encoder.layers[3].mlp):
        part.is_idle = False
        part.m2pt_adapters.clear()
    assert torch.equal(logits(case.model, batch), skipped)
    assert 3 in runs
