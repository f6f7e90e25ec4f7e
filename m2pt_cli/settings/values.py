"""Settings from YAML: the file, and each value as the type of its setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2pt_cli.errors import InputError


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping, read with ``safe_load``: nothing in it can run code."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} can't be read: {getattr(error, 'strerror', None) or error}", "check the path given to --config"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings: a mapping of 'key: value' lines was expected")
    return content


def convert(value: Any, annotation: str) -> Any:
    """``value`` as the annotated type of a setting; YAML reads ``7e-4`` as text, so numbers are parsed from text too.

    Raises:
        TypeError, ValueError: the value does not fit the type.
    """
    if value is None and "None" in annotation:
        return None
    kind = plain_type(annotation)
    if kind.startswith("list of "):
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(Path(item) if kind.endswith("path") else _text(item) for item in items)
    if kind == "switch":
        if not isinstance(value, bool):
            raise TypeError(value)
        return value
    if isinstance(value, bool):
        raise TypeError(value)
    if kind == "whole number":
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return int(value)
    if kind == "number":
        return float(value)
    return Path(value) if kind == "path" else _text(value)


def plain_type(annotation: str) -> str:
    base = annotation.replace(" | None", "")
    names = {"int": "whole number", "float": "number", "bool": "switch", "Path": "path", "str": "text"}
    if base.startswith("tuple["):
        return "list of " + names[base.removeprefix("tuple[").split(",")[0]]
    return names[base]


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float, Path)):
        raise TypeError(value)
    return str(value)


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def settings_section(content: dict[str, Any]) -> dict[str, Any]:
    # run.yaml keeps the settings under "settings", beside the versions; a hand-written file may hold them bare.
    section = content.get("settings", content)
    return section if isinstance(section, dict) else content
