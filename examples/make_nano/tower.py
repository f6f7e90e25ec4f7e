"""Stage "tower": train every patch to classify its cell, on scenes of up to nine shapes and on handwritten digits."""

from __future__ import annotations

import random

import numpy as np
import torch
from geometry import build_nano, image_features, to_pixels
from stage import Run, train_stage
from torch import Tensor, nn
from torch.nn import functional

from m2pt_cli.demo.render import BACKGROUNDS, COLORS, SHAPES, TRAIN_DIGITS, digit_count, digit_values, draw
from m2pt_cli.demo.scenes import is_test_layout

IGNORED = -100
# The properties of a patch to classify, with the number of classes and the weight in the loss.
HEADS = {
    "shape": (7, 2.0),
    "color": (9, 1.0),
    "size": (3, 1.0),
    "digit": (11, 1.5),
    "ground": (3, 0.3),
    "place": (9, 0.2),
}

Arrays = tuple[np.ndarray, ...]


class Tower(nn.Module):
    """The vision tower with a linear classifier of its patches for each property."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleDict({name: nn.Linear(128, answers) for name, (answers, _) in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = functional.layer_norm(image_features(self.tower, pixels), (128,))
        return {name: head(features) for name, head in self.heads.items()}


def random_arrays(generator: np.random.Generator, count: int, *, digits: float, dense: float = 0.5) -> Arrays:
    """Draw training scenes as arrays: one to nine shapes (a fraction ``dense``), else one to four, or a digit."""
    amount = np.where(
        generator.random(count) < dense, generator.integers(1, 10, count), generator.integers(1, 5, count)
    )
    taken = generator.random((count, 9)).argsort(1) < amount[:, None]
    shapes = np.where(taken, generator.integers(len(SHAPES), size=(count, 9)), -1)
    colors, sizes = generator.integers(len(COLORS), size=(count, 9)), generator.integers(2, size=(count, 9))
    grounds = generator.integers(len(BACKGROUNDS), size=count)
    written = np.where(generator.random(count) < digits, generator.integers(TRAIN_DIGITS, size=count), -1)
    shapes[written >= 0] = -1
    cells = np.where(shapes >= 0, 1 + (shapes * 8 + colors) * 2 + sizes, 0)
    held_out = is_test_layout(cells, grounds) & (written < 0)
    if held_out.any():  # replace them with a scene that is not held out
        source = np.nonzero(~held_out)[0][0]
        shapes[held_out], colors[held_out], sizes[held_out] = shapes[source], colors[source], sizes[source]
        grounds[held_out], written[held_out] = grounds[source], written[source]
    return shapes, colors, sizes, grounds, written, generator.integers(len(COLORS), size=count)


def patch_labels(arrays: Arrays) -> dict[str, Tensor]:
    """Return the label of every patch, ``(n, 9)`` for each property."""
    shapes, colors, sizes, grounds, written, digit_colors = arrays
    digit, filled = (written >= 0)[:, None], shapes >= 0
    nine = np.ones((1, 9), int)
    values = np.where(written >= 0, digit_values(written.clip(0)), 10)
    labels = {
        "shape": np.where(digit, IGNORED, shapes + 1),
        "color": np.where(digit, digit_colors[:, None] + 1, np.where(filled, colors + 1, 0)),
        "size": np.where(digit, IGNORED, np.where(filled, sizes + 1, 0)),
        "digit": values[:, None] * nine,
        "ground": grounds[:, None] * nine,
        "place": np.arange(9)[None].repeat(len(grounds), 0),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(label)) for name, label in labels.items()}


@torch.no_grad()
def tower_scores(model: Tower) -> dict[str, object]:
    """Return the accuracy on test images of shapes and on held-out digits."""
    generator = np.random.default_rng(5)
    arrays = random_arrays(generator, 1000, digits=0.0, dense=0.0)
    answers, labels = model(to_pixels(draw(*arrays, generator, test=True))), patch_labels(arrays)
    scores: dict[str, object] = {}
    for name in ("shape", "color", "size"):
        filled = labels[name] > 0
        scores[name] = round((answers[name].argmax(-1) == labels[name])[filled].float().mean().item(), 4)
    held_out = np.arange(TRAIN_DIGITS, digit_count())
    empty = random_arrays(generator, len(held_out), digits=1.0)
    images = draw(*empty[:4], held_out, empty[5], generator, test=True)
    read = model(to_pixels(images))["digit"].mean(1)[:, :10].argmax(-1)
    scores["digit"] = round((read.numpy() == digit_values(held_out)).mean().item(), 4)
    return scores


def train_tower(run: Run, *, steps: int, batch: int = 128) -> nn.Module:
    """Return a trained vision tower; it depends only on the seed, not on nano's vocabulary."""
    torch.manual_seed(run.seed)
    model = Tower(build_nano(8, pad=0, bos=1, eos=2, image=3).model.vision_tower)
    optimiser = torch.optim.AdamW(model.parameters(), 1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)

    def loss_at(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        generator = np.random.default_rng(rng.randrange(2**63))
        arrays = random_arrays(generator, batch, digits=0.4)
        answers, labels = model(to_pixels(draw(*arrays, generator))), patch_labels(arrays)
        losses = {
            name: functional.cross_entropy(answers[name].flatten(0, 1), labels[name].flatten(), ignore_index=IGNORED)
            for name in HEADS
        }
        total = sum((weight * losses[name] for name, (_, weight) in HEADS.items()), torch.zeros(()))
        return total, {name: loss.item() for name, loss in losses.items()}

    train_stage(run, "tower", model, [optimiser], loss_at, steps=steps, report=lambda: tower_scores(model))
    return model.tower
