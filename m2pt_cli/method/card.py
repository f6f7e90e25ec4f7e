"""The common sections of all model cards: the Hub's front matter, how to load an adapter, and the citation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from m2pt_cli.files.hub import HUB_ID

_QUESTION = '"What is in this image?"'
# Aliases that m2pt resolves on any machine, of bases without a Hub repository.
_KNOWN = ("nano", "llava-v1-7b")
# The placeholder in PEFT's model card template.
_UNWRITTEN = "[More Information Needed]"

CITATION = (
    "## Citation",
    "",
    "The method is M²PT, [arXiv:2409.15657](https://arxiv.org/abs/2409.15657):",
    "",
    "```bibtex",
    "@inproceedings{wang2024m2pt,",
    "  title     = {{M$^2$PT}: Multimodal Prompt Tuning for Zero-shot Instruction Learning},",
    "  author    = {Wang and others},",
    "  booktitle = {EMNLP},",
    "  year      = {2024},",
    "  note      = {arXiv:2409.15657}",
    "}",
    "```",
    "",
)
LICENCE = (
    "## Licence",
    "",
    "Not chosen yet: add `license:` to the first lines of this file before you publish it. The licences of the base "
    "and of the training data apply to what was trained on them.",
    "",
)


def front_matter(
    *, base_models: Sequence[str], tags: Sequence[str], library: str = "peft", datasets: Sequence[str] = ()
) -> list[str]:
    """Return the YAML front matter that the Hub reads, as lines.

    Args:
        base_models: Hub ids of the base, or of the parts it is assembled from; empty if it is not on the Hub.
        tags: tags in addition to ``m2pt``.
        datasets: Hub ids of the training data.
    """
    lines = ["---"]
    if base_models:
        lines.append(f"base_model: {json.dumps(base_models[0] if len(base_models) == 1 else list(base_models))}")
    if datasets:
        lines.append(f"datasets: {json.dumps(list(datasets))}")
    lines.append(f"library_name: {library}")
    lines.append("pipeline_tag: image-text-to-text")
    lines.append(f"tags: [{', '.join(dict.fromkeys(['m2pt', *tags]))}]")
    return [*lines, "---", ""]


def shown_base(name: str) -> str:
    """Return the name of a base for the card: for a folder only its name, without the path on this machine."""
    return name if name in _KNOWN or _is_on_hub(name) else Path(name).name


def usage(base: str, *, is_m2pt: bool) -> list[str]:
    """Return the section on loading an adapter in three ways: the command line, Python, and PEFT alone.

    Args:
        base: an alias, a Hub id, or a folder.
        is_m2pt: whether it is M²PT, which must be registered with PEFT; else LoRA.
    """
    if _is_on_hub(base):
        first = ["from transformers import AutoModelForImageTextToText"]
        model = f"base = AutoModelForImageTextToText.from_pretrained({json.dumps(base)})"
    else:  # the embedded base, one that m2pt assembles, or a folder
        first = ["from m2pt_cli import load"]
        model = f"base, processor = load(base={json.dumps(shown_base(base))})"
    register = ["import m2pt_cli.method  # registers M2PT with PEFT: needed before from_pretrained"] if is_m2pt else []
    explained = []
    if base not in _KNOWN and not _is_on_hub(base):
        explained = [f"`{shown_base(base)}` stands for the folder of the base, which is on no Hub."]
    return [
        "## Use",
        "",
        "`.` is this folder; give its path, or its id on the Hub.",
        *explained,
        "",
        "```bash",
        f"m2pt infer image.jpg {_QUESTION} --adapter .",
        "```",
        "",
        "In Python:",
        "",
        "```python",
        "from m2pt_cli import answer, load",
        "",
        f'model, processor = load(base={json.dumps(shown_base(base))}, adapter=".")',
        f'print(answer(model, "image.jpg", {_QUESTION}))',
        "```",
        "",
        "With PEFT alone:",
        "",
        "```python",
        *register,
        *first,
        "from peft import PeftModel",
        "",
        model,
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
        "",
    ]


def method_card(config: Mapping[str, object]) -> str:
    """Return the card that ``save_pretrained`` of an M²PT adapter writes, from the fields of its config alone."""
    base = str(config.get("base_model_name_or_path") or "")
    lines = front_matter(base_models=[base] if _is_on_hub(base) else [], tags=[])
    lines += [
        f"# M²PT adapter{f' on {shown_base(base)}' if base else ''}",
        "",
        f"Multimodal prompt tuning of a frozen vision-language model: {config['num_visual_prompts']} visual prompts in "
        f"each layer of the vision tower, {config['num_textual_prompts']} textual prompts in each layer of the "
        f"language model, interaction layer `{config['interaction']}`.",
        "",
        *(usage(base, is_m2pt=True) if base else []),
        *LICENCE,
        *CITATION,
    ]
    return "\n".join(lines)


def is_unwritten(card: Path) -> bool:
    """Return whether a card is PEFT's template with nothing filled in."""
    try:
        return _UNWRITTEN in card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _is_on_hub(base: str) -> bool:
    return bool(HUB_ID.fullmatch(base)) and not Path(base).exists()
