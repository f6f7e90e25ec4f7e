"""POPE: is an object in the image? Absent ones are random, popular or adversarial (Li et al. 2023, 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import answer_parsing as yes_no
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import SharedImages, Table, local_files, read_json_objects
from m2pt_cli.evaluation.images import BenchmarkImages
from m2pt_cli.evaluation.metrics import BinaryCounts, accuracy, mean, ratio
from m2pt_cli.evaluation.references import read_reference, require_category
from m2pt_cli.evaluation.task import SHORT_ANSWER, Example, Prediction, Score, TaskOptions, answered, unique_ids

SPLITS = ("random", "popular", "adversarial")
_ORIGINAL_VALIDATORS: dict[str, validators.Check] = {
    "question_id": validators.identifier,
    "image": validators.text,
    "text": validators.text,
    "label": validators.yes_or_no,
}
_READERS = {"official": yes_no.pope_official, "lmms-eval": yes_no.pope_lmms_eval}


class POPE:
    """Three splits of questions about the same 500 COCO images; the paper's score is the mean over the splits."""

    name = "pope"
    source = "lmms-lab/POPE"
    size = 9000
    max_new_tokens = 16
    headline = "f1"
    has_protocols = True
    table = Table(
        "lmms-lab/POPE",
        ("Full/random-*.parquet", "Full/popular-*.parquet", "Full/adversarial-*.parquet"),
        ("question_id", "question", "answer", "image_source", "image", "category"),
        checks={
            "question_id": validators.identifier,
            "question": validators.text,
            "answer": validators.yes_or_no,
            "image_source": validators.identifier,
            "category": validators.one_of(*SPLITS),
        },
    )
    patterns = table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        originals = local_files(request.source, "coco_pope_*.json")
        rows = self._original_rows(request, originals) if originals else self._table_rows(request)
        ids = unique_ids(f"{row['category']}/{row['question_id']}" for row in rows)
        suffix = "" if request.wording == "stored" else SHORT_ANSWER
        return [
            Example(
                id=identity,
                question_id=f"{row['category']}/{row['question_id']}",
                category=row["category"],
                image=row["image"],
                question=str(row["question"]) + suffix,
                answer=str(yes_no.exact_yes_or_no(row["answer"])),
            )
            for identity, row in zip(ids, rows, strict=True)
        ]

    def _table_rows(self, request: TaskOptions) -> list[dict[str, Any]]:
        images = SharedImages()
        return [
            {**row, "image": images.one(str(row["image_source"]), row["image"])} for row in self.table.rows(request)
        ]

    def _original_rows(self, request: TaskOptions, files: Sequence[Any]) -> list[dict[str, Any]]:
        """Read the authors' files, one per split, of lines ``{"question_id", "image", "text", "label"}``."""
        folders = BenchmarkImages(request.images, request.allow_url, needed_by="pope")
        rows = []
        for split in SPLITS:
            for file in (file for file in files if file.stem.endswith(split)):
                for row in read_json_objects(file, _ORIGINAL_VALIDATORS):
                    image = folders.find(str(row["image"]), None)
                    rows.append(
                        {
                            "question_id": row["question_id"],
                            "category": split,
                            "image": image,
                            "question": row["text"],
                            "answer": row["label"],
                        }
                    )
        return rows[: request.limit]

    def reference(self, row: Prediction) -> str:
        require_category(row, SPLITS)
        return read_reference(row, yes_no.exact_yes_or_no, "yes or no")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = _READERS[protocol](row.prediction or "")
        return Score(parsed, parsed == str(row.answer).lower())

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        return pope_scores(rows, protocol)


def pope_scores(rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
    """Compute POPE's results as fractions: for each split, and the mean over the splits.

    ``yes_ratio`` is the fraction of *predictions* that are yes under both protocols; lmms-eval itself computes it from
    the ground truth.

    Raises:
        InputError: no prediction is of any split.
    """
    good = answered(rows)
    names = [name for name in SPLITS if any(row.category == name for row in good)]
    if good and not names:
        raise InputError(f"no row has a category of pope: {', '.join(SPLITS)}", "is it another benchmark's?")
    splits = {name: split_scores([row for row in good if row.category == name], protocol) for name in names}
    return {
        **{
            key: mean(split[key] for split in splits.values())
            for key in ("accuracy", "f1", "precision", "recall", "yes_ratio")
        },
        "interval": accuracy(good)["interval"],
        "splits": splits,
        "unparsed": sum(row.parsed not in ("yes", "no") for row in good),
    }


def split_scores(rows: Sequence[Prediction], protocol: str) -> dict[str, float]:
    """Compute accuracy, precision, recall, F1 and yes ratio of one split.

    Under ``lmms-eval``, answers that are neither yes nor no are wrong, and ignored in precision and recall.
    """
    if protocol == "official":
        return BinaryCounts.of((row.answer == "yes", row.parsed == "yes") for row in rows).to_dict()
    clear = [row for row in rows if row.parsed in ("yes", "no")]
    counts = BinaryCounts.of((row.answer == "yes", row.parsed == "yes") for row in clear)
    return {
        **counts.to_dict(),
        "accuracy": ratio(counts.true_positive + counts.true_negative, len(rows)),
        "yes_ratio": ratio(counts.true_positive + counts.false_positive, len(rows)),
    }


BENCHMARK = POPE()
