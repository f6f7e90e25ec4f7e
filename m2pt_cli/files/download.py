"""Images behind URLs, fetched within bounds of size, time and place: whoever serves them is not trusted."""

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
_PIECE = 1 << 16
# Without a byte, and for a whole image.
_SECONDS = 30.0
_SECONDS_IN_ALL = 120.0
_HTTP = re.compile(r"https?://", re.IGNORECASE)
# Characters of a URL that mean something; all others are written as %XX, as browsers do.
_MEANT = "%/:=&?~#+!$,;'@()*[]"


def is_url(text: str) -> bool:
    """Whether ``text`` is meant as an http or https URL."""
    return _HTTP.match(text) is not None


def fetch(url: str) -> bytes:
    """What is behind an http(s) URL; redirections are followed to http(s) alone.

    Raises:
        InputError: it can't be fetched whole, is over 64 MiB, or does not arrive within two minutes.
    """
    try:
        return _fetch(url)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) if type(error) is URLError else None
        said = (str(reason or error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"image {url} can't be fetched: {said}") from None


def _fetch(url: str) -> bytes:
    if not is_url(url):
        raise ValueError("only http and https are fetched")
    request = Request(quote(url, safe=_MEANT), headers={"User-Agent": "m2pt"})
    content = bytearray()
    deadline = time.monotonic() + _SECONDS_IN_ALL
    with build_opener(_HttpAlone).open(request, timeout=_SECONDS) as response:
        length = response.length
        while length is None or len(content) < length:
            # read1 hands over what is there: a slow server can't hold the clock up.
            piece = response.read1(_PIECE if length is None else min(_PIECE, length - len(content)))
            if not piece:
                break
            content += piece
            if len(content) > _MOST_BYTES:
                raise InputError(f"image {url} is larger than {_MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(content):,} bytes in {_SECONDS_IN_ALL:.0f} seconds, and no end")
    if length is not None and len(content) < length:
        raise ValueError(f"{len(content):,} bytes of {length:,} arrived")
    return bytes(content)


class _HttpAlone(HTTPRedirectHandler):
    """Follows no redirection to another kind of address (the library's own would follow one to FTP)."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not is_url(newurl):
            raise ValueError(f"it leads to {newurl}: only http and https are fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
