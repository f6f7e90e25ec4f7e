from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.models import tiny_llava
from fixtures.toy_samples import collate, toy_samples
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from m2pt_cli.errors import DivergenceError
from m2pt_cli.runtime.signals import StopRequest
from m2pt_cli.training.checkpoints import checkpoints, latest_checkpoint
from m2pt_cli.training.events import Event, Saved, Step, Validated
from m2pt_cli.training.loss import supervised_loss
from m2pt_cli.training.trainer import M2PTTrainer

Make = Callable[..., M2PTTrainer]


def adapted(seed: int = 0, **options: Any) -> nn.Module:
    """Dropout draws random numbers in every step: a resumed run must get the same ones."""
    model = tiny_llava()
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, **options))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_first_loss_is_the_mean_over_the_effective_batch(make_trainer: Make, tmp_path: Path) -> None:
    model = get_peft_model(tiny_llava(), LoraConfig(r=2, target_modules=["q_proj"]))
    samples = toy_samples(4)
    trainer = make_trainer(model, samples=samples, steps=1)
    model.train()
    expected = supervised_loss(model, collate(samples)).item()
    trainer.train()
    assert rows(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_nothing_on_stdout(make_trainer: Make, capfd: pytest.CaptureFixture[str]) -> None:
    make_trainer(adapted(), steps=2).train()
    assert capfd.readouterr() == ("", "")


def test_learning_rate_of_each_part(make_trainer: Make) -> None:
    model = get_peft_model(tiny_llava(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["linear_2"]))
    trainer = make_trainer(model, learning_rates={"lora_A": 0.5, "default": 0.25}, weight_decay=0.1)
    parts = {trainer.part_of[n]: id(p) for n, p in model.named_parameters() if p.requires_grad}
    groups = [
        (g["lr"], g["weight_decay"], {id(p) for p in g["params"]}) for g in trainer.create_optimizer().param_groups
    ]
    found = {rate for rate, _, ids in groups if parts["default"] in ids}
    assert found == {0.25} or found == {0.5}  # PEFT names both lora_A.default and modules_to_save.default
    biases = [p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    assert biases and all(decay == 0.0 for _, decay, ids in groups if id(biases[0]) in ids)


def test_warm_up_then_cosine(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(adapted(), steps=10, warmup=0.2, learning_rate=1.0).train()
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    assert rates[:3] == [0.0, 0.5, 1.0]
    assert rates[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 8)))


@pytest.mark.parametrize("stop_at", [3, 5, 6])
def test_stopped_and_resumed_is_bit_identical(make_trainer: Make, tmp_path: Path, stop_at: int) -> None:
    """10 samples, batches of 2 x 2: three steps an epoch; stops inside and at the end of an epoch."""
    whole = adapted()
    make_trainer(whole, run_dir=tmp_path / "whole", steps=8, validation=toy_samples(3, seed=9), save_steps=2).train()

    request = StopRequest()

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == stop_at - 1:
            request.signal_number = 2

    options = {"run_dir": tmp_path / "parts", "steps": 8, "validation": toy_samples(3, seed=9), "save_steps": 2}
    make_trainer(adapted(), request=request, events=stop, **options).train()
    last = latest_checkpoint(tmp_path / "parts", pytest.fail)
    assert last is not None and last.name == f"checkpoint-{stop_at}"
    torch.manual_seed(1234)
    resumed = adapted(seed=99)  # every trained weight comes from the checkpoint
    make_trainer(resumed, **options).train(resume_from_checkpoint=str(last))

    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    without_time = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows(tmp_path / part)]
        for part in ("whole", "parts")
    ]
    assert without_time[0] == without_time[1]


def test_best_checkpoint_by_validation_loss_is_kept(make_trainer: Make, tmp_path: Path) -> None:
    """Training labels contradict the validation labels, so that the loss on these rises again."""
    validation = toy_samples(4, seed=9)
    samples = [
        (ids, [-100 if x < 0 else (x + 7) % 60 + 3 for x in labels], pixels) for ids, labels, pixels in validation
    ]
    events: list[Event] = []
    trainer = make_trainer(
        adapted(modules_to_save=["lm_head"]), samples=samples * 3, validation=validation, steps=8, save_steps=2,
        learning_rate=0.1, warmup=0.0, events=events.append,
    )  # fmt: skip
    trainer.train()
    losses = {e.step: e.loss for e in events if isinstance(e, Validated)}
    best = min(losses, key=losses.__getitem__)
    assert list(losses) == [2, 4, 6, 8] and best < 6
    assert trainer.state.best_global_step == best
    assert [step for step, _ in checkpoints(tmp_path)] == [best, 6, 8]
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6, 8]
    assert [e.step for e in events if isinstance(e, Validated) and e.is_best][-1] == best


def test_validation_loss_is_the_mean_over_tokens(make_trainer: Make) -> None:
    model = adapted()
    validation = toy_samples(5, seed=9)
    validation[0] = (validation[0][0], [-100, *validation[0][0][1:]], validation[0][2])
    trainer = make_trainer(model, validation=validation)
    model.eval()
    expected = supervised_loss(model, collate(validation)).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_checkpoint_holds_trained_weights_only(make_trainer: Make, tmp_path: Path) -> None:
    model = adapted()
    make_trainer(model, steps=2).train()
    folder = tmp_path / "checkpoint-2"
    stored = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(t.numel() for t in weights(model).values())
    assert not list(folder.glob("*.bin")) and not (folder / "README.md").exists()
    assert sum(f.stat().st_size for f in folder.iterdir()) < 100_000


def test_diverging_loss_stops_and_keeps_the_last_good_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    model = adapted()

    def poison(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))

    trainer = make_trainer(model, save_steps=2, events=poison)
    with pytest.raises(DivergenceError, match="loss became nan at step 4") as raised:
        trainer.train()
    assert "--learning-rate" in (raised.value.hint or "")
    assert [path.name for _, path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "checkpoint-2/adapter_model.safetensors").values())


def test_weights_that_are_not_finite_are_not_saved(make_trainer: Make, tmp_path: Path) -> None:
    model = adapted()

    def poison(event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("inf"))

    with pytest.raises(DivergenceError, match="by step 4"):
        make_trainer(model, save_steps=2, events=poison).train()
    assert [path.name for _, path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_full_tuning_resumes_too(make_trainer: Make, tmp_path: Path) -> None:
    whole = tiny_llava().requires_grad_(True)
    make_trainer(whole, run_dir=tmp_path / "whole", steps=4, save_steps=2).train()
    resumed = tiny_llava(seed=5).requires_grad_(True)
    trainer = make_trainer(resumed, run_dir=tmp_path / "parts", steps=4, save_steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
