"""CIFAR and MNIST: the data sets' real columns, labels, and digits in free-form answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.parquet_sets import png, write_parquet

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.task import Prediction, TaskOptions
from m2pt_cli.evaluation.tasks.cifar import CIFAR10, CIFAR10_NAMES, CIFAR100, CIFAR100_NAMES
from m2pt_cli.evaluation.tasks.mnist import BENCHMARK as MNIST
from m2pt_cli.evaluation.tasks.mnist import read_digit


def test_cifar10_items(tmp_path: Path) -> None:
    rows = [{"img": png((n, 0, 0)), "label": n} for n in range(5)]
    write_parquet(
        tmp_path / "plain_text" / "test-00000-of-00001.parquet", rows, images=("img",), labels={"label": CIFAR10_NAMES}
    )
    items = CIFAR10.items(TaskOptions(source=str(tmp_path), limit=4))
    assert [item.answer for item in items] == ["airplane", "automobile", "bird", "cat"]
    assert items[0].question == (
        "What is the main object in this image? Choose one: airplane, automobile, bird, cat, deer, dog, frog, horse, "
        "ship, truck.\nAnswer with one of the choices."
    )
    # The fourth row is in the second row group.
    assert items[3].image.open().getpixel((0, 0)) == (3, 0, 0)
    assert len({item.image.name for item in items}) == 4


def test_cifar100_reads_the_fine_label_and_mends_the_hubs_crab(tmp_path: Path) -> None:
    hub_names = ["cra" if name == "crab" else name for name in CIFAR100_NAMES]
    rows = [{"img": png((0, 0, 0)), "fine_label": n, "coarse_label": 0} for n in (26, 99)]
    write_parquet(
        tmp_path / "cifar100" / "test-00000-of-00001.parquet", rows, images=("img",), labels={"fine_label": hub_names}
    )
    items = CIFAR100.items(TaskOptions(source=str(tmp_path)))
    assert [item.answer for item in items] == ["crab", "worm"]
    assert "lawn mower, leopard" in items[0].question


def test_cifar_scores_by_class() -> None:
    rows = [
        Prediction("0#0", "0", "dog", None, "?", "dog", "A dog."),
        Prediction("1#0", "1", "dog", None, "?", "dog", "cat"),
        Prediction("2#0", "2", "cat", None, "?", "cat", "no idea"),
        Prediction("3#0", "3", "cat", None, "?", "cat", None, error="broken"),
    ]
    scores = CIFAR10.scores([row.marked(CIFAR10.mark(row, "official")) for row in rows], "official")
    assert scores["accuracy"] == pytest.approx(1 / 3) and scores["unparsed"] == 1
    assert scores["classes"]["dog"]["accuracy"] == 0.5 and scores["classes"]["cat"]["n"] == 1


def test_mnist_items(tmp_path: Path) -> None:
    rows = [{"image": png(200, "L"), "label": n} for n in (7, 2)]
    names = [str(n) for n in range(10)]
    write_parquet(tmp_path / "mnist" / "test-00000-of-00001.parquet", rows, images=("image",), labels={"label": names})
    items = MNIST.items(TaskOptions(source=str(tmp_path)))
    assert [item.answer for item in items] == ["7", "2"]
    assert items[0].question == "Which digit is shown in this image?\nAnswer with a single digit."
    assert items[0].image.open().mode == "RGB"
    said: list[str] = []
    stored = MNIST.items(TaskOptions(source=str(tmp_path), wording="stored", report=said.append))
    assert [item.question for item in stored] == [
        item.question for item in MNIST.items(TaskOptions(source=str(tmp_path)))
    ]
    assert said == ["the data set of mnist stores no questions: --wording stored changes nothing"]


@pytest.mark.parametrize(
    ("answer", "digit"),
    [
        ("7", "7"),
        ("seven", "7"),
        ("The number is 7.", "7"),
        ("This one is a 7", "7"),
        ("Zero!", "0"),
        ("17", None),
        ("seventeen", None),
        ("none of them", None),
        ("7.", "7"),
        ("7.0", "7"),
        ("0.7", None),
        ("７", "7"),
        ("the number seven", "7"),
        ("This one is seven", "7"),
        ("one digit: seven", "7"),
        ("It's a one", "1"),
        ("no one", None),
        ("twenty-one", None),
        ("_seven_", "7"),
        ("sevens", "7"),
        ("", None),
    ],
)
def test_digits_in_free_answers(answer: str, digit: str | None) -> None:
    assert read_digit(answer) == digit


@pytest.mark.parametrize("label", [None, -1, 10])
@pytest.mark.parametrize("bench", [CIFAR10, MNIST], ids=["cifar10", "mnist"])
def test_a_row_without_a_class_is_refused_by_name(tmp_path: Path, bench: Any, label: int | None) -> None:
    column = "img" if bench is CIFAR10 else "image"
    rows = [{column: png((0, 0, 0)), "label": number} for number in (3, label)]
    write_parquet(tmp_path / "test-0.parquet", rows, images=(column,))
    with pytest.raises(InputError, match=rf"test-0\.parquet holds .*row 2: label is {label}, a number from 0 to 9"):
        bench.items(TaskOptions(source=str(tmp_path)))


def test_another_data_set_with_the_same_columns_is_refused(tmp_path: Path) -> None:
    rows = [{"image": png(200, "L"), "label": n} for n in range(3)]
    file = tmp_path / "mnist" / "test-00000-of-00001.parquet"
    clothes = ["T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
    for names in (clothes, ["entailment", "neutral", "contradiction"]):
        write_parquet(file, rows, images=("image",), labels={"label": names})
        with pytest.raises(InputError, match=r"has the classes .*it is not ylecun/mnist"):
            MNIST.items(TaskOptions(source=str(tmp_path)))
