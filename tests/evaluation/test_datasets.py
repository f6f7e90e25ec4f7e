"""Benchmark data files: shards, damaged files, bad values, missing sources."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest
from fixtures.parquet_sets import png, write_parquet

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation import validators
from m2pt_cli.evaluation.datasets import Table, local_source
from m2pt_cli.evaluation.task import TaskOptions

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
    table = dataclasses.replace(TABLE, checks={"question": validators.text})
    rows = [{"image": png((1, 1, 1)), "question": text} for text in ("What?", None, "Who?", " ")]
    write_parquet(tmp_path / "test-0.parquet", rows, images=("image",))
    expected = (
        r"test-0\.parquet holds .*row is 1.: row 2: question is None, a text was expected; row 4: question is ' '"
    )
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
