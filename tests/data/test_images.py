"""Images are found only inside the allowed folders."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from fixtures.pictures import picture, picture_file

from m2pt_cli.data.images import ImageFolders
from m2pt_cli.data.sample import BytesImage, DecodedImage, FileImage, UrlImage
from m2pt_cli.data.validation import InvalidRow
from m2pt_cli.errors import InputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``images/a.png``, ``images/sub/b.png``, ``more/c.png`` and ``secret.png`` beside them."""
    for name in ("images/a.png", "images/sub/b.png", "more/c.png", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture_file(tmp_path / name)
    return tmp_path


def test_found_in_the_first_folder_that_has_it(tree: Path) -> None:
    folders = ImageFolders([tree / "images", tree / "more"])
    for name, place in (("a.png", "images/a.png"), ("sub/b.png", "images/sub/b.png"), ("c.png", "more/c.png")):
        image = folders.find(name)
        assert isinstance(image, FileImage) and image.path == tree / place and image.name == str(tree / place)
    assert folders.find("sub/../a.png").open().size == (60, 40)
    assert folders.find(str(tree / "more/c.png")).open().size == (60, 40)  # absolute, but within


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "sub/../../secret.png", "{tree}/secret.png", "/etc/passwd", "../more/c.png", "sub/..", ".."],
)
def test_a_path_that_leaves_the_folder_is_refused(tree: Path, name: str) -> None:
    with pytest.raises(InvalidRow, match=r"lies outside .*images: refused"):
        ImageFolders([tree / "images"]).find(name.format(tree=tree))


def test_links_may_not_lead_outside(tree: Path) -> None:
    os.symlink(tree / "secret.png", tree / "images/link.png")
    os.symlink(tree / "more", tree / "images/linked")
    os.symlink(tree / "images/a.png", tree / "images/inside.png")
    os.symlink("nowhere.png", tree / "images/dangling.png")
    folders = ImageFolders([tree / "images"])
    for name in ("link.png", "linked/c.png"):
        with pytest.raises(InvalidRow, match="lies outside"):
            folders.find(name)
    assert folders.find("inside.png").open().size == (60, 40)
    with pytest.raises(InvalidRow, match="does not exist"):
        folders.find("dangling.png")


def test_the_folder_itself_may_be_a_link(tree: Path) -> None:
    os.symlink(tree / "images", tree / "alias")
    assert ImageFolders([tree / "alias"]).find("sub/b.png").open().size == (60, 40)


@pytest.mark.parametrize("name", ["b.png", "sub", "a.png/x", "x" * 5000, "a\0.png", ""])
def test_what_is_not_there_is_named(tree: Path, name: str) -> None:
    with pytest.raises(InvalidRow, match="does not exist"):
        ImageFolders([tree / "images"]).find(name)


def test_urls_only_where_allowed(tree: Path) -> None:
    url = "https://example.org/a.png"
    with pytest.raises(InvalidRow, match="is a URL: allow fetching with --allow-url"):
        ImageFolders([tree / "images"]).find(url)
    assert ImageFolders([], allow_url=True).find({"url": url}) == UrlImage(url)
    with pytest.raises(InvalidRow):
        ImageFolders([tree / "images"], allow_url=True).find("file:///etc/passwd")


def test_images_that_the_row_holds_itself(tree: Path) -> None:
    content = (tree / "secret.png").read_bytes()
    folders = ImageFolders([])
    held = folders.find({"bytes": content, "path": "x.png"})
    assert isinstance(held, BytesImage) and held.open().size == (60, 40)
    assert folders.find(content) == held == folders.find(held)
    assert folders.find("data:image/png;base64," + base64.b64encode(content).decode()) == held
    assert isinstance(folders.find(picture(3, 3)), DecodedImage)
    for bad, said in (
        ("data:image/png,abc", "base64 was expected"),
        ("data:image/png;base64,?", "base64 was expected"),
        ({"path": None}, "path or bytes expected"),
        ({}, "path or bytes expected"),
        (3, "type int: a path was expected"),
        ("a.png", "this data set has no folder"),
    ):
        with pytest.raises(InvalidRow, match=said):
            folders.find(bad)


def test_a_folder_that_is_none(tree: Path) -> None:
    with pytest.raises(InputError, match=r"--images .*nowhere does not exist"):
        ImageFolders([tree / "nowhere"])
    with pytest.raises(InputError, match="is not a folder"):
        ImageFolders([tree / "secret.png"])
