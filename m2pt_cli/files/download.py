"""Downloads images from URLs, with limits on size, time and scheme, because servers are not trusted."""

from __future__ import annotations

import re
import time
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from m2pt_cli.errors import InputError

_MOST_BYTES = 64 << 20
_CHUNK = 1 << 16
# Timeouts: without any data, and for a whole image.
_SECONDS = 30.0
_SECONDS_IN_ALL = 120.0
_HTTP = re.compile(r"https?://", re.IGNORECASE)
# Characters with a meaning in a URL; all others are written as %XX, as browsers do.
_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"


def is_url(text: str) -> bool:
    """Whether ``text`` begins as an http or https URL."""
    return _HTTP.match(text) is not None


def fetch(url: str) -> bytes:
    """Download an http(s) URL; redirects are followed to http(s) only.

    Raises:
        InputError: it can't be downloaded completely, is larger than 64 MiB, or takes longer than two minutes.
    """
    try:
        return _fetch(url)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) if type(error) is URLError else None
        cause = (str(reason or error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"image {url} can't be fetched: {cause}") from None


def _fetch(url: str) -> bytes:
    if not is_url(url):
        raise ValueError("only http and https are fetched")
    request = Request(quote(url, safe=_URL_CHARACTERS), headers={"User-Agent": "m2pt"})
    content = bytearray()
    deadline = time.monotonic() + _SECONDS_IN_ALL
    with build_opener(_HttpOnlyRedirects).open(request, timeout=_SECONDS) as response:
        length = response.length
        while length is None or len(content) < length:
            # read1 returns what has arrived, so that a slow server can't delay the check of the deadline.
            chunk = response.read1(_CHUNK if length is None else min(_CHUNK, length - len(content)))
            if not chunk:
                break
            content += chunk
            if len(content) > _MOST_BYTES:
                raise InputError(f"image {url} is larger than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(content):,} bytes in {_SECONDS_IN_ALL:.0f} seconds, and no end")
    if length is not None and len(content) < length:
        raise ValueError(f"{len(content):,} bytes of {length:,} arrived")
    return bytes(content)


class _HttpOnlyRedirects(HTTPRedirectHandler):
    """Refuses redirects to other schemes (the standard handler would follow one to FTP)."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_url(newurl):
            raise ValueError(f"it leads to {newurl}: only http and https are fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
