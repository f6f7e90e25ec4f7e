"""Archives are unpacked once, completely, and inside their folder."""

from __future__ import annotations

import io
import json
import random
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fixtures.hub_server import HubServer
from fixtures.pictures import picture

from m2pt_cli.data import vision_flan
from m2pt_cli.data import vision_flan as unpacking
from m2pt_cli.data.vision_flan import ANNOTATION, ARCHIVE, MARKER, REPO, image_roots, is_unpacked, unpack
from m2pt_cli.errors import DeviceError, InputError
from m2pt_cli.files import hub
from m2pt_cli.files.hub import RepoFiles


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
    with pytest.raises(DeviceError, match=r"unpacking images\.zip needs 500 B, and .*out has 499 B free") as caught:
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


# Loads every (spec, limit) of its arguments and prints what came out, one JSON object per line.
DRIVER = """
import json, sys
from m2pt_cli.data.sources import load_samples
from m2pt_cli.errors import M2PTError
for spec, limit in json.loads(sys.argv[1]):
    said = []
    try:
        loaded = load_samples([spec], limit=limit, report=said.append)
        out = {"ids": [s.id for s in loaded.samples], "faults": loaded.faults,
               "sizes": [i.open().size for s in loaded.samples for i in s.images]}
    except M2PTError as error:
        out = error.to_dict()
    print(json.dumps({**out, "said": said}))
"""


def run_driver(environment: dict[str, str], *asked: tuple[str, int | None]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(asked)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Vision-Flan of 60 samples whose archive is larger than a download chunk (10 MB)."""
    folder = tmp_path / "hub/datasets" / REPO
    folder.mkdir(parents=True)
    rows = []
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for number in range(60):
            content = io.BytesIO()
            picture(40, 30, number).save(content, "PNG")
            archive.writestr(f"images_191task_1k/task{number % 6}_{number}.png", content.getvalue())
            turns = [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "" if number == 5 else "A."},
            ]
            name = f"task{number % 6}_{number}.png"
            rows.append({"id": f"s{number}", "image": name, "conversations": turns, "task_name": f"t{number % 6}"})
        archive.writestr("images_191task_1k/ballast.png", random.Random(0).randbytes(13_000_000))
    (folder / ANNOTATION).write_text(json.dumps(rows))
    (folder / "metadata.json").write_text(json.dumps({"not": "this one" * 10_000}))
    return tmp_path / "hub"


def test_few_samples_then_all_then_offline(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as server:
        environment = server.environment(tmp_path / "home")
        few, again = run_driver(environment, ("vision-flan", 3), ("vision-flan", 3))
        assert len(few["ids"]) == 3 and few["ids"] == again["ids"] and few["sizes"] == [[40, 30]] * 3
        assert any(line.startswith(f"fetching 3 images out of {ARCHIVE} (13.2 MB) without") for line in few["said"])
        assert again["said"] == []
        fetched = [request for request in server.requests if request.path.endswith(ARCHIVE) and request.method == "GET"]
        assert fetched and all(request.status == 206 for request in fetched)

        server.requests.clear()
        server.cut(ARCHIVE, after=12_000_000)
        (everything,) = run_driver(environment, ("vision-flan", None))
        assert len(everything["ids"]) == 59 and everything["faults"] == 1
        ranges = [r.range for r in server.requests if r.path.endswith(ARCHIVE) and r.method == "GET"]
        assert ranges == [None, "bytes=10485760-"]  # what had arrived was not fetched again
        said = everything["said"]
        assert said[0].startswith("vision-flan needs 26.5 MB: 13.2 MB of download and 13.2 MB unpacked in ")
        assert said[0].endswith("free)") and said[1].startswith(f"downloading {ARCHIVE} of {REPO}: 13.2 MB to ")
        assert said[2].startswith("unpacking 58 images")  # three are there already
        assert said[3].startswith("1 faulty samples of vision-flan are left out, the first: ")

    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    whole, some = run_driver(offline, ("vision-flan", None), ("vision-flan", 20))
    assert whole["ids"] == everything["ids"] and len(some["ids"]) >= 19 and len(whole["said"]) == 1


def test_what_can_not_be_had_is_said_in_words(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as server:
        (root / "datasets/some/gated").mkdir(parents=True)
        server.gated.add("some/gated")
        environment = server.environment(tmp_path / "home")
        missing, gated = run_driver(environment, ("no/such", None), ("some/gated", None))
        (root / "datasets" / REPO / ARCHIVE).unlink()
        gone, gone_too = run_driver(environment, ("vision-flan", None), ("vision-flan", 3))
    (unreachable,) = run_driver(server.environment(tmp_path / "empty"), ("vision-flan", None))
    assert missing["error"]["type"] == "UnavailableError"
    assert missing["error"]["message"] == "there is no data set no/such on the Hub, or it is private"
    assert gated["error"]["message"] == "the data set some/gated needs its owner's permission"
    assert gone["error"] == gone_too["error"]
    assert gone["error"]["message"] == f"the data set {REPO} holds no {ARCHIVE} any more"
    assert unreachable["error"]["message"].startswith(f"the data set {REPO} can't be ")
    assert "--data demo" in unreachable["error"]["hint"]


def test_too_small_a_disk_is_seen_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive and its images have to fit together."""
    repo = RepoFiles(REPO, "c" * 40, "main", {ANNOTATION: 10, ARCHIVE: 36_000_000_000})
    cached = tmp_path / ("c" * 40)
    cached.mkdir()
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]
    (cached / ANNOTATION).write_text(json.dumps([{"id": 1, "image": "a.png", "conversations": turns}]))
    monkeypatch.setattr(vision_flan, "cached_folder", lambda repo_id: cached)
    monkeypatch.setattr(vision_flan, "list_files", lambda repo_id, commit=None: repo)
    monkeypatch.setattr(vision_flan, "images_folder", lambda commit: tmp_path / "images" / commit)
    monkeypatch.setattr(vision_flan, "download", lambda *a, **k: pytest.fail("downloaded"))
    for module in (hub, vision_flan):
        monkeypatch.setattr(module, "free_bytes", lambda place: 50_000_000_000)
    said: list[str] = []
    with pytest.raises(DeviceError, match=r"vision-flan needs 72\.0 GB, and .* has 50\.0 GB free") as caught:
        vision_flan.read_vision_flan(limit=None, seed=0, report=said.append)
    assert "HF_HOME" in str(caught.value.hint)
    assert said[0].startswith("vision-flan needs 72.0 GB: 36.0 GB of download and 36.0 GB unpacked in ")
