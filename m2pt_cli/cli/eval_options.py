"""Options of ``m2pt eval`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_QUESTIONS = "Questions"
_SCORES = "Scores"

BenchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bench",
        metavar="NAME",
        help="A benchmark (see --list), 'paper' for all of the paper's, or a JSONL file of your own. Repeat it, or "
        "join names with commas.",
        rich_help_panel=_QUESTIONS,
    ),
]
ListOption = Annotated[
    bool,
    typer.Option("--list", help="Show the benchmarks, and which are in the local cache.", rich_help_panel=_QUESTIONS),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="The first N questions of each benchmark.", rich_help_panel=_QUESTIONS),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="SRC",
        help="A folder or a Hub id in place of the benchmark's own data set.",
        rich_help_panel=_QUESTIONS,
    ),
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Where images are that a data set only names (COCO, for vsr). Repeat it for several.",
        rich_help_panel=_QUESTIONS,
    ),
]
WordingOption = Annotated[
    str | None,
    typer.Option(
        "--wording",
        metavar="NAME",
        help="m2pt-1 (the default), or stored: exactly what the data set holds.",
        rich_help_panel=_QUESTIONS,
    ),
]
OcrOption = Annotated[
    bool, typer.Option("--ocr", help="textvqa: add the data set's OCR tokens.", rich_help_panel=_QUESTIONS)
]
ShuffleOption = Annotated[
    bool,
    typer.Option(
        "--shuffle-images",
        help="Ask every question about another question's image as well: the blind score, beside the real one.",
        rich_help_panel=_QUESTIONS,
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", metavar="N", help="Longest answer. Default: the benchmark's.", rich_help_panel=_QUESTIONS
    ),
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens", metavar="N", help="Tokens in a batch. Default: what fits.", rich_help_panel=_QUESTIONS
    ),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Score these answers and ask nothing: predictions of m2pt, or a sample log of lmms-eval.",
        rich_help_panel=_SCORES,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="mme and pope: official (the default) or lmms-eval.",
        rich_help_panel=_SCORES,
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="BASE",
        help="Have a language model judge free answers as well, as the paper did: a base, a folder or a Hub id.",
        rich_help_panel=_SCORES,
    ),
]
CompareOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--compare",
        metavar="DIR",
        help="Give it twice: do these two evaluations differ by more than chance (McNemar's test)? Nothing is asked.",
        rich_help_panel=_SCORES,
    ),
]
ShowFailuresOption = Annotated[
    int | None,
    typer.Option(
        "--show-failures",
        metavar="N",
        min=1,
        help="Show N failed or wrong answers at the end.",
        rich_help_panel=_SCORES,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page with the scores and a gallery of questions, images and answers.",
        rich_help_panel=_SCORES,
    ),
]
PlotOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw the scores as .png, .svg or .pdf: a polygon per adapter where the file's name holds 'radar', else "
        "bars by category. Repeatable.",
        rich_help_panel=_SCORES,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace another evaluation in --output-dir.", rich_help_panel="Output")
]
