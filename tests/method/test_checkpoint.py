"""Loading is strict: any mismatch is an `AdapterError` (exit code 4) that names both sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.cases import make_case
from fixtures.models import IMAGE_TOKEN, batch_for, fill_adapter, prompts_of, tiny_llava
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from m2pt_cli.errors import AdapterError
from m2pt_cli.method import MethodError, load_adapter_strictly, preset, read_adapter_config
from m2pt_cli.method.architecture import original

SMALL = {"num_visual_prompts": 3, "num_textual_prompts": 2}
TEXT = "base_model.model.model.language_model.layers.{}.self_attn.m2pt_prompts"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of a LLaVA-1.5-like base."""
    case = make_case(tiny_llava(), **SMALL, chat_template="vicuna_v1", base_fingerprint="f" * 64)
    case.model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
@pytest.mark.parametrize("method", ["m2pt", "visual", "textual", "interaction", "lora"])
def test_every_method_comes_back(method: str, projector: str, tmp_path: Path) -> None:
    base = tiny_llava(projector=projector)
    config = preset(method, base.config, **SMALL, lora_rank=2, train_lm_head=True)
    assert config is not None
    model = get_peft_model(base, config)
    fill_adapter(model)
    model.eval().save_pretrained(tmp_path)
    batch = batch_for(base, [8, 6])
    bare = tiny_llava(projector=projector)
    loaded = load_adapter_strictly(bare, tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert not any(p.requires_grad for p in loaded.parameters())
    again = load_adapter_strictly(loaded, tmp_path, "again", base_fingerprint="any")
    assert again is loaded and loaded.active_adapter == "default"
    loaded.set_adapter("again")
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    trained = load_adapter_strictly(tiny_llava(projector=projector), tmp_path, trainable=True)
    assert trained.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]
    with pytest.raises(AdapterError, match="'again' in the model already"):
        load_adapter_strictly(loaded, tmp_path, "again")


def test_what_must_be_the_same_at_inference(folder: Path, tmp_path: Path) -> None:
    config, inference = read_adapter_config(folder)
    assert inference == {"chat_template": "vicuna_v1", "image_fit": None, "base_fingerprint": "f" * 64}
    assert config.num_textual_prompts == 2
    lora = get_peft_model(tiny_llava(), preset("lora", tiny_llava().config, lora_rank=2))
    lora.save_pretrained(tmp_path / "lora")
    change_config(tmp_path / "lora", chat_template="llava_v1", base_fingerprint="abc", visual_tokens="patches")
    config, inference = read_adapter_config(tmp_path / "lora")
    assert isinstance(config, LoraConfig) and inference["chat_template"] == "llava_v1"
    with pytest.raises(AdapterError, match="fingerprint abc, this one def"):
        load_adapter_strictly(tiny_llava(), tmp_path / "lora", base_fingerprint="def")


def test_faults_of_the_files(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, change: Callable[[Path], Any]) -> Path:
        place = tmp_path / name
        shutil.copytree(folder, place)
        change(place)
        return place

    config, weights = "adapter_config.json", "adapter_model.safetensors"
    empty = tmp_path / "empty"
    empty.mkdir()

    def pickle_only(place: Path) -> None:
        (place / weights).unlink()
        torch.save({"a": torch.zeros(1)}, place / "adapter_model.bin")

    cases: dict[str, tuple[Path, str]] = {
        "absent": (tmp_path / "nowhere", "there is no adapter at"),
        "a file": (folder / config, "it is a file"),
        "empty": (empty, r"no adapter_config.json \(it holds nothing\)"),
        "no config": (broken("a", lambda f: (f / config).unlink()), "it has no adapter_config.json"),
        "no JSON": (broken("b", lambda f: (f / config).write_text("{")), "can't be read"),
        "no text": (broken("c", lambda f: (f / config).write_bytes(b"\xff\xfe\x00")), "can't be read"),
        "a list": (broken("d", lambda f: (f / config).write_text("[]")), "holds a list"),
        "other method": (broken("e", lambda f: change_config(f, peft_type="IA3")), "peft_type is 'IA3', not M2PT"),
        "no method": (broken("f", lambda f: change_config(f, peft_type=["M2PT"])), "peft_type is"),
        "bad value": (broken("g", lambda f: change_config(f, num_visual_prompts=-3)), "at least 0, not -3"),
        "unknown key": (broken("h", lambda f: change_config(f, prompt_kind="x")), "unknown setting 'prompt_kind'"),
        "no weights": (broken("i", lambda f: (f / weights).unlink()), "has no adapter_model.safetensors"),
        "a pickle": (broken("j", pickle_only), "adapter_model.bin is a pickle.*not opened"),
        "cut": (broken("k", lambda f: (f / weights).write_bytes((f / weights).read_bytes()[:-9])), "is damaged"),
        "noise": (broken("l", lambda f: (f / weights).write_bytes(b"no tensors")), "is damaged"),
        "nan": (
            broken("m", lambda f: change_tensors(f, lambda t: t[TEXT.format(0)].fill_(torch.nan))),
            "layers.0.self_attn.m2pt_prompts holds values that are not finite",
        ),
    }
    for name, (place, message) in cases.items():
        with pytest.raises(AdapterError, match=message) as caught:
            load_adapter_strictly(tiny_llava(), place)
        assert caught.value.exit_code == 4 and caught.value.hint, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(TEXT.format(1)), r"1 missing \(the first is .*language_model.layers.1"),
        (lambda t: t.update({TEXT.format(1) + "_b": torch.zeros(1)}), r"1 unexpected \(the first is .*m2pt_prompts_b"),
        (
            lambda t: t.update({TEXT.format(1): torch.zeros(5, 24)}),
            r"layers.1.* is \[5, 24\] in the file and \[2, 24\]",
        ),
        (lambda t: t.clear(), "9 missing"),
        (lambda t: t.update({TEXT.format(1): t[TEXT.format(1)][0]}), r"is \[24\] in the file and \[2, 24\]"),
    ],
)
def test_weights_that_are_not_those_of_the_config(folder: Path, change: Any, message: str) -> None:
    change_tensors(folder, change)
    base = tiny_llava()
    before = dict(base.state_dict())
    with pytest.raises(AdapterError, match=message):
        load_adapter_strictly(base, folder)
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    get_peft_model(base, preset("m2pt", base.config))


def test_a_failing_lora_adapter_leaves_the_base(tmp_path: Path) -> None:
    base = tiny_llava()
    model = get_peft_model(tiny_llava(), preset("lora", base.config, lora_rank=2))
    fill_adapter(model)
    model.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.popitem())
    before = dict(base.state_dict())
    with pytest.raises(AdapterError, match="1 missing"):
        load_adapter_strictly(base, tmp_path)
    assert base.state_dict().keys() == before.keys()
    assert type(base.model.multi_modal_projector.linear_1) is torch.nn.Linear


def test_a_failure_leaves_the_adapters_that_are_there(folder: Path) -> None:
    model = load_adapter_strictly(tiny_llava(), folder, "good")
    batch = batch_for(model, [8, 6])
    expected = logits(model, batch)
    change_config(folder, num_textual_prompts=5)
    with pytest.raises(AdapterError, match=r"\[2, 24\] in the file and \[5, 24\]"):
        load_adapter_strictly(model, folder, "bad")
    assert list(model.peft_config) == ["good"]
    assert torch.equal(logits(model, batch), expected)


def test_an_adapter_of_another_geometry(folder: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter_strictly(tiny_llava(num_hidden_layers=2), folder)
    assert "3 text layers of width 24, 4 vision layers of width 16" in caught.value.message
    assert "this base has 4 vision layers of width 16, 2 text layers of width 24" in caught.value.message
    with pytest.raises(AdapterError, match=r"this base has .* 3 text layers of width 32"):
        load_adapter_strictly(tiny_llava(hidden_size=32), folder)
    # Where the prompts fit, the interaction layer tells.
    change_config(folder, interaction="auto")
    with pytest.raises(AdapterError, match=r"2 missing .*multi_modal_projector.bias.*2 unexpected .*m2pt_interaction"):
        load_adapter_strictly(tiny_llava(projector="linear"), folder)


def test_an_adapter_of_another_base(folder: Path) -> None:
    with pytest.raises(AdapterError, match="fingerprint ffffffffffffffff, this one 0000000000000000"):
        load_adapter_strictly(tiny_llava(), folder, base_fingerprint="0" * 64)
    assert isinstance(load_adapter_strictly(tiny_llava(), folder, base_fingerprint="f" * 64), PeftModel)
    # A base built in memory has no fingerprint: then geometry alone is compared.
    assert isinstance(load_adapter_strictly(tiny_llava(), folder, base_fingerprint=None), PeftModel)


def test_a_base_or_a_model_that_can_not_take_it(folder: Path) -> None:
    base = tiny_llava(tower="siglip")
    change_config(folder, visual_tokens="official")
    with pytest.raises(MethodError, match="no class token"):
        load_adapter_strictly(base, folder)
    lora = get_peft_model(tiny_llava(), LoraConfig(target_modules=["gate_proj"]))
    with pytest.raises(AdapterError, match="does not fit the model"):
        load_adapter_strictly(lora, folder, "prompts")


def train(model: Any, batch: dict[str, Tensor], steps: int) -> list[float]:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_each_part_of_a_loaded_adapter_matters(projector: str, tmp_path: Path) -> None:
    """The authors' evaluation ran without its prompts and nobody saw it (PAPER, section 6): here every part shows."""
    base = tiny_llava(projector=projector)
    batch = batch_for(base, [12, 12, 12])
    batch["labels"][:, -6:] = batch["input_ids"][:, -6:]
    model = get_peft_model(base, preset("m2pt", base.config, num_visual_prompts=6, num_textual_prompts=4))
    losses = train(model.train(), batch, 30)
    assert losses[-1] < 0.5 * losses[0]
    model.eval().save_pretrained(tmp_path)

    question = {**batch_for(base, [9] * 8, seed=5)}
    del question["labels"]
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "suppress_tokens": [IMAGE_TOKEN]}
    loaded = load_adapter_strictly(tiny_llava(projector=projector), tmp_path)
    expected, answers = logits(loaded, question), loaded.generate(**question, **options)
    assert torch.equal(model.generate(**question, **options), answers)
    for part in ("visual", "textual", "interaction"):
        changed = load_adapter_strictly(tiny_llava(projector=projector), tmp_path)
        with torch.no_grad():
            if part != "interaction":
                for prompts in prompts_of(changed, part == "visual"):
                    prompts.zero_()
            elif projector == "mlp":
                for name, p in changed.named_parameters():
                    if "m2pt_interaction" in name:
                        p.zero_()
            else:
                wrapper = changed.base_model.model.model.multi_modal_projector
                wrapper.modules_to_save["default"].load_state_dict(original(wrapper).state_dict())
        assert (logits(changed, question) - expected).abs().max() > 1e-2, part
        assert not torch.equal(changed.generate(**question, **options), answers), part
