from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.dry_run import DryRun, dry_run, planned_memory


def plan(base: Path, data: Path, **values: object) -> DryRun:
    options = {"data": (str(data),), "base": str(base), "device": "cpu", "template": "plain", "batch_size": 2}
    return dry_run(TrainSettings(**(options | values)))  # type: ignore[arg-type]


def test_one_sample_with_its_supervised_span(base_folder: Path, data_file: Path) -> None:
    found = plan(base_folder, data_file)
    assert (found.sample_id, [Path(name).name for name in found.sample_images]) == ("s0", ["0.png"])
    kinds = [(part.is_image, part.is_supervised) for part in found.sample]
    assert kinds == [(False, False), (True, False), (False, False), (False, True)]
    assert len(found.sample[1].token_ids) == 9
    assert found.sample[-1].text.split() in (["yes", "</s>"], ["no", "</s>"])
    assert found.supervised == 24 and found.steps == 9  # 12 samples in batches of 2 x 2, three epochs


def test_official_tokens_are_counted_in(base_folder: Path, data_file: Path) -> None:
    found = plan(base_folder, data_file, visual_tokens="official", visual_prompts=3)
    assert len(found.sample[1].token_ids) == 12


def test_memory_follows_the_longest_sample(base_folder: Path, data_file: Path) -> None:
    short, long = plan(base_folder, data_file, limit=1), plan(base_folder, data_file)
    assert planned_memory(short, trainable=10).activations <= planned_memory(long, trainable=10).activations


def test_refuses_what_a_run_would_refuse(base_folder: Path, data_file: Path) -> None:
    with pytest.raises(SettingsError, match="not empty"):
        plan(base_folder, data_file, output_dir=data_file.parent)
    with pytest.raises(InputError, match="12 faulty samples"):
        plan(base_folder, data_file, max_length=8)
