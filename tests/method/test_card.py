"""Cards: what the Hub reads, and that PEFT's empty template is replaced by ours alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fixtures.models import tiny_llava
from peft import LoraConfig, get_peft_model

from m2pt_cli.method import M2PTConfig
from m2pt_cli.method.card import front_matter, shown_base, usage


def front(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.split("---")[1])
    return found


def test_front_matter_holds_hub_ids_alone() -> None:
    lines = front_matter(base_models=["a/b"], tags=["lora", "llava"], datasets=["c/d"])
    assert front("\n".join(lines)) == {
        "base_model": "a/b", "datasets": ["c/d"], "library_name": "peft", "pipeline_tag": "image-text-to-text",
        "tags": ["m2pt", "lora", "llava"],
    }  # fmt: skip
    assert front("\n".join(front_matter(base_models=["a/b", "c/d"], tags=[])))["base_model"] == ["a/b", "c/d"]
    assert front("\n".join(front_matter(base_models=[], tags=[]))).keys() == {"library_name", "pipeline_tag", "tags"}


def test_a_folder_is_shown_without_its_place() -> None:
    assert shown_base("/home/somebody/models/mine") == "mine"
    assert shown_base("nano") == "nano" and shown_base("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    text = "\n".join(usage("/home/somebody/models/mine", is_m2pt=True))
    assert "somebody" not in text and "`mine` stands for the folder of the base" in text


@pytest.mark.parametrize("is_m2pt", [True, False])
def test_the_method_is_registered_before_an_adapter_is_read(is_m2pt: bool) -> None:
    code = "\n".join(usage("llava-hf/llava-1.5-7b-hf", is_m2pt=is_m2pt)).rpartition("```python")[2]
    assert ("import m2pt_cli.method" in code) == is_m2pt
    if is_m2pt:
        assert code.index("import m2pt_cli.method") < code.index("PeftModel.from_pretrained")
    assert 'AutoModelForImageTextToText.from_pretrained("llava-hf/llava-1.5-7b-hf")' in code


def test_peft_leaves_our_card(tmp_path: Path) -> None:
    base = tiny_llava()
    base.name_or_path = base.config._name_or_path = "llava-hf/llava-1.5-7b-hf"
    model = get_peft_model(base, M2PTConfig(num_visual_prompts=3, num_textual_prompts=2))
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "More Information Needed" not in card and "3 visual prompts in each layer" in card
    assert front(card)["base_model"] == "llava-hf/llava-1.5-7b-hf" and "2409.15657" in card
    (tmp_path / "README.md").write_text(f"{card}\nMy own words.\n")
    model.save_pretrained(tmp_path)
    assert "My own words." in (tmp_path / "README.md").read_text()


def test_the_card_of_another_method_is_left_alone(tmp_path: Path) -> None:
    get_peft_model(tiny_llava(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "More Information Needed" in (tmp_path / "README.md").read_text()
