"""Results of ``m2pt attn-map``, and writing their values to a file. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2pt_cli.analysis.tokens import IMAGE, TEXTUAL, VISUAL, Tokens

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PartAttention:
    """Attention in one part of the model, averaged over the queries of real tokens.

    Attributes:
        tokens: the keys.
        received: ``(layers, keys)``, mean over heads (over the chosen ones); rows sum to 1.
        uniform: ``(keys,)``, what each key receives if every query attends evenly to all visible keys; sums to 1.
    """

    tokens: Tokens
    received: Array
    uniform: Array

    @property
    def num_layers(self) -> int:
        return int(self.received.shape[0])

    def shares(self) -> dict[str, Array]:
        """Return each group's share of the attention in every layer ``(layers,)``; groups sum to 1."""
        return self.tokens.sums(self.received)

    def uniform_shares(self) -> dict[str, float]:
        """Return each group's share under uniform attention."""
        return {name: float(share) for name, share in self.tokens.sums(self.uniform).items()}

    def to_dict(self) -> dict[str, Any]:
        """Return shares by group and layer, and of all prompts together; null if there are no prompts."""
        shares, uniform = self.shares(), self.uniform_shares()
        prompts = [name for name in (TEXTUAL, VISUAL) if name in shares]
        groups = {
            name: {
                "tokens": len(self.tokens.places(name)),
                "uniform": round(uniform[name], 6),
                "mean": _rounded(share.mean()),
                "layers": [_rounded(value) for value in share],
            }
            for name, share in shares.items()
        }
        together = np.sum([shares[name] for name in prompts], axis=0) if prompts else None
        return {
            "groups": groups,
            "prompts": None
            if together is None
            else {
                "uniform": round(sum(uniform[name] for name in prompts), 6),
                "mean": _rounded(together.mean()),
                "layers": [_rounded(value) for value in together],
            },
        }


@dataclass(frozen=True)
class LanguageAttention(PartAttention):
    """Attention in the language model.

    Attributes:
        by_head: ``(layers, heads, keys)``: ``received`` before averaging over heads.
        answer: ``(layers, heads, answer tokens, keys)``, of the query that produced each token of the answer.
        heads: indices of these heads; None if there is one head, the mean of all.
        grid: patches along a side of the image.
    """

    by_head: Array
    answer: Array
    heads: tuple[int | None, ...]
    grid: int

    def overlay(self, layers: Sequence[int], head: int, tokens: Sequence[int]) -> Array:
        """Return one head's attention on each patch ``(grid, grid)``, mean over layers and tokens (all if empty).

        For an image split into tiles (LLaVA-NeXT) it is the attention on the base image.
        """
        chosen = self.overlays()[:, head]
        chosen = chosen[list(layers)] if layers else chosen
        mean: Array = (chosen[:, list(tokens)] if tokens else chosen).mean((0, 1))
        return mean

    def overlays(self) -> Array:
        """Return the attention of each answer token on the image: ``(layers, heads, answer tokens, rows, columns)``."""
        # Labels of tile tokens differ from those of the whole image, see `tokens.patch_label`.
        patches = [place for place in self.tokens.places(IMAGE) if not self.tokens.labels[place].startswith("tile")]
        return self.answer[..., patches].reshape(*self.answer.shape[:3], self.grid, self.grid)

    def overlay_uniform(self) -> float:
        """Return what each patch receives if answer tokens attend evenly to all visible keys (mean over tokens)."""
        seen = len(self.tokens) - np.arange(self.answer.shape[2])
        return float((1 / seen).mean())

    def answer_on_prompts(self, layers: Sequence[int]) -> tuple[Array, list[str]]:
        """Return the attention of answer tokens on prompts ``(answer tokens, prompts)``, and the prompts' labels."""
        places = self.tokens.places(TEXTUAL, VISUAL)
        chosen = self.answer if not layers else self.answer[list(layers)]
        return chosen.mean((0, 1))[:, places], [self.tokens.labels[place] for place in places]


@dataclass(frozen=True)
class VisionAttention(PartAttention):
    """Attention in the vision tower, in the layers that the image features depend on.

    Attributes:
        from_patches: ``(layers, keys)``, mean over the patch queries.
        by_head: ``(layers, heads, keys)``: ``received`` before averaging over heads.
        heads: indices of these heads; None if there is one head, the mean of all.
    """

    from_patches: Array
    by_head: Array
    heads: tuple[int | None, ...]


@dataclass(frozen=True)
class AttentionRun:
    """Attention of one adapter, or of the base model if ``adapter`` is None.

    Attributes:
        answer: its answer; None if only the vision tower was recorded.
        answer_tokens: the answer's tokens as text.
        picture: ``(height, width, 3)``, the vision tower's input image at a higher resolution.
        language, vision: None if not recorded.
        label: the user's name for it in figure and tables; None for the adapter's name.
    """

    adapter: str | None
    answer: str | None
    answer_tokens: tuple[str, ...]
    picture: NDArray[np.uint8]
    language: LanguageAttention | None
    vision: VisionAttention | None
    label: str | None = None

    @property
    def name(self) -> str:
        return self.label or self.adapter or "bare base"

    def to_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "label": self.label,
            "answer": self.answer,
            "tokens": list(self.answer_tokens),
            "language": None if self.language is None else self.language.to_dict(),
            "vision": None if self.vision is None else self.vision.to_dict(),
        }


@dataclass(frozen=True)
class AttentionMaps:
    """The runs of one image and question, and the selected layers, heads and tokens; indices count from 0.

    Attributes:
        layers, heads, tokens: selected layers and heads of the language model, and answer tokens; empty for all.
        vision_layers: the layers of the vision tower drawn token by token.
        vision_heads: selected heads of the vision tower; empty for all.
        output, values: the files that were written.
    """

    image: str
    question: str
    base: str
    runs: tuple[AttentionRun, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: tuple[int, ...]
    vision_layers: tuple[int, ...]
    vision_heads: tuple[int, ...]
    output: str | None
    values: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``m2pt attn-map --json``: shares of attention, 0-1."""
        return {
            "image": self.image,
            "question": self.question,
            "base": self.base,
            "heads": list(self.heads),
            "vision_heads": list(self.vision_heads),
            "runs": [run.to_dict() for run in self.runs],
            "output": self.output,
            "values": self.values,
        }


def _rounded(value: Any) -> float:
    return round(float(value), 6)


@dataclass(frozen=True)
class NamedArray:
    """Attention, 0-1, with named axes; the axis ``key`` is the attended token."""

    name: str
    axes: tuple[str, ...]
    values: NDArray[np.float32]


def named_arrays(run: AttentionRun) -> Iterator[NamedArray]:
    """Yield the arrays of one run.

    ``language.received`` and ``language.answer`` have one head, the mean, unless heads were selected;
    ``language.overlay`` is ``language.answer`` on the image's patches; ``vision.received`` is the mean of
    ``vision.by_head``. Unless the name says otherwise, means are over all queries of real tokens.
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
    """Return the labels along each axis: labels and groups of the keys, answer tokens, heads."""
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
    """Write all runs atomically.

    ``.npz``: ``runs`` names the adapters; array ``run0.language.received`` has its axes in
    ``run0.language.received.axes`` and their labels in ``run0.language.key`` and so on; nothing is pickled.
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
