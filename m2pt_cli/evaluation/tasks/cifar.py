"""CIFAR-10 and CIFAR-100: classify the main object of a 32x32 image (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.answer_parsing import exact_class, match_class
from m2pt_cli.evaluation.datasets import Table
from m2pt_cli.evaluation.metrics import accuracy_by_category
from m2pt_cli.evaluation.references import read_reference
from m2pt_cli.evaluation.task import Example, Prediction, Score, TaskOptions

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# In the order of the labels. The names are not read from the data set, because the Hub's copy calls label 26 "cra".
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_NAMES = tuple(_CIFAR100.split())


@dataclass(frozen=True)
class CIFAR:
    """Top-1 accuracy; the answer's class is the first class name in it.

    Attributes:
        names: class names in the order of the labels.
        label: name of the label column.
        table: the test split.
    """

    name: str
    names: tuple[str, ...]
    label: str
    table: Table
    size: int = 10_000
    max_new_tokens: int = 16
    headline: str = "accuracy"
    has_protocols: bool = False

    @property
    def source(self) -> str:
        return self.table.repo_id

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.table.patterns

    def items(self, request: TaskOptions) -> list[Example]:
        request.says_nothing_is_stored(self.name)
        choices = ", ".join(name.replace("_", " ") for name in self.names)
        question = f"What is the main object in this image? Choose one: {choices}.\nAnswer with one of the choices."
        return [
            Example(
                id=f"{number}#0",
                question_id=str(number),
                category=self.names[row[self.label]],
                image=row["img"],
                question=question,
                answer=self.names[row[self.label]],
            )
            for number, row in enumerate(self.table.rows(request))
        ]

    def reference(self, row: Prediction) -> str:
        return read_reference(row, lambda text: exact_class(text, self.names), f"one of its {len(self.names)} classes")

    def mark(self, row: Prediction, protocol: str) -> Score:
        parsed = match_class(row.prediction or "", self.names)
        return Score(parsed, parsed == row.answer)

    def scores(self, rows: Sequence[Prediction], protocol: str) -> dict[str, Any]:
        return accuracy_by_category(rows, "classes")


CIFAR10 = CIFAR(
    "cifar10",
    CIFAR10_NAMES,
    "label",
    Table(
        "uoft-cs/cifar10",
        ("plain_text/test-*.parquet",),
        ("img", "label"),
        image="img",
        label_names=False,
        checks={"label": validators.label(len(CIFAR10_NAMES))},
        classes={"label": CIFAR10_NAMES},
    ),
)
CIFAR100 = CIFAR(
    "cifar100",
    CIFAR100_NAMES,
    "fine_label",
    Table(
        "uoft-cs/cifar100",
        ("cifar100/test-*.parquet",),
        ("img", "fine_label"),
        image="img",
        label_names=False,
        checks={"fine_label": validators.label(len(CIFAR100_NAMES))},
        classes={"fine_label": CIFAR100_NAMES},
    ),
)
