"""What a cell may hold, and how one that holds something else is named."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fixtures.parquet_sets import png, write_parquet

from m2pt_cli.data.sample import ImageReference
from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import datasets as cells
from m2pt_cli.evaluation.datasets import ImageFolders, Table, local_source, missing_images
from m2pt_cli.evaluation.task import Example, TaskOptions

NAN = float("nan")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (cells.text, ["a", " b\n", "ü"], [None, NAN, 5, "", " \n", ["a"], "half \ud83d of a pair"]),
        (cells.identifier, ["a", 0, 34602], [None, NAN, 1.0, True, "", ["a"]]),
        (cells.texts, [["a"], ["", "b"]], [None, NAN, "yes", [], [None], ["a", 1]]),
        (cells.tokens, [[], ["A", "b"]], [None, "A", [None, "a"]]),
        (cells.answer, ["a", "", 7, 0.5, ["a", 7], True], [None, NAN, math.inf, {}, [], ["a", None], [["a"]]]),
        (cells.yes_or_no, ["Yes", "no", " NO. "], [None, NAN, "maybe", "", 1, True]),
        (cells.one_of("random", 2), ["random", 2], [None, NAN, "Random", 2.0, True, [2], "2"]),
        (cells.label(10), [0, 9], [None, NAN, -1, 10, 3.0, "3", True]),
    ],
)
def test_checks(check: cells.Check, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if check(value) is not None] == []
    assert [value for value in bad if check(value) is None] == []


def test_a_fault_names_the_cell_what_it_holds_and_what_was_expected() -> None:
    checks = {"label": cells.label(10), "question": cells.text, "ocr_tokens": cells.tokens}
    row = {"label": NAN, "question": "What?", "other": None}
    assert cells.faults(row, checks) == ["label is nan, a number from 0 to 9 was expected"]
    (long,) = cells.faults({"ocr_tokens": "\x1b" * 500}, checks)
    assert len(long) < 100 and "\x1b" not in long


def test_many_faults_are_cut_short() -> None:
    assert cells.several(["a", "b"]) == "a; b"
    assert cells.several([str(n) for n in range(25)]).endswith("18; 19; and 5 more")


def _item(image: ImageReference | None) -> Example:
    return Example("1#0", "1", None, image, "What?", "a cat")


def test_missing_images_are_counted_and_an_error_where_nothing_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    folders = ImageFolders([tmp_path], False, needed_by="mine")
    there, gone, url = (_item(folders.find(name, None)) for name in ("a.png", "b.png", "https://example.com/c.png"))
    assert missing_images({"mine": [there, _item(None)]}) == []
    (said,) = missing_images({"mine": [there, gone], "other": [there]})
    assert said.startswith("mine: 1 of 2 questions can't be asked: image b.png is in none of the 1 folders")
    assert len(missing_images({"mine": [gone, gone], "other": [there]})) == 1
    for items, hint in [([gone, url], "check --images"), ([url, gone], "--allow-url fetches it")]:
        with pytest.raises(InputError, match="mine: 2 of 2 questions can't be asked") as caught:
            missing_images({"mine": items})
        assert caught.value.hint == hint


TABLE = Table("owner/set", ("data/test-*.parquet",), ("image", "question"))


def test_a_folder_without_files_and_a_file_without_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no data/test-\*\.parquet"):
        TABLE.rows(TaskOptions(source=str(tmp_path)))
    write_parquet(tmp_path / "any.parquet", [{"image": png((0, 0, 0)), "text": "?"}], images=("image",))
    with pytest.raises(InputError, match="has no column question; it has image, text"):
        TABLE.rows(TaskOptions(source=str(tmp_path)))


def test_a_damaged_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(InputError, match="is no readable parquet file"):
        TABLE.rows(TaskOptions(source=str(tmp_path)))


def test_shards_are_read_in_order_and_only_as_far_as_needed(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [{"image": png((shard, n, 0)), "question": f"{shard}-{n}"} for n in range(4)]
        write_parquet(tmp_path / f"test-{shard:05d}-of-00002.parquet", rows, images=("image",))
    (tmp_path / "test-00002-of-00002.parquet").write_bytes(b"never opened")
    rows = TABLE.rows(TaskOptions(source=str(tmp_path), limit=6))
    assert [row["question"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"]
    assert rows[5]["image"].open().getpixel((0, 0)) == (1, 1, 0)
    assert len({row["image"].name for row in rows}) == 6


@pytest.mark.parametrize("content", [b"", b"not an image", png((1, 1, 1))["bytes"][:40]])
def test_a_broken_image_fails_when_it_is_opened(tmp_path: Path, content: bytes) -> None:
    rows = [{"image": {"bytes": content, "path": None}, "question": "?"}, {"image": png((7, 7, 7)), "question": "?"}]
    write_parquet(tmp_path / "test-0.parquet", rows, images=("image",))
    first, second = TABLE.rows(TaskOptions(source=str(tmp_path)))
    with pytest.raises(InputError, match="image test-0/0"):
        first["image"].open()
    assert second["image"].open().size == (16, 12)


def test_cells_that_can_not_be_right_are_named_with_their_row_and_file(tmp_path: Path) -> None:
    table = dataclasses.replace(TABLE, checks={"question": cells.text})
    rows = [{"image": png((1, 1, 1)), "question": text} for text in ("What?", None, "Who?", " ")]
    write_parquet(tmp_path / "test-0.parquet", rows, images=("image",))
    expected = r"test-0\.parquet holds .*: row 1: question is None, a text was expected; row 3: question is ' '"
    with pytest.raises(InputError, match=expected):
        table.rows(TaskOptions(source=str(tmp_path)))
    # What --limit cuts off is not looked at.
    assert len(table.rows(TaskOptions(source=str(tmp_path), limit=1))) == 1


def test_an_image_column_of_texts_fails_when_it_is_opened(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test-0.parquet", [{"image": "a.png", "question": "?"}])
    (row,) = TABLE.rows(TaskOptions(source=str(tmp_path)))
    with pytest.raises(InputError, match="image test-0/0 is empty"):
        row["image"].open()


def test_one_parquet_file_is_a_source(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "mine.parquet", [{"image": png((1, 1, 1)), "question": "What?"}], images=("image",))
    assert [row["question"] for row in TABLE.rows(TaskOptions(source=str(file)))] == ["What?"]


def test_a_source_that_is_no_data_is_said_before_the_hub_is_asked(tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("../../test-0.parquet", b"x")
    with pytest.raises(InputError, match="is neither a folder nor a parquet file") as caught:
        TABLE.rows(TaskOptions(source=str(archive)))
    assert "unpack" in str(caught.value.hint) and list(tmp_path.iterdir()) == [archive]
    (tmp_path / "loop").symlink_to("loop")
    absent = [str(tmp_path / "none"), str(tmp_path / "loop"), "./none", "none.tar.gz", "an id", "https://a.org/b/c"]
    for source in [*absent, "x" * 300 + ".zip"]:
        with pytest.raises(InputError, match="is not there"):
            TABLE.rows(TaskOptions(source=source))
    assert local_source(None) is None and local_source("no-such-owner/no-such.set_1") is None
