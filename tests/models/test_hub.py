"""The Hub without a network: cached files are used, and every failure is one line with a hint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from fixtures.hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from m2pt_cli.errors import AdapterError, DeviceError, UnavailableError
from m2pt_cli.models.hub import fetch_adapter, fetch_base, fetch_config, fetch_texts

REPO = "somebody/llava"
Files = dict[str, int]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; huggingface_hub reads its place at import, so the constant is replaced."""
    place = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    return place


def fill(cache: Path, source: Path, *, without: str = "") -> Path:
    """Lay the files of ``source`` into the cache as huggingface_hub does."""
    repo = cache / "models--somebody--llava"
    snapshot = repo / "snapshots" / "abc"
    shutil.copytree(source, snapshot, ignore=shutil.ignore_patterns(without) if without else None)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    return snapshot


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Stand in for the Hub: a repository with these files, or one that fails; returns the downloads asked for."""

    def stand_in(files: Files | None = None, failure: Exception | None = None) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def model_info(self: Any, repo_id: str, files_metadata: bool) -> Any:
            if failure is not None:
                raise failure
            siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in (files or {}).items()]
            return SimpleNamespace(sha="abc", siblings=siblings)

        def snapshot_download(repo_id: str, **options: Any) -> str:
            asked.append(options)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return stand_in


def http_error(kind: Any) -> Exception:
    error: Exception = kind("no", response=SimpleNamespace(headers={}, request=None))
    return error


def test_offline_names_repository_cache_command_and_nano(cache: Path) -> None:
    for fetch in (fetch_base, fetch_config):
        with pytest.raises(UnavailableError) as caught:
            fetch(REPO)  # type: ignore[operator]
        said = f"{caught.value.message} {caught.value.hint}"
        for part in (REPO, str(cache), f"hf download {REPO}", "--base nano"):
            assert part in said


def test_an_adapter_is_an_adapters_fault(cache: Path) -> None:
    with pytest.raises(AdapterError, match=REPO) as caught:
        fetch_adapter(REPO)
    assert "nano" not in (caught.value.hint or "")


def test_a_complete_cache_needs_no_network(cache: Path, bases: Callable[..., Path]) -> None:
    snapshot = fill(cache, bases())
    assert fetch_base(REPO) == fetch_config(REPO) == snapshot


def test_what_was_downloaded_is_found_again_offline(tmp_path: Path, bases: Callable[..., Path]) -> None:
    shutil.copytree(bases(), tmp_path / "hub" / "models" / REPO)
    code = f"from m2pt_cli.models.hub import fetch_base; print(fetch_base({REPO!r}))"
    with HubServer(tmp_path / "hub") as server:
        environment = server.environment(tmp_path / "home")
        places = [run_python(code, environment)]
    places.append(run_python(code, {**environment, "HF_HUB_OFFLINE": "1"}))
    assert places[0] == places[1] and (Path(places[0]) / "model.safetensors").is_file()


def run_python(code: str, environment: dict[str, str]) -> str:
    """What a process of its own prints: huggingface_hub reads its environment at import."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_incomplete_cache_is_not_enough(cache: Path, bases: Callable[..., Path]) -> None:
    fill(cache, bases(), without="model.safetensors")
    assert fetch_config(REPO)
    with pytest.raises(UnavailableError, match="not in the cache"):
        fetch_base(REPO)


def test_only_safetensors_and_texts_are_downloaded(cache: Path, online: Callable[..., Any]) -> None:
    files = {"config.json": 10, "model-00001-of-00002.safetensors": 10**9, "model-00002-of-00002.safetensors": 10**9}
    files |= {
        "tokenizer.model": 5,
        "pytorch_model.bin": 10**12,
        "onnx/config.json": 5,
        "consolidated.safetensors": 10**12,
    }
    files |= {"modeling_llava.py": 3, "chat_template.jinja": 4, "adapter/model.safetensors": 5, "README.md": 2}
    asked, told = online(files), []
    fetch_base(REPO, report=told.append)
    assert sorted(asked[0]["allow_patterns"]) == [
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.model",
    ]
    assert asked[0]["revision"] == "main"
    assert len(told) == 1
    for part in (REPO, "2.0 GB", str(cache), "free"):
        assert part in told[0]


def test_a_processor_needs_no_weights(cache: Path, online: Callable[..., Any], bases: Callable[..., Path]) -> None:
    asked = online({"config.json": 1, "tokenizer.json": 1, "model.safetensors": 10**18})
    fetch_texts(REPO)
    assert asked[0]["allow_patterns"] == ["config.json", "tokenizer.json"]
    snapshot = fill(cache, bases(), without="model.safetensors")
    assert fetch_texts(REPO) == snapshot and len(asked) == 1


def test_only_what_is_missing_counts(cache: Path, online: Callable[..., Any], bases: Callable[..., Path]) -> None:
    fill(cache, bases(), without="model.safetensors")
    told: list[str] = []
    online({"config.json": 10**12, "model.safetensors": 3_000_000})
    fetch_base(REPO, report=told.append)
    assert "3.0 MB" in told[0]


def test_a_disk_too_small(cache: Path, online: Callable[..., Any]) -> None:
    asked = online({"config.json": 1, "model.safetensors": 10**18})
    with pytest.raises(DeviceError, match="free") as caught:
        fetch_base(REPO)
    assert "HF_HOME" in (caught.value.hint or "") and not asked


def test_pickles_are_never_fetched(cache: Path, online: Callable[..., Any]) -> None:
    for files, said in (({"config.json": 1, "pytorch_model.bin": 5}, "pickle"), ({"config.json": 1}, "no weights")):
        online(files)
        with pytest.raises(UnavailableError, match=said):
            fetch_base(REPO)
    online({"adapter_config.json": 1, "adapter_model.bin": 5})
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        fetch_adapter(REPO)
    online({"config.json": 1, "model.safetensors": 5})
    with pytest.raises(AdapterError, match=r"adapter_config\.json") as caught:
        fetch_adapter(REPO)
    assert caught.value.hint == f"give it with --base {REPO}"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (http_error(RepositoryNotFoundError), "there is no base somebody/llava"),
        (http_error(GatedRepoError), "owner's permission"),
        (HTTPError("name resolution failed"), "can't be downloaded.*name resolution failed"),
        (PermissionError("cache is read-only"), "can't be downloaded.*read-only"),
    ],
)
def test_failures_of_the_hub(cache: Path, online: Callable[..., Any], failure: Exception, said: str) -> None:
    online(failure=failure)
    with pytest.raises(UnavailableError, match=said) as caught:
        fetch_base(REPO)
    assert "--base nano" in (caught.value.hint or "")


def test_a_token_is_never_shown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UnavailableError) as caught:
        fetch_base(REPO)
    assert "hf_secret" not in f"{caught.value.message}{caught.value.hint}"
