"""A stand-in for the Hugging Face Hub on 127.0.0.1: repositories are folders, downloads can be cut off.

It answers what huggingface_hub and datasets ask for when they read: repository information, file trees, and files with
ETag, commit and byte ranges. Both libraries read ``HF_ENDPOINT`` when they are imported, so the code under test runs in
a process of its own:

    with HubServer(folder) as hub:  # folder/models/<owner>/<name>/…, folder/datasets/<owner>/<name>/…
        subprocess.run(command, env=hub.environment(home))
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("models", "datasets")


@dataclass(frozen=True)
class Request:
    """A request that was answered; ``range`` is its Range header."""

    method: str
    path: str
    status: int
    range: str | None


@dataclass
class Repo:
    """A folder served as a repository."""

    id: str
    folder: Path

    @property
    def files(self) -> dict[str, Path]:
        return {p.relative_to(self.folder).as_posix(): p for p in sorted(self.folder.rglob("*")) if p.is_file()}

    @property
    def commit(self) -> str:
        """Changes when a file does."""
        content = repr([(name, etag(path)) for name, path in self.files.items()])
        return hashlib.sha1(content.encode()).hexdigest()

    def info(self) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": path.stat().st_size, "blobId": etag(path)} for name, path in self.files.items()
        ]
        common = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return {"id": self.id, "_id": self.id, "sha": self.commit, "siblings": siblings, **common}

    def tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{under}/" if under else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, path in self.files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if recursive or len(parts) == 1:
                entries[name] = file_entry(name, path)
        return list(entries.values())

    def paths_info(self, paths: list[str]) -> list[dict[str, Any]]:
        every = {entry["path"]: entry for entry in self.tree("", recursive=True)}
        return [every[path] for path in paths if path in every]


def etag(path: Path) -> str:
    """A file's content in 40 hex digits, as git's blobs have."""
    return hashlib.sha1(path.read_bytes()).hexdigest()


def file_entry(name: str, path: Path) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)}


@dataclass
class HubServer:
    """Serves ``root``; see the module.

    Attributes:
        requests: everything that was answered, in order.
        gated: ids that ask for their owner's permission.
    """

    root: Path
    requests: list[Request] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    _cuts: dict[str, list[int]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        """Variables for a process that takes this server for the Hub, with ``home`` as its ``HF_HOME``."""
        offline = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        own = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        dropped = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "http_proxy", "HTTP_PROXY")
        return {**{k: v for k, v in os.environ.items() if k not in dropped}, **offline, **own, **extra}

    def cut(self, file: str, *, after: int, times: int = 1) -> None:
        """Break the connection after ``after`` bytes of the next ``times`` downloads of files named so."""
        self._cuts[file] = [after] * times

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        folder = self.root / kind / repo_id
        return Repo(repo_id, folder) if folder.is_dir() else None

    def take_cut(self, path: str) -> int | None:
        """How many bytes of this download may pass, if it is to be cut."""
        for file, cuts in self._cuts.items():
            if path.endswith(file) and cuts:
                return cuts.pop()
        return None


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route(with_body=True)

    def do_HEAD(self) -> None:
        self._route(with_body=False)

    def do_POST(self) -> None:
        self._route(with_body=True)

    def _route(self, *, with_body: bool) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        kind = parts.pop(0) if parts and parts[0] in KINDS else "models"
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        repo = self.server_hub.repo(kind, repo_id)
        if repo is None:
            self._error(401, "RepoNotFound", with_body)
        elif repo_id in self.server_hub.gated:
            self._error(403, "GatedRepo", with_body)
        elif is_api:
            self._api(repo, rest, parse_qs(url.query), body, with_body)
        elif len(rest) >= 3 and rest[0] == "resolve" and self._is_known(repo, rest[1]):
            self._file(repo, "/".join(rest[2:]), with_body)
        else:
            self._error(404, "RevisionNotFound", with_body)

    def _is_known(self, repo: Repo, revision: str) -> bool:
        return revision in ("main", repo.commit)

    def _api(self, repo: Repo, rest: list[str], query: dict[str, list[str]], body: str, with_body: bool) -> None:
        if len(rest) >= 2 and not self._is_known(repo, rest[1]):
            self._error(404, "RevisionNotFound", with_body)
        elif not rest or rest[0] == "revision":
            self._json(repo.info(), with_body)
        elif rest[0] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(repo.tree("/".join(rest[2:]), recursive=recursive), with_body)
        elif rest[0] == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            self._json(repo.paths_info(paths), with_body)
        else:
            self._error(404, None, with_body)

    def _file(self, repo: Repo, name: str, with_body: bool) -> None:
        path = repo.files.get(name)
        if path is None:
            self._error(404, "EntryNotFound", with_body, {"X-Repo-Commit": repo.commit})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        status, asked = 200, self.headers.get("Range")
        if asked is not None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
            if start >= len(content):
                self._error(416, None, with_body)
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        passing = self.server_hub.take_cut(name) if with_body else None
        self._answer(status, headers, content, with_body, passing)

    def _json(self, value: Any, with_body: bool) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), with_body)

    def _error(self, status: int, code: str | None, with_body: bool, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._answer(status, {**named, **(headers or {})}, b'{"error": "refused"}', with_body)

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, with_body: bool, passing: int | None = None
    ) -> None:
        self.server_hub.requests.append(Request(self.command, self.path, status, self.headers.get("Range")))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content if passing is None else content[:passing])
            self.close_connection = passing is not None

    def log_message(self, *arguments: Any) -> None:
        """Requests are kept in a list, not printed."""
