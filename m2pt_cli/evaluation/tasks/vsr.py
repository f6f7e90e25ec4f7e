"""VSR: is a statement about a spatial relation true of the image? (Liu et al. 2023, arXiv 2205.00363)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.answer_parsing import exact_yes_or_no, first_yes_or_no
from m2pt_cli.evaluation.datasets import local_source, read_json_objects
from m2pt_cli.evaluation.images import BenchmarkImages
from m2pt_cli.evaluation.metrics import BinaryCounts, accuracy_by_category
from m2pt_cli.evaluation.references import read_reference
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions, answered
from m2pt_cli.evaluation.tasks.mme import COGNITION, PERCEPTION
from m2pt_cli.evaluation.tasks.pope import SPLITS
from m2pt_cli.files.hub import download_matching

_VALIDATORS: dict[str, validators.Check] = {
    "image": validators.text,
    "caption": validators.text,
    "label": validators.label(2),
    "relation": validators.text,
}


# Its labels are numbers, and "true" and "false" in the authors' code.
_LABELS = {"1": "yes", "true": "yes", "0": "no", "false": "no"}
# MME and POPE have the same references, and categories that are no relations.
_OTHERS = frozenset((*SPLITS, *PERCEPTION, *COGNITION))


class VSR:
    """The test set of the zero-shot split; its data contains only the names of its images, which are COCO's."""

    name = "vsr"
    source = "cambridgeltl/vsr_zeroshot"
    patterns = ("test.jsonl",)
    size = 1222
    max_new_tokens = 8
    headline = "accuracy"
    has_protocols = False

    def items(self, request: TaskOptions) -> list[Example]:
        folders = BenchmarkImages(request.images, request.allow_url, needed_by=self.name)
        rows = read_json_objects(self._file(request), _VALIDATORS)[: request.limit]
        return [
            Example(
                id=f"{number}#0",
                question_id=str(number),
                category=str(row["relation"]),
                image=folders.find(str(row["image"]), row.get("image_link")),
                question=_ask(str(row["caption"]), request.wording),
                answer="yes" if row["label"] == 1 else "no",
            )
            for number, row in enumerate(rows)
        ]

    def _file(self, request: TaskOptions) -> Path:
        source = local_source(request.source)
        if source is not None and source.is_dir():
            file = source / self.patterns[0]
            if not file.is_file():
                raise InputError(
                    f"--source {source} holds no {file.name}", f"name a copy of {self.source}, or its file"
                )
            return file
        if source is not None:
            return source
        return download_matching(request.source or self.source, self.patterns, report=request.report)[0]

    def reference(self, row: Prediction) -> str:
        if row.category in _OTHERS:
            raise ValueError(f"category is {validators.shown(row.category)}, a relation in space was expected")
        return read_reference(row, _read_label, "yes or no (true or false, 1 or 0)")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = first_yes_or_no(row.prediction or "")
        return Score(parsed, parsed == row.answer)

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        """Compute accuracy, also per relation; precision, recall, F1 and yes ratio count an unparsed answer as no."""
        counts = BinaryCounts.of((row.answer == "yes", row.parsed == "yes") for row in answered(rows))
        return {**counts.to_dict(), **accuracy_by_category(rows, "relations")}


def _read_label(text: str) -> str | None:
    return _LABELS.get(text.strip().rstrip(".").lower()) or exact_yes_or_no(text)


def _ask(caption: str, wording: str) -> str:
    if wording == "stored":
        return caption
    return f'Does the image agree with this statement: "{caption}"?\nAnswer yes or no.'


BENCHMARK = VSR()
