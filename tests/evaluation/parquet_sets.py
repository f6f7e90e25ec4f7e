"""Tiny parquet files as the datasets library writes them: images as structs, class labels with their names."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def png(color: tuple[int, int, int] | int, mode: str = "RGB") -> dict[str, Any]:
    """An image cell of one colour."""
    buffer = BytesIO()
    Image.new(mode, (16, 12), color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parquet(
    file: Path,
    rows: list[dict[str, Any]],
    *,
    images: Sequence[str] = (),
    labels: dict[str, Sequence[str]] | None = None,
) -> Path:
    """Write rows; ``labels`` names the classes of class-label columns. Three rows make a row group."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    plain = Dataset.from_list(rows)
    features = Features(
        {
            **plain.features,
            **{name: ImageFeature() for name in images},
            **{name: ClassLabel(names=list(names)) for name, names in (labels or {}).items()},
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plain.cast(features).to_parquet(str(file), batch_size=3)
    return file
