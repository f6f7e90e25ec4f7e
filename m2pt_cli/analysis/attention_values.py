"""The numbers of ``m2pt attn-map`` in a file: arrays whose axes have names, as NumPy's ``.npz`` or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.attention_maps import AttentionMaps, AttentionRun


@dataclass(frozen=True)
class NamedArray:
    """Attention, 0-1, with a name for every axis; the axis ``key`` is the token that is attended."""

    name: str
    axes: tuple[str, ...]
    values: NDArray[np.float32]


def named_arrays(run: AttentionRun) -> Iterator[NamedArray]:
    """The arrays of one run.

    ``language.received`` and ``language.answer`` have one head, the mean, unless heads were chosen;
    ``language.overlay`` is ``language.answer`` on the image's patches; ``vision.received`` is the mean of
    ``vision.by_head``. Means are over all real queries where the name
    says no more.
    """
    if (language := run.language) is not None:
        yield NamedArray("language.received", ("layer", "head", "key"), language.by_head)
        yield NamedArray("language.answer", ("layer", "head", "answer_token", "key"), language.answer)
        yield NamedArray("language.overlay", ("layer", "head", "answer_token", "row", "column"), language.overlays())
        yield NamedArray("language.uniform", ("key",), language.uniform)
    if (vision := run.vision) is not None:
        yield NamedArray("vision.received", ("layer", "key"), vision.received)
        yield NamedArray("vision.from_patches", ("layer", "key"), vision.from_patches)
        yield NamedArray("vision.by_head", ("layer", "head", "key"), vision.by_head)
        yield NamedArray("vision.uniform", ("key",), vision.uniform)


def axis_labels(run: AttentionRun) -> dict[str, list[str]]:
    """What stands at the places of an axis: labels and groups of the keys, the answer's tokens, the heads."""
    labels: dict[str, list[str]] = {}
    for part, found in (("language", run.language), ("vision", run.vision)):
        if found is not None:
            labels[f"{part}.key"] = list(found.tokens.labels)
            labels[f"{part}.key_group"] = list(found.tokens.groups)
            labels[f"{part}.head"] = ["mean" if head is None else str(head) for head in found.heads]
    if run.language is not None:
        labels["language.answer_token"] = list(run.answer_tokens)
    return labels


def write_values(maps: AttentionMaps, file: Path) -> None:
    """Write all runs, whole or not at all.

    ``.npz``: ``runs`` names the adapters; array ``run0.language.received`` has its axes in
    ``run0.language.received.axes`` and what stands along them in ``run0.language.key`` and so on; nothing is pickled.
    ``.json``: the same as ``{"runs": [{"arrays": {name: {"axes", "values"}}, "labels"}]}``.
    """
    partial = file.with_name(f".{file.name}.partial{file.suffix}")
    try:
        if file.suffix.lower() == ".npz":
            np.savez_compressed(partial, **_flat(maps))  # type: ignore[arg-type]
        else:
            partial.write_text(json.dumps(_nested(maps), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _flat(maps: AttentionMaps) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "runs": np.array([run.adapter or "none" for run in maps.runs]),
        "image": np.array(maps.image),
        "question": np.array(maps.question),
        "base": np.array(maps.base),
    }
    for number, run in enumerate(maps.runs):
        for array in named_arrays(run):
            arrays[f"run{number}.{array.name}"] = array.values
            arrays[f"run{number}.{array.name}.axes"] = np.array(array.axes)
        for name, labels in axis_labels(run).items():
            arrays[f"run{number}.{name}"] = np.array(labels)
    return arrays


def _nested(maps: AttentionMaps) -> dict[str, Any]:
    return {
        "image": maps.image,
        "question": maps.question,
        "base": maps.base,
        "runs": [
            {
                "adapter": run.adapter,
                "answer": run.answer,
                "arrays": {
                    array.name: {"axes": list(array.axes), "values": np.round(array.values, 7).astype(float).tolist()}
                    for array in named_arrays(run)
                },
                "labels": axis_labels(run),
            }
            for run in maps.runs
        ],
    }
