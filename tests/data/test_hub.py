"""Lines of progress, and failures of the Hub in words."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from m2pt_cli.data import hub
from m2pt_cli.data.hub import Progress, gigabytes, hub_errors, is_network_error
from m2pt_cli.errors import UnavailableError


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 25.0, 30.0, 50.0])
    monkeypatch.setattr(hub.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    progress = Progress("images.zip", said.append, total=36e9, initial=1e9)
    for _ in range(4):
        progress.update(500_000_000)
    assert said == [
        "images.zip: 2.0 GB of 36.0 GB, 40 MB/s, 14 min left",
        "images.zip: 3.0 GB of 36.0 GB, 40 MB/s, 14 min left",
    ]


def test_sizes_for_people() -> None:
    assert [gigabytes(size) for size in (1234, 3.2e6, 14.1e9)] == ["0.0 MB", "3.2 MB", "14.1 GB"]


def test_errors_of_every_http_library_are_network_errors() -> None:
    for module in ("httpx", "httpx2._exceptions", "requests.exceptions"):
        assert is_network_error(type("ConnectError", (Exception,), {"__module__": module})())
    assert is_network_error(ConnectionResetError()) and not is_network_error(ValueError())


def test_failures_name_the_set_the_cache_and_the_way_out() -> None:
    with (
        pytest.raises(
            UnavailableError, match=r"a/b is not in the cache \(.*\), and the Hub can't be reached"
        ) as caught,
        hub_errors("a/b"),
    ):
        raise LocalEntryNotFoundError("x")
    assert "hf download a/b --repo-type dataset" in str(caught.value.hint)
    reset = r"a/b can't be downloaded to .*: reset by peer"
    with pytest.raises(UnavailableError, match=reset) as caught, hub_errors("a/b"):
        raise ConnectionResetError("reset by peer")
    assert "what has arrived is kept" in str(caught.value.hint)
    with pytest.raises(ZeroDivisionError), hub_errors("a/b"):
        raise ZeroDivisionError
