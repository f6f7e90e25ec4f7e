"""Output folders are written atomically."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2pt_cli.errors import SettingsError
from m2pt_cli.files.io import check_new_folder, new_folder


@pytest.mark.parametrize("place", ["new", "empty", "deep/down/new", "link"])
def test_a_folder_appears(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with new_folder(tmp_path / place) as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / place / "file").exists()
    assert (tmp_path / place / "file").read_text() == "x"
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.rglob(".*"))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new") as partial:
        (partial / "file").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").touch()
    with new_folder(tmp_path / "new") as partial:
        (partial / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place, said in (("", "not empty"), ("file", "is a file"), ("file/x", "can't be written"), ("dangling", "link")):
        with pytest.raises(SettingsError, match=said):
            check_new_folder(tmp_path / place)
        with pytest.raises(SettingsError, match=said), new_folder(tmp_path / place):
            pytest.fail("the block must not run")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as partial:
        (partial / "file").touch()
        with pytest.raises(SettingsError, match="another m2pt import is writing"), new_folder(tmp_path / "new"):
            pytest.fail("the block must not run")
        assert (partial / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
