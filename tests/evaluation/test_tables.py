"""Tables: faults of files and columns in words, limits, broken images."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.errors import InputError
from m2pt_cli.evaluation.benchmark import Request
from m2pt_cli.evaluation.tables import Table

from .parquet_sets import png, write_parquet

TABLE = Table("owner/set", ("data/test-*.parquet",), ("image", "question"))


def test_a_folder_without_files_and_a_file_without_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no data/test-\*\.parquet"):
        TABLE.rows(Request(source=str(tmp_path)))
    write_parquet(tmp_path / "any.parquet", [{"image": png((0, 0, 0)), "text": "?"}], images=("image",))
    with pytest.raises(InputError, match="has no column question; it has image, text"):
        TABLE.rows(Request(source=str(tmp_path)))


def test_a_damaged_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "test-0.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(InputError, match="is no readable parquet file"):
        TABLE.rows(Request(source=str(tmp_path)))


def test_shards_are_read_in_order_and_only_as_far_as_needed(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [{"image": png((shard, n, 0)), "question": f"{shard}-{n}"} for n in range(4)]
        write_parquet(tmp_path / f"test-{shard:05d}-of-00002.parquet", rows, images=("image",))
    (tmp_path / "test-00002-of-00002.parquet").write_bytes(b"never opened")
    rows = TABLE.rows(Request(source=str(tmp_path), limit=6))
    assert [row["question"] for row in rows] == ["0-0", "0-1", "0-2", "0-3", "1-0", "1-1"]
    assert rows[5]["image"].open().getpixel((0, 0)) == (1, 1, 0)
    assert len({row["image"].name for row in rows}) == 6


@pytest.mark.parametrize("content", [b"", b"not an image", png((1, 1, 1))["bytes"][:40]])
def test_a_broken_image_fails_when_it_is_opened(tmp_path: Path, content: bytes) -> None:
    rows = [{"image": {"bytes": content, "path": None}, "question": "?"}, {"image": png((7, 7, 7)), "question": "?"}]
    write_parquet(tmp_path / "test-0.parquet", rows, images=("image",))
    first, second = TABLE.rows(Request(source=str(tmp_path)))
    with pytest.raises(InputError, match="image test-0/0"):
        first["image"].open()
    assert second["image"].open().size == (16, 12)
