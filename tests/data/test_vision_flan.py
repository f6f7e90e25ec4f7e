"""``--data vision-flan`` against a stand-in Hub: downloaded with resume, unpacked once, found again offline."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from m2pt_cli.data import hub, vision_flan
from m2pt_cli.data.hub import RepoFiles
from m2pt_cli.data.vision_flan import ANNOTATION, ARCHIVE, REPO
from m2pt_cli.errors import DeviceError

from ..hub_server import HubServer
from .tiny import picture

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
