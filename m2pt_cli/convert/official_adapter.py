"""Convert a checkpoint of the authors' code to an adapter with a model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from m2pt_cli.convert.official import OfficialCheckpoint, read_official
from m2pt_cli.errors import AdapterError, UnavailableError
from m2pt_cli.families.geometry import current_name
from m2pt_cli.files.adapter_names import CONFIG_FILE, WEIGHTS_FILE
from m2pt_cli.files.hub import gigabytes
from m2pt_cli.files.io import new_folder
from m2pt_cli.files.safetensors import Outgoing, write_tensors
from m2pt_cli.method import M2PTConfig
from m2pt_cli.method.card import CITATION, LICENCE, front_matter, shown_base, usage
from m2pt_cli.models.base_files import require_base_files, weight_files
from m2pt_cli.models.catalog import BaseEntry
from m2pt_cli.models.fingerprint import SAMPLES, base_fingerprint
from m2pt_cli.models.load import base_folder
from m2pt_cli.records import ImportResult


def official_card(result: ImportResult, *, base_models: Sequence[str], total: int, source: str, compared: int) -> str:
    """Return the model card: Markdown with the Hub's front matter.

    Args:
        base_models: Hub ids of the base, or of the parts it is assembled from.
        total: parameters of the base.
        source: name of the checkpoint that was imported.
        compared: number of frozen weights of the checkpoint that were found equal to the base's.
    """
    checked = (
        f"{compared:,} frozen weights in the checkpoint were compared with the base's."
        if compared
        else "The checkpoint held no frozen weights to compare with the base's."
    )
    percent = 100 * result.trainable / total
    lines = [
        *front_matter(base_models=base_models, tags=["llava"]),
        f"# M²PT adapter on {shown_base(result.base)}, imported",
        "",
        f"Imported with `m2pt import` from `{json.dumps(source)[1:-1]}`, a checkpoint of the authors' code "
        f"(Wang et al., M²PT, EMNLP 2024): {result.trainable:,} trained parameters, {percent:.3g} % of the base's "
        f"{total:,}. {checked}",
        "",
        *usage(result.base, is_m2pt=True),
        "## Parts",
        "",
        "| part | |",
        "|---|---|",
        f"| visual prompts per layer | {result.visual_prompts} |",
        f"| textual prompts per layer | {result.textual_prompts} |",
        "| interaction layer | the projector |",
        f"| lm_head | {'its own' if result.lm_head else 'of the base'} |",
        "",
        'The visual prompts and the class token reach the language model (`visual_tokens="official"`), as in the '
        "authors' code; conversations follow `vicuna_v1`, images are cropped.",
        "",
        *LICENCE,
        *CITATION,
    ]
    return "\n".join(lines)


Report = Callable[[str], None]

# The prefix of the base's modules in the names that PEFT saves.
_PREFIX = "base_model.model."
# Weights may have been converted through bf16 and fp16; two roundings of bf16 are within 2^-8.
_RELATIVE, _ABSOLUTE = 2**-7, 1e-6
_ROUNDINGS = (torch.float32, torch.bfloat16, torch.float16)


def import_official(place: Path, output_dir: Path, entry: BaseEntry, *, report: Report | None = None) -> ImportResult:
    """Write an official checkpoint as an adapter with ``visual_tokens="official"``.

    Checked in this order: the checkpoint's files, names and shapes; the base; that the checkpoint's frozen weights are
    the base's (64 values of each). An ``lm_head`` that equals the base's up to rounding is not written.

    Args:
        place: the path that `official.find_official` found.
        output_dir: a folder that is empty or does not exist; unchanged on failure.
        entry: the base it was trained on.
        report: called with lines about downloads, and about the weights that are written and omitted.

    Raises:
        AdapterError: the checkpoint is damaged, does not fit the base, or was trained on another one.
        UnavailableError: the base is not available.
        SettingsError: the output directory can't be used.
    """
    say = report or (lambda text: None)
    checkpoint = read_official(place, entry.geometry, entry.name)
    folder = base_folder(entry, report=report)
    require_base_files(folder)
    fingerprint = base_fingerprint(folder)
    base = _mapped(folder)
    compared = _require_same_base(checkpoint, base, entry.name)
    if compared:
        say(f"{compared:,} frozen weights of the checkpoint are those of {entry.name}; they are left out")
    else:
        say(f"the checkpoint holds no frozen weights: that it belongs to {entry.name} can't be checked")
    for kind, prompts in (("visual", checkpoint.visual), ("textual", checkpoint.textual)):
        if not prompts:
            say(f"the checkpoint has no {kind} prompts")
    head = checkpoint.lm_head
    if head is not None and _is_rounded(head, base["lm_head.weight"]):
        say("lm_head is the base's; it is left out")
        head = None
    elif head is not None:
        values, size = head.numel(), gigabytes(head.numel() * head.itemsize)
        say(f"lm_head differs from the base's and is kept: {values:,} values, {size}")
    name = entry.repo_id or entry.name
    config = M2PTConfig(
        num_visual_prompts=checkpoint.num_visual_prompts,
        num_textual_prompts=checkpoint.num_textual_prompts,
        interaction="projector",
        visual_tokens="official",
        train_lm_head=head is not None,
        chat_template="vicuna_v1",
        image_fit="crop",
        base_fingerprint=fingerprint,
        base_model_name_or_path=name,
        inference_mode=True,
    )
    outgoing = list(_outgoing(checkpoint, head))
    trainable = sum(torch.Size(tensor.shape).numel() for tensor in outgoing)
    with new_folder(output_dir) as partial:
        written = write_tensors(partial / WEIGHTS_FILE, outgoing)
        result = ImportResult(
            output_dir=str(output_dir),
            kind="adapter",
            base=name,
            visual_prompts=checkpoint.num_visual_prompts,
            textual_prompts=checkpoint.num_textual_prompts,
            lm_head=head is not None,
            trainable=trainable,
            bytes=written,
        )
        (partial / "README.md").write_text(
            official_card(
                result,
                base_models=entry.hub_ids,
                total=entry.geometry.total_parameters,
                source=place.name,
                compared=compared,
            ),
            encoding="utf-8",
        )
        config.save_pretrained(str(partial))
        assert (partial / CONFIG_FILE).is_file()
    return result


def _outgoing(checkpoint: OfficialCheckpoint, head: torch.Tensor | None) -> Iterator[Outgoing]:
    tensors = {
        f"model.vision_tower.encoder.layers.{i}.self_attn.m2pt_prompts": prompts
        for i, prompts in enumerate(checkpoint.visual)
    }
    for i, prompts in enumerate(checkpoint.textual):
        tensors[f"model.language_model.layers.{i}.self_attn.m2pt_prompts"] = prompts
    for name, tensor in checkpoint.projector.items():
        tensors[f"model.multi_modal_projector.{name}"] = tensor
    if head is not None:
        tensors["lm_head.weight"] = head
    for name, tensor in tensors.items():
        yield Outgoing(_PREFIX + name, tuple(tensor.shape), tensor.dtype, tensor.clone)


def _mapped(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a base by their current names, memory-mapped: only values that are used are read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        try:
            tensors |= {current_name(name): tensor for name, tensor in load_file(file).items()}
        except (OSError, SafetensorError) as error:
            raise UnavailableError(f"the weights {file} can't be read: {error}", "copy that file again") from None
    return tensors


def _require_same_base(checkpoint: OfficialCheckpoint, base: dict[str, torch.Tensor], name: str) -> int:
    """Compare evenly spaced values of every frozen weight and return the number of weights.

    Raises:
        AdapterError: some differ by more than rounding.
    """
    others = []
    for key, theirs in checkpoint.frozen.items():
        places = torch.linspace(0, theirs.numel() - 1, SAMPLES, dtype=torch.float64).long()
        mine = base[key].reshape(-1)[places].float()
        if not torch.allclose(theirs.reshape(-1)[places].float(), mine, rtol=_RELATIVE, atol=_ABSOLUTE):
            others.append(key)
    if others:
        raise AdapterError(
            f"{checkpoint.place} was trained on another base than {name}: {len(others)} of "
            f"{len(checkpoint.frozen)} frozen weights differ, the first {others[0]}",
            "name the base it was trained on with --base; m2pt import --help says how one is made of Vicuna and CLIP",
        )
    return len(checkpoint.frozen)


def _is_rounded(theirs: torch.Tensor, mine: torch.Tensor) -> bool:
    """Return whether a weight equals the base's, exactly or after rounding to another dtype."""
    step = 64  # rows at a time: an output head is too large to cast at once
    starts = range(0, len(mine), step)
    return any(
        all(torch.equal(theirs[i : i + step], mine[i : i + step].to(kind).to(theirs.dtype)) for i in starts)
        for kind in _ROUNDINGS
    )
