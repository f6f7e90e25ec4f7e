"""Stages "recall", "toys", "facts" and "talk": teach the decoder to look up, compare and count in described scenes.

Skills are taught one after the other: with all of them from the start, the loss stays on a plateau for a thousand
steps. The first stage has only look-ups of colours and shapes; it learns them suddenly, within 300 steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from language import FACTS, SHAPE_ATTRIBUTES, Text, distinct_scene, fact, plain_fact, scene_text, talk
from muon import Muon
from packing import Row, Segment, answered, described, exact_share, loss_of, pack, stated
from stage import Run, train_stage
from torch import Tensor, nn
from words import encode

from m2pt_cli.demo.questions import DIGIT_ATTRIBUTES
from m2pt_cli.demo.scenes import Scene, draw_digit, draw_scene

Speaker = Callable[[str, Scene, random.Random], Text | None]

# Toys: the fields in a scene's description, and the attributes to ask about.
TOYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "recall": (("color", "shape"), ("color", "shape")),
    "places": (("color", "shape", "place"), ("place", "content", "color")),
    "relations": (("color", "shape", "place"), ("relation", "relation", "place")),
    "counts": (("color", "shape"), ("count", "count", "presence")),
    "equality": (("color", "shape"), ("equality", "equality", "color")),
    "sizes": (("size", "color", "shape"), ("size", "size", "presence")),
}
DIGIT_AND_GROUND = (*DIGIT_ATTRIBUTES, "ground", "digit")
# Attributes that are harder to learn are asked more often.
WEIGHTS = {"relation": 2.0, "count": 1.6, "equality": 1.6, "size": 1.3, "ground": 0.25}


def decoder_optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's matrices, AdamW for its embeddings and norms."""
    named = list(model.model.language_model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [Muon(matrices, rate), torch.optim.AdamW(others, rate * 0.2, betas=(0.9, 0.97), weight_decay=0.0)]


def ask(
    scene: Scene,
    rng: random.Random,
    speaker: Speaker,
    amount: int,
    attributes: tuple[str, ...] | None = None,
    often: dict[str, float] = WEIGHTS,
) -> list[Text]:
    """Return up to ``amount`` facts or questions about a scene; ``often`` weights the attributes (default 1)."""
    if attributes is None:
        attributes = DIGIT_AND_GROUND if scene.digit is not None else (*SHAPE_ATTRIBUTES, "ground")
    weights = [often.get(attribute, 1.0) for attribute in attributes]
    texts = []
    for attribute in rng.choices(attributes, weights, k=amount * 2):
        if (text := speaker(attribute, scene, rng)) is not None:
            texts.append(text)
            if len(texts) == amount:
                break
    return texts


def toy_row(rng: random.Random, kind: str, amount: int) -> Row:
    """Return a short description of a few objects and plain facts about them."""
    fields, attributes = TOYS[kind]
    repeated = kind in ("counts", "equality") or (kind != "recall" and rng.random() < 0.5)
    scene = draw_scene(rng, "train", count=rng.choice((2, 3, 4, 4))) if repeated else distinct_scene(rng)
    texts = ask(scene, rng, plain_fact, amount, attributes)
    return described(scene_text(scene, rng, fields)), [stated(text, closed=False) for text in texts]


def recall_row(rng: random.Random, amount: int) -> Row:
    """Return look-ups of colours and shapes; half of the rows ask with the key only ("red" -> "circle")."""
    if rng.random() < 0.5:
        return toy_row(rng, "recall", amount)
    scene = distinct_scene(rng)
    segments = [(encode(thing.color), encode(thing.shape)) for thing in scene.things]
    segments += [(encode(f"{thing.shape}:"), encode(thing.color)) for thing in scene.things]
    rng.shuffle(segments)
    return described(scene_text(scene, rng, ("color", "shape"))), segments[:amount]


def any_scene(rng: random.Random, *, digits: float) -> Scene:
    """Draw a training scene: a digit, one object, or two to four."""
    if rng.random() < digits:
        return draw_digit(rng, "train")
    return draw_scene(rng, "train", count=1 if rng.random() < 0.12 else rng.randint(2, 4))


def text_row(
    rng: random.Random,
    amount: int,
    *,
    talking: float,
    talker: Speaker = talk,
    often: dict[str, float] = WEIGHTS,
) -> Row:
    """Return a described scene with facts and, for a fraction ``talking``, questions and claims about it."""
    scene = any_scene(rng, digits=0.1)
    chatting = sum(rng.random() < talking for _ in range(amount))
    segments: list[Segment] = []
    if chatting:
        segments += [answered(text) for text in ask(scene, rng, talker, chatting, often=often)]
    if chatting < amount:
        segments += [stated(text) for text in ask(scene, rng, fact, amount - chatting, often=often)]
    return described(scene_text(scene, rng)), segments


def text_scores(model: nn.Module, speaker: Speaker, *, each: int = 150) -> dict[str, object]:
    """Return the fraction of exact answers per attribute about described scenes of the test split."""
    rng = random.Random("text scores")
    scores: dict[str, object] = {}
    model.eval()
    for attribute in FACTS:
        rows: list[Row] = []
        while len(rows) < each:
            single = 1 if attribute == "object" else rng.randint(2, 4)
            digit = attribute in DIGIT_ATTRIBUTES
            scene = draw_digit(rng, "test") if digit else draw_scene(rng, "test", count=single)
            for text in ask(scene, rng, speaker, 1, (attribute,)):
                rows.append((described(scene_text(scene, rng)), [(stated if speaker is fact else answered)(text)]))
        scores[attribute] = round(exact_share(model, rows), 3)
    model.train()
    return scores


def train_decoder(run: Run, model: nn.Module, steps: dict[str, int]) -> None:
    """Train the decoder of ``model`` in place, with ``steps`` per stage."""
    decoder = model.model.language_model

    def stage(name: str, row: Callable[[random.Random], Row], *, rows: int, rate: float) -> None:
        def loss_at(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
            loss, right = loss_of(model, pack([row(rng) for _ in range(rows)]))
            return loss, {"right": right}

        def report() -> dict[str, object]:
            speakers = {"facts": {"facts": fact}, "talk": {"facts": fact, "talk": talk}}.get(name, {})
            return {key: text_scores(model, speaker) for key, speaker in speakers.items()}

        optimisers = decoder_optimisers(model, rate)
        train_stage(run, name, decoder, optimisers, loss_at, steps=steps[name], report=report)

    stage("recall", lambda rng: recall_row(rng, 8), rows=48, rate=0.01)
    stage("toys", lambda rng: toy_row(rng, rng.choice(list(TOYS)), 8), rows=48, rate=0.01)

    def facts_row(rng: random.Random) -> Row:
        return toy_row(rng, rng.choice(list(TOYS)), 8) if rng.random() < 0.25 else text_row(rng, 8, talking=0.0)

    stage("facts", facts_row, rows=40, rate=0.01)
    stage("talk", lambda rng: text_row(rng, 8, talking=0.6), rows=40, rate=0.01)
