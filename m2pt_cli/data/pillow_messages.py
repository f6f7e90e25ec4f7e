"""Keep what Pillow and its libraries say about images off stderr, which belongs to the command.

What matters to an answer is checked by `m2pt_cli.data.sample` and told with the image's name.
"""

from __future__ import annotations

import ctypes
import logging
import re
import warnings
from functools import cache

_MODULES = r"PIL\."
_FILTER = ("ignore", None, Warning, re.compile(_MODULES), 0)


def silence_pillow() -> None:
    """Ignore warnings of Pillow's own modules; those of m2pt and of all other libraries stay.

    The filter is set for the whole process: threads that decode side by side can't each set one and take it back.
    """
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_MODULES)
    _silence_libraries()


@cache
def _silence_libraries() -> None:
    from PIL import _imaging

    # Without any handler Python prints a library's errors to stderr; a program's own handlers still get them.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # libtiff writes to stderr by itself. It is found through Pillow's module, unless it is linked into that.
    try:
        libraries = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(libraries, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
    except (AttributeError, OSError, TypeError):
        return
