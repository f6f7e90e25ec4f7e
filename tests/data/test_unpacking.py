"""Archives are unpacked once, whole, and within their folder."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

import pytest

from m2pt_cli.data import hub, unpacking
from m2pt_cli.data.unpacking import MARKER, image_roots, is_unpacked, unpack
from m2pt_cli.errors import DeviceError, InputError


def make_zip(file: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "images.zip", {f"top/{n}.png": bytes([n]) * 100 for n in range(5)} | {"top/": b""})


def run(archive: Path, folder: Path, **options: object) -> list[str]:
    said: list[str] = []
    unpack(archive, folder, what=archive.name, report=said.append, **options)  # type: ignore[arg-type]
    return said


def test_everything_is_unpacked_and_marked(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not is_unpacked(folder)
    assert run(archive, folder) == [f"unpacking 5 images of images.zip to {folder}"]
    assert is_unpacked(folder) and json.loads((folder / MARKER).read_text()) == {"archive": "images.zip", "files": 5}
    assert sorted(p.name for p in (folder / "top").iterdir()) == [f"{n}.png" for n in range(5)]
    assert (folder / "top/3.png").read_bytes() == b"\x03" * 100
    assert image_roots(folder) == (folder / "top", folder) and image_roots(tmp_path / "nowhere") == (
        tmp_path / "nowhere",
    )


def test_only_what_is_missing_is_unpacked(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert run(archive, folder, names={"1.png", "top/2.png", "absent.png"})[0].startswith("unpacking 2 images")
    assert not is_unpacked(folder) and {p.name for p in (folder / "top").iterdir()} == {"1.png", "2.png"}
    (folder / "top/2.png").write_bytes(b"short")  # an earlier start was cut off
    assert run(archive, folder)[0].startswith("unpacking 4 images")
    assert (folder / "top/2.png").read_bytes() == b"\x02" * 100 and is_unpacked(folder)
    assert run(archive, folder) == []


@pytest.mark.parametrize(
    "name", ["../evil.png", "top/../../evil.png", "/tmp/evil.png", "top\\..\\evil.png", "c:/evil.png"]
)
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "evil.zip", {"good.png": b"1"})
    with zipfile.ZipFile(archive, "a") as opened:
        info = zipfile.ZipInfo("x")
        info.filename = name
        opened.writestr(info, b"evil")
    folder = tmp_path / "deep/out"
    with pytest.raises(InputError, match=r"evil\.zip is refused: its member .* would be written outside its folder"):
        run(archive, folder)
    assert not folder.exists() and not list(tmp_path.rglob("evil.png"))


def test_links_and_reserved_names_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "link.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        info = zipfile.ZipInfo("link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=r"'link\.png' is a link"):
        run(archive, tmp_path / "out")
    with pytest.raises(InputError, match="takes a reserved name"):
        run(make_zip(tmp_path / "marker.zip", {MARKER: b"{}"}), tmp_path / "out")


def test_a_damaged_archive_is_named_and_leaves_no_half_file(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    at = content.index(b"\x03" * 100)
    content[at : at + 10] = b"\x99" * 10
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"images\.zip is damaged: Bad CRC-32") as caught:
        run(archive, tmp_path / "out")
    assert "downloaded anew" in str(caught.value.hint)
    assert not is_unpacked(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out/top").iterdir()} == {"0.png", "1.png", "2.png"}
    archive.write_bytes(b"no zip")
    with pytest.raises(InputError, match="is damaged: File is not a zip file"):
        run(archive, tmp_path / "out")


def test_too_small_a_disk_is_seen_before_anything_is_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda place: 499)
    with pytest.raises(DeviceError, match=r"unpacking images\.zip needs 0\.0 MB, and .*out has 0\.0 MB free") as caught:
        run(archive, tmp_path / "out")
    assert "HF_HOME" in str(caught.value.hint) and not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(hub, "free_bytes", lambda place: 500)
    run(archive, tmp_path / "out")


def test_a_disk_that_fills_up_is_no_traceback(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", full)
    with pytest.raises(DeviceError, match=r"can't be unpacked to .*out: No space left on device"):
        run(archive, tmp_path / "out")
    assert not list((tmp_path / "out/top").iterdir())
