"""The versions of this package and of the libraries it depends on; imports none of them.

`__version__` is a plain string, so that packaging can read it without importing anything.
"""

from __future__ import annotations

import platform
import re
from importlib import metadata

__version__ = "0.1.0"

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
# Libraries whose internals the method relies on: the oldest minor version that CI runs, and the first one that it has
# not run. The bounds in pyproject.toml are the same.
TESTED = {"transformers": ("5.17", "5.25"), "peft": ("0.20", "0.22")}


def library_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this tool, of Python and of those named libraries that are installed."""
    found = {"m2pt": __version__, "python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # missing, or importable without being installed
            continue
    return found


def untested_versions() -> list[str]:
    """Return a sentence for each library whose version is outside the range that CI has run."""
    sentences = []
    for name, version in library_versions(*TESTED).items():
        if name not in TESTED:
            continue
        oldest, first_unknown = TESTED[name]
        if not _numbers(oldest) <= _numbers(version) < _numbers(first_unknown):
            sentences.append(
                f"{name} {version} is outside the versions that were tested, {oldest} to below {first_unknown}"
            )
    return sentences


def _numbers(version: str) -> tuple[int, int]:
    """Return major and minor number: ``5.24.0.dev0`` gives (5, 24)."""
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return int(major), int(minor)
