"""The script that makes nano: stages resume exactly, facts are true, packed rows equal single ones."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from m2pt_cli.demo.scenes import draw_digit, draw_scene, split_of

MAKER = Path(__file__).parents[2] / "examples" / "make_nano"
MODULES = ("stage", "muon", "geometry", "language", "words", "packing", "decoder")


@pytest.fixture(scope="module")
def maker() -> Iterator[Any]:
    """The script's modules, imported as the script imports them."""
    sys.path.insert(0, str(MAKER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    finally:
        sys.path.remove(str(MAKER))
        for name in MODULES:
            sys.modules.pop(name, None)


def _train(maker: Any, folder: Path, *, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Thirty steps of a small regression with both optimisers, stopped by an exception at ``stop_at``."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    matrices = [p for p in module.parameters() if p.ndim == 2]
    biases = [p for p in module.parameters() if p.ndim == 1]
    optimisers = [maker.muon.Muon(matrices, 0.02), torch.optim.AdamW(biases, 1e-2)]

    def loss_at(step: int, rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        inputs = torch.tensor([[rng.random() for _ in range(4)] for _ in range(8)])
        return (module(inputs) - inputs[:, :2]).square().mean(), {"first": inputs[0, 0].item()}

    folder.mkdir(exist_ok=True)
    maker.stage.train_stage(
        maker.stage.Run(folder, 0), "toy", module, optimisers, loss_at, steps=30, warmup=5, save_every=10
    )
    return dict(module.state_dict())


def test_a_stopped_stage_ends_like_one_that_never_stopped(maker: Any, tmp_path: Path) -> None:
    whole = _train(maker, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(maker, tmp_path / "stopped", stop_at=17)
    assert (tmp_path / "stopped" / "toy.partial.pt").exists()
    resumed = _train(maker, tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "stopped" / "toy.partial.pt").exists()
    # A finished stage is taken as it is.
    assert all(torch.equal(whole[name], value) for name, value in _train(maker, tmp_path / "whole", stop_at=0).items())


def test_facts_and_talk_are_about_training_scenes_and_end_as_known_words(maker: Any) -> None:
    rng = random.Random(0)
    for _ in range(60):
        for scene in (draw_scene(rng, "train"), draw_digit(rng, "train"), maker.language.distinct_scene(rng)):
            assert split_of(scene) == "train"
            for speaker in (maker.language.fact, maker.language.talk, maker.language.loose_talk):
                for given, wanted in maker.decoder.ask(scene, rng, speaker, 6):
                    assert maker.words.encode(given) and maker.words.encode(wanted)


def test_claims_are_judged_truly(maker: Any) -> None:
    rng = random.Random(1)
    judged = {"correct": 0, "incorrect": 0}
    for _ in range(400):
        scene = draw_scene(rng, "train")
        for given, wanted in maker.decoder.ask(scene, rng, maker.language.fact, 1, ("presence",)):
            if given.startswith("claim some "):
                thing = given.removeprefix("claim some ").rstrip(":")
                assert wanted == ("correct" if thing in {t.name for t in scene.things} else "incorrect")
                judged[wanted] += 1
    assert min(judged.values()) > 20


def test_a_packed_question_sees_the_scene_and_itself_only(maker: Any) -> None:
    torch.manual_seed(0)
    words = maker.words
    model = maker.geometry.build_nano(len(words.vocabulary()), pad=0, bos=1, eos=2, image=4).eval()
    prefix = maker.packing.described("black scene: large red circle north.")
    segments = [maker.packing.stated(("color of circle:", "red")), maker.packing.answered(("what appears?", "circle"))]
    with torch.no_grad():
        together, _ = maker.packing.continue_rows(model, maker.packing.pack([(prefix, segments)]))
        alone = [maker.packing.continue_rows(model, maker.packing.pack([(prefix, [one])]))[0] for one in segments]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_loose_talk_keeps_the_words_that_count(maker: Any) -> None:
    rng = random.Random(2)
    language = maker.language
    small = {*language.DROPPED, *language.FILLERS}
    changed = 0
    for number in range(300):
        scene = draw_scene(rng, "train")
        strict = language.talk("relation", scene, random.Random(number))
        loose = language.loose_talk("relation", scene, random.Random(number))
        if strict is not None and loose is not None:
            assert loose[1] == strict[1]
            assert [w for w in loose[0].split() if w not in small] == [w for w in strict[0].split() if w not in small]
            changed += loose != strict
    assert changed > 50


def test_muon_makes_updates_nearly_orthonormal(maker: Any) -> None:
    update = maker.muon.orthogonalise(torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.5 and singular.max() < 1.5
