"""Detect media that m2pt does not support, by the keys other tools use, so that it is not dropped silently.

The keys are those of ms-swift, LLaMA-Factory, LLaVA and its successors, Qwen-VL and the chat APIs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from m2pt_cli.data.sample import IMAGE_MARK

# Keys of a row for other kinds of media, and keys for an image other than "image" and "images".
_OTHER_MEDIA = re.compile(
    r"(video|audio|speech|point_?cloud)s?((_|-)?(path|url|file|name|bytes|list)s?)?", re.IGNORECASE
)
_OTHER_IMAGE = re.compile(
    r"(image|img|picture|photo)s?(_|-)?(path|url|file|filename|name|bytes|base64|list)s?|imgs?|pictures?|photos?|"
    r"(input|pixel)_(image|values)s?",
    re.IGNORECASE,
)
# Such a key counts as an image only if its value is the name of an image file.
_FILE_KEY = re.compile(r"(file|file_?name|file_?path|path|url)s?", re.IGNORECASE)
_MEDIA_FILE = re.compile(
    r".+\.(png|jpe?g|webp|gif|bmp|tiff?|avif|mp4|mov|avi|mkv|webm|wav|mp3|flac|ogg|m4a)(\?.*)?", re.IGNORECASE
)
# Placeholders for media in a text; only <image> is supported.
_MARK = re.compile(
    r"<\|?(?:video|audio|speech|image|img)(?:_?(?:pad|token|placeholder|soft_token|here)|[ _-]?\d+)?\|?>"
    r"|<(?:start_of_image|im_start|im_patch|bbox|ref-object|point_?cloud)>",
    re.IGNORECASE,
)


def unsupported_media(row: Mapping[str, Any], *, has_image: bool) -> str | None:
    """Return the key of ``row`` that holds unsupported media, with the next step; None if there is none.

    Args:
        row: a sample, a message or a question.
        has_image: whether it names an image as m2pt expects; then other image keys are ignored.
    """
    for key, value in row.items():
        name = str(key)
        if value is None or value == "" or value == [] or isinstance(value, (bool, int, float)):
            continue
        if name in ("image", "images"):
            continue
        if _OTHER_MEDIA.fullmatch(name):
            return f"{name!r} in it: only images are supported"
        if has_image:
            continue
        named = isinstance(value, str) and _FILE_KEY.fullmatch(name) and _MEDIA_FILE.fullmatch(value)
        if name.lower() in ("image", "images") or _OTHER_IMAGE.fullmatch(name) or named:
            return f"{name!r} in it: name the image with the key 'image'"
    return None


def one_image(record: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return a question's image (``image`` or ``images``, alone or in a list of one), and an error or None."""
    held = {key: record[key] for key in ("image", "images") if record.get(key) is not None and record[key] != []}
    if len(held) > 1:
        return None, "both 'image' and 'images' in it"
    key, value = next(iter(held.items()), ("", None))
    if isinstance(value, list):
        if len(value) > 1:
            return None, f"{key!r} holds {len(value)} images: a question is about one"
        value = value[0]
    return value, unsupported_media(record, has_image=value is not None)


def unsupported_marks(texts: Iterable[str]) -> str | None:
    """Return the first unsupported media placeholder in ``texts``; None if there is none."""
    for text in texts:
        for found in _MARK.finditer(text):
            mark = found.group()
            if mark != IMAGE_MARK:
                advice = f"{IMAGE_MARK} is the one for images" if "im" in mark.lower() else "only images are supported"
                return f"the mark {mark} in a question: {advice}"
    return None
