"""Choose learning rates once per method, with one small budget, on validation samples of the seen families.

Each method tries its base's default rates times 1/3, 1 and 3, for the same number of steps, with a seed that no table
uses. If the best is at the edge, one more factor is tried. Tries are compared by the fraction of right answers to the
validation questions (images that were not trained on, seen families, without captions) or, for data without scoring
rules, by the validation loss. Held-out families are never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cells import Variant
from running import Setup, read_json, train_variant, write_json

from m2pt_cli import load
from m2pt_cli.api import answer
from m2pt_cli.data.sample import IMAGE_MARK, Sample
from m2pt_cli.data.sources import load_samples, split_validation
from m2pt_cli.demo.dataset import parse_demo_answer
from m2pt_cli.demo.questions import FAMILIES
from m2pt_cli.models.catalog import entry_of

FACTORS = (1 / 3, 1.0, 3.0)
STEP = 3.0  # between neighbours
VALIDATION_SHARE = "0.05"
SEED = 1000
RATE_NAMES = ("learning_rate", "visual_lr", "textual_lr", "interaction_lr")
Try = Callable[[Variant, float], dict[str, Any]]


def scaled_rates(base: str, method: str, factor: float) -> dict[str, float]:
    """Return the base's default learning rates of a method, times ``factor``."""
    defaults = entry_of(base).defaults.for_method(method)
    return {name: defaults[name] * factor for name in RATE_NAMES if name in defaults}


def choose(variant: Variant, attempt: Try) -> dict[str, Any]:
    """Try the factors, one more if the best is at the edge; return ``{"factor", "rates", "score", "tries"}``.

    Of equal scores the lower rate wins.
    """
    tries = [attempt(variant, factor) for factor in FACTORS]
    best = best_try(tries)
    if best["factor"] in (FACTORS[0], FACTORS[-1]):
        further = best["factor"] / STEP if best["factor"] == FACTORS[0] else best["factor"] * STEP
        tries.append(attempt(variant, further))
        best = best_try(tries)
    return {"factor": best["factor"], "rates": best["rates"], "score": best["score"], "tries": tries}


def best_try(tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the try with the highest score; of equal ones that with the lowest factor."""
    return max(tries, key=lambda one: (one["score"], -one["factor"]))


def attempt_in(setup: Setup, steps: int) -> Try:
    """Return a function that trains a try for ``steps`` in ``setup``'s folder and saves it to its own file."""

    def attempt(variant: Variant, factor: float) -> dict[str, Any]:
        file = setup.folder / "rates" / f"{variant.rates}-x{factor:.3g}.json"
        if file.exists():
            return read_json(file)
        rates = scaled_rates(setup.base, variant.method, factor)
        run_dir = setup.folder / "runs" / f"rate-{variant.rates}-x{factor:.3g}"
        result = train_variant(
            setup, variant, run_dir, seed=SEED, rates=rates, max_steps=steps, validation=VALIDATION_SHARE
        )
        score, measured = validation_score(setup, run_dir, result)
        found = {"factor": factor, "rates": rates, "steps": steps, "score": score, "measured": measured}
        found["seconds"] = result["seconds"]
        write_json(file, found)
        return found

    return attempt


def validation_score(setup: Setup, run_dir: Path, result: dict[str, Any]) -> tuple[float, str]:
    """Return the score of a try, higher is better, and a description of it."""
    if setup.data != "demo":
        return -result["validation"], "minus the validation loss"
    samples = validation_questions(setup.limit)
    is_full = result["method"] == "full"
    model, _ = load(base=str(run_dir)) if is_full else load(base=setup.base, adapter=str(run_dir))
    questions = [sample.turns[0].text.removeprefix(IMAGE_MARK).strip() for sample in samples]
    answers = answer(model, [sample.images[0].open() for sample in samples], questions, max_new_tokens=16)
    right = sum(is_right(sample, text) for sample, text in zip(samples, answers, strict=True))
    return right / len(samples), f"share of right answers to {len(samples)} validation questions of seen families"


def validation_questions(limit: int | None = None) -> list[Sample]:
    """Return the validation samples of a try that are questions of seen families, without captions."""
    loaded = load_samples(("demo",), limit=limit, seed=SEED)
    _, validation = split_validation(loaded.samples, VALIDATION_SHARE, SEED)
    questions = [sample for sample in validation if sample.task in FAMILIES]
    assert all(FAMILIES[str(sample.task)].seen for sample in questions)
    return questions


def is_right(sample: Sample, text: str) -> bool:
    """Score an answer by the rules of the demo benchmark."""
    parsed = parse_demo_answer(str(sample.task), text)
    return parsed is not None and parsed == parse_demo_answer(str(sample.task), sample.turns[1].text)
