from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.errors import SettingsError, UnavailableError
from m2pt_cli.models.catalog import entry_of
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training import plan
from m2pt_cli.training.plan import needs_download, require_trackers, resolve


def resolved(base: str = "nano", **values: object) -> TrainSettings:
    return resolve(TrainSettings(**({"data": ("demo",)} | values)), entry_of(base))  # type: ignore[arg-type]


def test_the_papers_recipe_is_the_default_of_7b() -> None:
    settings = resolved("llava-1.5-7b")
    found = (settings.learning_rate, settings.epochs, settings.batch_size, settings.accumulation, settings.warmup)
    assert found == (7e-4, 3, 16, 2, 0.03)
    assert (settings.visual_prompts, settings.textual_prompts, settings.max_length) == (20, 10, 1024)
    assert (settings.template, settings.image_fit, settings.max_steps) == ("vicuna_v1", "crop", None)


def test_what_is_said_stays() -> None:
    settings = resolved("llava-1.5-7b", batch_size=3, visual_prompts=0, template="llava_v1", weight_decay=0.5)
    assert (settings.batch_size, settings.visual_prompts, settings.template, settings.weight_decay) == (
        3,
        0,
        "llava_v1",
        0.5,
    )


def test_epochs_and_steps_rule_each_other_out() -> None:
    assert resolved("nano").max_steps is not None
    assert (resolved("nano", epochs=2.0).epochs, resolved("nano", epochs=2.0).max_steps) == (2.0, None)
    settings = resolved("llava-1.5-7b", max_steps=7)
    assert (settings.epochs, settings.max_steps) == (None, 7)


def test_a_rate_that_is_said_is_the_rate_of_every_part() -> None:
    """nano has rates for each part, which would leave --learning-rate without effect."""
    defaults = resolved("nano")
    assert defaults.visual_lr is not None and defaults.interaction_lr is not None
    settings = resolved("nano", learning_rate=0.5, textual_lr=0.25)
    assert (settings.learning_rate, settings.visual_lr, settings.textual_lr) == (0.5, None, 0.25)


def test_a_base_is_recorded_by_a_name_that_holds_anywhere() -> None:
    assert resolved("llava-hf/llava-1.5-7b-hf").base == "llava-1.5-7b"


def test_nothing_to_train() -> None:
    with pytest.raises(SettingsError, match="--method interaction with no prompts and --interaction none"):
        resolved(method="interaction", interaction="none")
    assert resolved(method="lora", interaction="none").method == "lora"


def test_what_would_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert needs_download("vision-flan") and needs_download("lmms-lab/MME") and needs_download("a/b:subset")
    local = ("demo", "owner/name", "./owner/missing", "data/missing.json", "/abs/path", "missing.jsonl", "~/x")
    assert not any(needs_download(name) for name in local)


def test_trackers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "wandb" else object())
    require_trackers(TrainSettings(data=("demo",), report_to=("tensorboard", "none")))
    with pytest.raises(UnavailableError, match="--report-to wandb: not installed") as raised:
        require_trackers(TrainSettings(data=("demo",), report_to=("wandb", "tensorboard")))
    assert "m2pt_cli[track]" in (raised.value.hint or "")
