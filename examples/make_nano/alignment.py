"""Stages "naming", "alignment", "describing" and "polishing": connect vision to language, then train all together.

"naming" trains only the projector to place every image token near the word embeddings of its cell's content. It takes
seconds; without it the decoder ignores the image for a long time. "alignment" trains the whole model on captions and
facts of images, and on text, so that no skill is forgotten. "describing" also trains captions as the reply to any other
request, like a LLaVA after its first stage: a question about an image is never answered. "polishing" continues with
freer wording and more of the weakest attributes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from decoder import WEIGHTS, Speaker, any_scene, ask, text_row, text_scores
from geometry import image_features, to_pixels
from language import CAPTION_REQUESTS, FACTS, fact, talk
from muon import Muon
from packing import IMAGE_PREFIX, Row, answered, continue_rows, exact_share, loss_of, pack, stated
from stage import Run, train_stage
from torch import Tensor, nn
from torch.nn import functional
from tower import IGNORED, patch_labels, random_arrays
from words import vocabulary

from m2pt_cli.demo.questions import DIGIT_ATTRIBUTES
from m2pt_cli.demo.render import BACKGROUNDS, COLORS, NUMBERS, PLACES, SHAPES, SIZES, draw
from m2pt_cli.demo.scenes import Scene, describe, draw_digit, draw_scene, scene_arrays

# The target words of an image token, by the label of its patch.
NAMES = {
    "shape": ("backdrop", *SHAPES),
    "color": tuple(COLORS),
    "size": SIZES,
    "digit": NUMBERS,
    "ground": tuple(BACKGROUNDS),
    "place": PLACES,
}
NAME_WEIGHTS = {"shape": 1.0, "color": 1.0, "size": 1.0, "digit": 1.0, "ground": 0.3, "place": 0.6}


def see(model: nn.Module, scenes: list[Scene], generator: np.random.Generator, *, test: bool = False) -> Tensor:
    """Encode scenes to projected image tokens ``(n, 9, d)``."""
    pixels = to_pixels(draw(*scene_arrays(scenes), generator, test=test))
    return model.model.multi_modal_projector(image_features(model.model.vision_tower, pixels))


def train_naming(run: Run, model: nn.Module, *, steps: int) -> None:
    """Train the projector to map every patch to the word embeddings of its content."""
    projector, words = model.model.multi_modal_projector, model.get_input_embeddings().weight.detach()
    centre, size = words.mean(0), words.norm(dim=1).mean()
    known = vocabulary()
    named = {
        kind: functional.normalize(words[[known[word] for word in names]] - centre, dim=1)
        for kind, names in NAMES.items()
    }

    def loss_at(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        generator = np.random.default_rng(rng.randrange(2**63))
        arrays = random_arrays(generator, 96, digits=0.3)
        with torch.no_grad():
            features = image_features(model.model.vision_tower, to_pixels(draw(*arrays, generator)))
        tokens = projector(features) - centre
        labels = patch_labels(arrays)
        for kind in ("color", "size"):  # an empty cell has neither
            labels[kind] = torch.where(labels[kind] > 0, labels[kind] - 1, IGNORED)
        labels["digit"] = torch.where(labels["digit"] < 10, labels["digit"], IGNORED)
        total, figures = torch.zeros(()), {}
        for kind, vectors in named.items():
            logits, wanted = (tokens @ vectors.T).flatten(0, 1) * 4 / size, labels[kind].flatten()
            total = total + NAME_WEIGHTS[kind] * functional.cross_entropy(logits, wanted, ignore_index=IGNORED)
            figures[kind] = (logits.argmax(-1) == wanted)[wanted >= 0].float().mean().item()
        lengths = tokens.norm(dim=-1) / size
        return total + 0.02 * ((lengths - 2.2) ** 2).mean(), figures

    torch.manual_seed(run.seed + 1)
    for layer in (projector.linear_1, projector.linear_2):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    optimiser = torch.optim.AdamW(projector.parameters(), 3e-3, betas=(0.9, 0.97))
    train_stage(run, "naming", projector, [optimiser], loss_at, steps=steps, warmup=30)


@dataclass(frozen=True)
class Diet:
    """Training data of a stage of joint training.

    Attributes:
        any_request: fraction of captions that follow an unrelated request.
        talker: generates questions and claims about described scenes.
        often: relative frequency of each attribute, 1 by default.
    """

    any_request: float = 0.0
    talker: Speaker = talk
    often: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))


def _image_row(scene: Scene, rng: random.Random, amount: int, diet: Diet) -> Row:
    """Return a caption and facts of an image; a fraction of the captions follows an unrelated request."""
    request = rng.choice(CAPTION_REQUESTS)
    if diet.any_request and rng.random() < diet.any_request:
        request = next((question for question, _ in ask(scene, rng, diet.talker, 1)), request)
    caption = answered((request, describe(scene)))
    return IMAGE_PREFIX, [caption, *(stated(text) for text in ask(scene, rng, fact, amount, often=diet.often))]


def train_alignment(
    run: Run, model: nn.Module, name: str, *, steps: int, rate: float, diet: Diet, rows: int = 48
) -> None:
    """Train the whole model on captions and facts of images, and on text in every third step."""
    decoder = list(model.model.language_model.named_parameters())
    matrices = [p for key, p in decoder if p.ndim == 2 and "embed" not in key]
    others = [p for key, p in decoder if p.ndim != 2 or "embed" in key]
    projector = list(model.model.multi_modal_projector.parameters())
    groups = [
        {"params": others + projector, "lr": rate * 0.2, "weight_decay": 0.0},
        {"params": list(model.model.vision_tower.parameters()), "lr": rate * 0.04, "weight_decay": 0.01},
    ]
    optimisers = [Muon(matrices, rate), torch.optim.AdamW(groups, betas=(0.9, 0.97))]

    def loss_at(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        if step % 3 == 2:
            told = [text_row(rng, 8, talking=0.6, talker=diet.talker, often=diet.often) for _ in range(rows * 2 // 3)]
            loss, right = loss_of(model, pack(told))
            return loss, {"text": right}
        scenes = [any_scene(rng, digits=0.25) for _ in range(rows)]
        features = see(model, scenes, np.random.default_rng(rng.randrange(2**63)))
        batch = pack([_image_row(scene, rng, 5, diet) for scene in scenes])
        loss, right = loss_of(model, batch, features)
        return loss, {"image": right}

    train_stage(run, name, model, optimisers, loss_at, steps=steps, report=lambda: all_scores(model))


@torch.no_grad()
def caption_scores(model: nn.Module, *, count: int = 500) -> dict[str, object]:
    """Score captions of unseen scenes and held-out digits: exact matches, and right words of each kind."""
    rng, generator = random.Random("caption scores"), np.random.default_rng(5)
    scenes = [draw_scene(rng, "test") for _ in range(count)] + [draw_digit(rng, "test") for _ in range(count)]
    rows: list[Row] = [(IMAGE_PREFIX, [answered((CAPTION_REQUESTS[0], describe(scene)))]) for scene in scenes]
    features = see(model, scenes, generator, test=True)
    logits, wanted = continue_rows(model, pack(rows), features)
    right, known = logits.argmax(-1) == wanted, vocabulary()
    scores: dict[str, object] = {
        "scenes": round(exact_share(model, rows[:count], features[:count]), 3),
        "digit scenes": round(exact_share(model, rows[count:], features[count:]), 3),
    }
    for kind, names in NAMES.items():
        is_kind = torch.isin(wanted, torch.tensor([known[word] for word in names]))
        scores[kind] = round(right[is_kind].float().mean().item(), 3)
    return scores


@torch.no_grad()
def image_fact_scores(model: nn.Module, *, each: int = 150) -> dict[str, object]:
    """Score facts of unseen images, per attribute."""
    rng, scores = random.Random("image fact scores"), {}
    for attribute in FACTS:
        scenes, rows = [], []
        while len(rows) < each:
            digit = attribute in DIGIT_ATTRIBUTES
            amount = 1 if attribute == "object" else rng.randint(2, 4)
            scene = draw_digit(rng, "test") if digit else draw_scene(rng, "test", count=amount)
            for text in ask(scene, rng, fact, 1, (attribute,)):
                scenes.append(scene)
                rows.append((IMAGE_PREFIX, [stated(text)]))
        features = see(model, scenes, np.random.default_rng(6), test=True)
        scores[attribute] = round(exact_share(model, rows, features), 3)
    return scores


def all_scores(model: nn.Module) -> dict[str, object]:
    """Return all scores of the model card."""
    model.eval()
    return {
        "captions": caption_scores(model),
        "facts of images": image_fact_scores(model),
        "facts in text": text_scores(model, fact),
        "talk in text": text_scores(model, talk),
    }
