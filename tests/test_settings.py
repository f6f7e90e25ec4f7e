"""Settings from YAML and flags: all faults are reported at once, each with the flag and the value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import AttnMapSettings, EvalSettings, InferSettings, TrainSettings, convert, read_yaml


def faults(**values: Any) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        TrainSettings(**({"data": ("demo",)} | values))
    return raised.value.message.split("; ")


def test_every_fault_at_once() -> None:
    said = faults(method="loro", batch_size=0, warmup=1.5, seed=-1, report_to=("tensorbord",), device="gpu")
    assert len(said) == 6
    assert "--method 'loro' is not one of m2pt, visual, textual, interaction, lora, full. Did you mean 'lora'?" in said
    assert "--batch-size 0 must be at least 1" in said
    assert "--device 'gpu' is not cpu, cuda, cuda:N or mps" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_numbers_that_train_nothing(value: float) -> None:
    assert faults(learning_rate=value) == [f"--learning-rate {value} must be more than 0"]
    assert len(faults(epochs=value)) == 1


NUMBERS = {
    TrainSettings: (
        "limit", "visual_prompts", "textual_prompts", "lora_rank", "epochs", "max_steps", "batch_size", "accumulation",
        "learning_rate", "visual_lr", "textual_lr", "interaction_lr", "warmup", "weight_decay", "max_length",
        "save_steps", "keep", "workers", "seed", "threads",
    ),
    InferSettings: ("max_new_tokens", "temperature", "num_beams", "seed", "threads"),
    EvalSettings: ("limit", "max_new_tokens", "batch_tokens", "seed", "threads"),
    AttnMapSettings: ("max_new_tokens", "seed", "threads"),
}  # fmt: skip
NEEDED: dict[Any, dict[str, Any]] = {
    TrainSettings: {"data": ("demo",)}, InferSettings: {}, EvalSettings: {"bench": ("demo",)},
    AttnMapSettings: {"image": "a.png", "question": "what"},
}  # fmt: skip


def test_every_number_of_every_command_is_in_this_test() -> None:
    for kind, names in NUMBERS.items():
        found = {f.name for f in dataclasses.fields(kind) if str(f.type).removesuffix(" | None") in ("int", "float")}
        assert found == set(names)


OUT_OF_RANGE = (
    -1, 10**30, 10**400, 10**5000, -(10**400), 1e308, float("inf"), float("-inf"), float("nan"), "1", True, [1],
)  # fmt: skip


@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=range(len(OUT_OF_RANGE)))  # Python writes no number this long
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_no_library_takes_are_one_fault_each(kind: Any, value: Any) -> None:
    names = NUMBERS[kind]
    with pytest.raises(SettingsError) as raised:
        kind(**NEEDED[kind], **dict.fromkeys(names, value))
    said = raised.value.message.split("; ")
    assert len(said) == len(names) and len(raised.value.message) < 100 * len(names)
    for name, sentence in zip(sorted(names), sorted(said), strict=True):
        assert sentence.startswith("--" + name.replace("_", "-")) and ("must be" in sentence or "is not a" in sentence)


@pytest.mark.parametrize("kind", NUMBERS)
def test_the_largest_seed_is_that_of_numpy(kind: Any) -> None:
    kind(**NEEDED[kind], seed=2**32 - 1)
    with pytest.raises(SettingsError, match=r"^--seed 4294967296 must be at most 4,294,967,295$"):
        kind(**NEEDED[kind], seed=2**32)


def test_numbers_of_a_file_are_checked_alike(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: demo\nseed: 4294967296\nlearning_rate: 1e308\nepochs: .inf\n")
    with pytest.raises(SettingsError) as raised:
        TrainSettings.from_sources(file, {})
    assert len(raised.value.message.split("; ")) == 3


@pytest.mark.parametrize(
    "device", ["cuda:128", "cuda:99999999999999999999", "cuda:\u00b2", "cuda:\uff11", "cuda:-1", "cpu:x", "cuda:"]
)
def test_devices_that_can_not_be(device: str) -> None:
    assert len(faults(device=device)) == 1


def test_a_temperature_near_zero_is_none() -> None:
    InferSettings(temperature=0.01)
    with pytest.raises(SettingsError, match="--temperature 1e-40 is so low that numbers overflow: 0 is greedy"):
        InferSettings(temperature=1e-40)


def test_prompts_that_a_method_does_not_have() -> None:
    assert faults(method="lora", visual_prompts=4) == ["--visual-prompts 4: --method lora has no visual prompts"]
    assert faults(method="visual", visual_prompts=0) == ["--method visual with --visual-prompts 0 trains no prompt"]
    TrainSettings(data=("demo",), method="textual", visual_prompts=0, textual_prompts=3)
    TrainSettings(data=("demo",), method="m2pt", visual_prompts=0, textual_prompts=0)


def test_a_method_left_with_nothing() -> None:
    said = "--method m2pt with no prompts and --interaction none trains nothing"
    assert faults(visual_prompts=0, textual_prompts=0, interaction="none") == [said]
    assert len(faults(method="interaction", interaction="none")) == 1
    TrainSettings(data=("demo",), visual_prompts=0, interaction="none")
    TrainSettings(data=("demo",), method="interaction", interaction="none", train_lm_head=True)


@pytest.mark.parametrize("share", ["0", "1", "2", "-0.1", "nan"])
def test_a_share_that_is_none(share: str) -> None:
    assert faults(validation=share) == [f"--validation {share} is not a share between 0 and 1, nor a file"]


def test_no_guess_no_full_stop() -> None:
    assert faults(init="quux") == ["--init 'quux' is not one of xavier, normal, zeros"]


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: demo\nlearning_rate: 7e-4\nbatch_size: 4\nresume: true\nimages: [a, b]\n")
    settings = TrainSettings.from_sources(file, {"batch_size": 8, "epochs": None, "images": (), "method": "lora"})
    assert (settings.data, settings.learning_rate, settings.batch_size) == (("demo",), 7e-4, 8)
    assert (settings.resume, settings.images, settings.method) == (True, (Path("a"), Path("b")), "lora")


def test_file_with_unknown_keys_and_wrong_types(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: demo\nlerning_rate: 1\nepochs: many\nresume: 1\nbatch_size: 1.5\nseed: true\n")
    with pytest.raises(SettingsError) as raised:
        TrainSettings.from_sources(file, {})
    said = raised.value.message.split("; ")
    assert len(said) == 5
    assert f"unknown key 'lerning_rate' in {file}. Did you mean 'learning_rate'?" in said
    assert "--epochs 'many' is not a number" in said and "--batch-size 1.5 is not a whole number" in said


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "a: [", "\x80"])
def test_file_that_holds_no_settings(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"bad\.yaml"):
        read_yaml(tmp_path / "bad.yaml")


def test_a_file_can_not_run_code(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(InputError):
        read_yaml(tmp_path / "evil.yaml")
    assert not (tmp_path / "made").exists()


def test_values_survive_a_round_trip() -> None:
    settings = TrainSettings(data=("demo", "x.json"), images=(Path("a"),), learning_rate=7e-4, keep=3, resume=True)
    known = {name: value for name, value in settings.to_dict().items() if value is not None}
    assert TrainSettings.from_sources(None, known) == settings


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("7e-4", "float | None", 7e-4), (3, "float", 3.0), (3.0, "int | None", 3), ("x", "tuple[str, ...]", ("x",)),
        (["x", 1], "tuple[str, ...]", ("x", "1")), ("p", "Path | None", Path("p")), (None, "int | None", None),
    ],
)  # fmt: skip
def test_conversion(value: Any, annotation: str, expected: Any) -> None:
    assert convert(value, annotation) == expected


def test_other_commands() -> None:
    with pytest.raises(SettingsError, match="--adapter 'a' is given twice"):
        InferSettings(adapter=("a", "a"))
    with pytest.raises(SettingsError, match="use one of them"):
        InferSettings(temperature=0.5, num_beams=2)
    with pytest.raises(SettingsError, match="--bench is missing"):
        EvalSettings()


def test_python_takes_text_or_paths_one_or_several() -> None:
    one = TrainSettings(data=Path("x.json"), images="photos", output_dir="runs/a", validation=0.1, report_to="wandb")
    assert (one.data, one.images, one.output_dir) == (("x.json",), (Path("photos"),), Path("runs/a"))
    assert (one.validation, one.report_to) == ("0.1", ("wandb",))
    several = TrainSettings(data=["demo", Path("x.json")], images=["a", Path("b")])
    assert (several.data, several.images) == (("demo", "x.json"), (Path("a"), Path("b")))
    asked = EvalSettings(bench="demo", adapter=Path("runs/a"), images="i", predictions="p.jsonl", output_dir="e")
    assert (asked.bench, asked.adapter, asked.images) == (("demo",), ("runs/a",), (Path("i"),))
    assert (asked.predictions, asked.output_dir) == (Path("p.jsonl"), Path("e"))
    looked = AttnMapSettings(
        image=Path("a.png"), question="q", adapter="runs/a", layer=1, part="vision", output="m.png"
    )
    assert (looked.image, looked.adapter, looked.layer) == ("a.png", ("runs/a",), (1,))
    assert (looked.part, looked.output) == (("vision",), Path("m.png"))
    assert InferSettings(adapter=Path("a")).adapter == ("a",)


def test_python_values_of_a_wrong_type_are_all_named() -> None:
    assert faults(batch_size="many", data=[None], resume="yes") == [
        "--data [None] is not a list of text", "--batch-size 'many' is not a whole number",
        "--resume 'yes' is not a switch",
    ]  # fmt: skip
