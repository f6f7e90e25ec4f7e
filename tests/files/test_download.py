"""Images from URLs: every way a server can misbehave becomes a clear error, and no download is endless."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from m2pt_cli.data.sample import UrlImage
from m2pt_cli.errors import InputError
from m2pt_cli.files import download as fetching
from m2pt_cli.files.download import fetch, is_url


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()
REDIRECTIONS = {
    "/ftp": "ftp://127.0.0.1:{port}/a.png",
    "/file": "file:///etc/hostname",
    "/data": "data:image/png;base64,AAAA",
    "/elsewhere": "http://localhost:{port}/a%20b.png",
    "/loop": "/loop",
    "/broken": "http://[x/a",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        port = self.server.server_address[1]
        try:
            if self.path in REDIRECTIONS:
                self._head(302, Location=REDIRECTIONS[self.path].format(port=port))
            elif self.path == "/a%20b.png" or self.path == "/%C3%A4.png":
                self._head(200, Content_Length=str(len(PNG)))
                self.wfile.write(PNG)
            elif self.path == "/unbounded.png":
                self._head(200)
                self.wfile.write(PNG)
            elif self.path == "/short.png":
                self._head(200, Content_Length=str(len(PNG) + 1))
                self.wfile.write(PNG)
            elif self.path == "/chunks.png":
                self._head(200, Transfer_Encoding="chunked")
                self.wfile.write(b"5\r\nabc")
            elif self.path == "/noise":
                self.wfile.write(b"\x00\x01 noise\r\n\r\n")
            elif self.path == "/endless":
                self._head(200)
                while True:
                    self.wfile.write(bytes(1 << 16))
            elif self.path == "/drip":
                self._head(200, Content_Length="1000000")
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            else:
                self._head(404)
        except OSError:
            """The client has gone, as it should."""

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/a%20b.png", "/a b.png", "/ä.png", "/unbounded.png", "/elsewhere"])
def test_what_is_there_is_fetched(site: str, path: str) -> None:
    assert fetch(site + path) == PNG
    assert UrlImage(site + path).open().getpixel((0, 0)) == (250, 10, 10)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none.png", "404"),
        ("/short.png", f"{len(PNG):,} bytes of {len(PNG) + 1:,} arrived"),
        ("/chunks.png", "IncompleteRead"),
        ("/noise", "noise"),
        ("/ftp", r"it leads to ftp://.*only http and https"),
        ("/file", "not allowed"),
        ("/data", "not allowed"),
        ("/loop", "infinite loop"),
        ("/broken", "Invalid IPv6 URL"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(site: str, path: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        fetch(site + path)
    assert path in caught.value.message and "\n" not in caught.value.message


def test_an_endless_image_and_a_dripping_one_end(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match="is larger than 1 MiB"):
        fetch(site + "/endless")
    monkeypatch.setattr(fetching, "_SECONDS_IN_ALL", 0.3)
    with pytest.raises(InputError, match="bytes in 0 seconds, and no end"):
        fetch(site + "/drip")


@pytest.mark.parametrize("url", ["http://[x", "http://127.0.0.1:x/a.png", "http:///a.png", "http://127.0.0.1:1/\ud800"])
def test_a_url_that_is_none_is_an_input_error(url: str) -> None:
    assert is_url(url)
    with pytest.raises(InputError, match="can't be fetched"):
        fetch(url)


def test_other_addresses_are_no_urls() -> None:
    assert is_url("HTTPS://example.org/a.png")
    assert not any(is_url(text) for text in ("file:///a.png", "ftp://a/b.png", "a.png", "C:/a.png", "http", ""))
    with pytest.raises(InputError, match="only http and https"):
        fetch("file:///etc/hostname")
