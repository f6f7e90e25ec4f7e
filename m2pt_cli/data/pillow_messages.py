"""Suppress the messages of Pillow and its libraries on stderr, which the command uses for its own.

`m2pt_cli.data.sample` checks images itself and reports errors with the image's name.
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

    The filter is set for the whole process: threads that decode in parallel can't each set and reset it.
    """
    if _FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_MODULES)
    _silence_libraries()


@cache
def _silence_libraries() -> None:
    from PIL import _imaging

    # Without any handler Python prints a library's errors to stderr; a program's own handlers still get them.
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    # libtiff writes to stderr directly. Its functions are found through Pillow's module, unless linked statically.
    try:
        libraries = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            set_handler = getattr(libraries, name)
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
    except (AttributeError, OSError, TypeError):
        return
