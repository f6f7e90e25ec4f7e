"""``m2pt infer``: one question, several images, or JSONL in and JSONL out."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import InferSettings

HELP = "Ask an adapter, or the bare base, about images."
EPILOG = "\n\n".join(
    [
        "Examples:",
        '  m2pt infer examples/images/shapes.png "What color is the circle?" --base nano',
        '  m2pt infer examples/images/*.png -q "Describe the image." --adapter runs/demo',
        "  m2pt infer --input examples/questions.jsonl --adapter runs/demo --adapter none",
        '  cat photo.jpg | m2pt infer - "Is there a chair?"',
        'An input line is {"image", "question", "id"}; a line of output adds "adapter", "answer" and "error".',
    ]
)

_ANSWERS = "Answers"


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE QUESTION", help="An image (- is stdin) and a question; with -q images alone."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", "-q", metavar="TEXT", help="One question for all the images.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE", help="Questions as JSONL (- is stdin), answered as JSONL."),
    ] = None,
    adapter: options.AdaptersOption = None,
    base: options.BaseOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer.", rich_help_panel=_ANSWERS)
    ] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Sample; 0 is greedy.", rich_help_panel=_ANSWERS)
    ] = 0.0,
    num_beams: Annotated[
        int, typer.Option("--num-beams", metavar="N", help="Search with N beams.", rich_help_panel=_ANSWERS)
    ] = 1,
    allow_url: options.AllowUrlOption = False,
    template: options.TemplateOption = None,
    image_fit: options.ImageFitOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> int:
    output = Output.configure(json=json, quiet=quiet, verbose=verbose)
    settings = InferSettings(
        base=base,
        adapter=tuple(adapter or [os.environ["M2PT_ADAPTER"]] if adapter or os.environ.get("M2PT_ADAPTER") else ()),
        template=template,
        image_fit=image_fit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        num_beams=num_beams,
        allow_url=allow_url,
        device=device,
        dtype=dtype,
        seed=seed,
        threads=threads,
    )
    from m2pt_cli.cli.infer_lines import answer_images, answer_lines

    if input is not None:
        if words or question is not None:
            raise SettingsError("--input brings the images and the questions", "leave out IMAGE, QUESTION and -q")
        return answer_lines(input, settings, output)
    images, asked = _images_and_question(words or [], question)
    return answer_images(images, asked, settings, output)


def _images_and_question(words: list[str], question: str | None) -> tuple[list[str], str]:
    """Which words are images and what is asked."""
    if question is None and len(words) == 2:
        question, words = words[1], words[:1]
    if not words:
        raise SettingsError("no image to ask about", 'm2pt infer image.jpg "Is there a chair?"')
    if question is None:
        said = "an image without a question" if len(words) == 1 else f"{len(words)} words where IMAGE QUESTION is meant"
        raise SettingsError(said, 'm2pt infer image.jpg "Is there a chair?", or several images with -q "..."')
    if not question.strip():
        raise SettingsError("the question is empty", 'm2pt infer image.jpg "Is there a chair?"')
    if words.count("-") > 1:
        raise SettingsError("- names stdin, which holds one image", "give - once")
    return words, question
