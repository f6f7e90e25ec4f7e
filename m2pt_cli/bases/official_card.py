"""The model card (``README.md``) of an imported checkpoint."""

from __future__ import annotations

import json

from m2pt_cli.records import ImportResult


def official_card(result: ImportResult, *, total: int, source: str, compared: int) -> str:
    """Markdown with the Hub's front matter.

    Args:
        total: parameters of the base.
        source: name of the checkpoint that was imported.
        compared: frozen weights of the checkpoint that were found to be the base's.
    """
    question = '"What is in this image?"'
    checked = (
        f"{compared:,} frozen weights in the checkpoint were compared with the base's."
        if compared
        else "The checkpoint held no frozen weights to compare with the base's."
    )
    percent = 100 * result.trainable / total
    lines = [
        "---",
        f"base_model: {json.dumps(result.base)}",
        "library_name: peft",
        "pipeline_tag: image-text-to-text",
        "tags: [m2pt, llava]",
        "---",
        "",
        f"# M²PT adapter on {result.base}, imported",
        "",
        f"Imported with `m2pt import` from `{json.dumps(source)[1:-1]}`, a checkpoint of the authors' code "
        f"(Wang et al., M²PT, EMNLP 2024): {result.trainable:,} trained parameters, {percent:.3g} % of the base's "
        f"{total:,}. {checked}",
        "",
        "## Use",
        "",
        "```bash",
        f"m2pt infer image.jpg {question} --adapter .",
        "```",
        "",
        "In Python:",
        "",
        "```python",
        "from m2pt_cli import answer, load",
        "",
        f'model, processor = load(base={json.dumps(result.base)}, adapter=".")',
        f'print(answer(model, ["image.jpg"], [{question}]))',
        "```",
        "",
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
    ]
    return "\n".join(lines)
