"""The five commands on a tiny base of every family beyond LLaVA, from its folder on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.families import FAMILIES, family_processor, needs_packages, write_family_base
from PIL import Image

from m2pt_cli.cli.app import main

each_family = pytest.mark.parametrize("name", [pytest.param(name, marks=needs_packages(name)) for name in FAMILIES])


@each_family
def test_train_infer_eval_count_and_look(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, run, picture = write_family_base(tmp_path / "base", name), tmp_path / "run", tmp_path / "a.png"
    Image.effect_noise((90, 60), 80).convert("RGB").save(picture)
    common = ["--device", "cpu", "--json"]
    data = ["--data", "demo", "--limit", "8", "--max-steps", "2", "--batch-size", "2", "--accumulation", "1"]
    prompts = ["--visual-prompts", "2", "--textual-prompts", "3"]
    assert main(["train", "--base", str(base), *data, *prompts, "--output-dir", str(run), *common]) == 0
    trained = json.loads(capfd.readouterr().out)
    assert trained["steps"] == 2 and trained["validation"] is None

    questions = tmp_path / "questions.jsonl"
    lines = [{"image": "a.png", "question": text} for text in ("What is it?", "Which color?")]
    questions.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    shared = ["--max-new-tokens", "4", "--device", "cpu"]
    assert main(["infer", "--input", str(questions), "--adapter", str(run), "--adapter", "none", *shared]) == 0
    together = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [answer["error"] for answer in together] == [None] * 4
    for number, text in enumerate(("What is it?", "Which color?")):
        assert main(["infer", str(picture), text, "--adapter", str(run), "--json", *shared]) == 0
        assert json.loads(capfd.readouterr().out)["answer"] == together[2 * number]["answer"]

    evaluation = tmp_path / "evaluation"
    assert main(["eval", "--bench", "demo", "--limit", "4", "--adapter", str(run), "--output-dir", str(evaluation),
                 "--max-new-tokens", "4", *common]) == 0  # fmt: skip
    assert json.loads(capfd.readouterr().out)["benchmarks"]["demo"]["n"] == 4

    assert main(["count-params", "--adapter", str(run), "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)
    assert counts["trainable"] == trained["trainable"]
    assert counts["bytes"] == (run / "adapter_model.safetensors").stat().st_size
    assert counts["groups"]["visual_prompts"] == 3 * 2 * 16 and counts["groups"]["textual_prompts"] == 3 * 3 * 32

    figure = tmp_path / "map.png"
    assert main(["attn-map", str(picture), "What is it?", "--adapter", str(run), "-o", str(figure), *common]) == 0
    assert Image.open(figure).size[0] > 500
    capfd.readouterr()


@each_family
def test_what_is_counted_before_training_is_what_training_saves(name: str, tmp_path: Path) -> None:
    from fixtures.families import tiny_family
    from peft import get_peft_model

    from m2pt_cli.method import preset, select_full
    from m2pt_cli.models.catalog import entry_of
    from m2pt_cli.models.count import Recipe, trained_weights

    geometry = entry_of(str(write_family_base(tmp_path / "base", name))).geometry
    model = tiny_family(name)
    assert geometry.total_parameters == sum(p.numel() for p in model.parameters())
    for method, options in (("m2pt", {}), ("lora", {}), ("m2pt", {"interaction": "projector"}), ("full", {})):
        counted = {weight.name: weight.shape for weight in trained_weights(geometry, Recipe(method=method, **options))}
        model = tiny_family(name)
        config = preset(method, model.config, **options)
        if config is None:
            select_full(model)
            wanted = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        else:
            from peft import get_peft_model_state_dict

            peft_model = get_peft_model(model, config)
            wanted = {n: tuple(p.shape) for n, p in get_peft_model_state_dict(peft_model).items()}
        assert counted == wanted, (method, options)


@each_family
def test_a_damaged_config_is_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base = write_family_base(tmp_path / "base", name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for part, key, value in (
        ("vision_config", "num_hidden_layers", -3),
        ("text_config", "hidden_size", "wide"),
        ("text_config", "model_type", "gpt2"),
    ):
        broken = json.loads(json.dumps(config))
        broken[part][key] = value
        (base / "config.json").write_text(json.dumps(broken), encoding="utf-8")
        assert main(["count-params", "--base", str(base)]) == 1
        said = capfd.readouterr().err
        assert said.startswith("error: the base's") and "Traceback" not in said, said
    assert family_processor(name).chat_template is not None
