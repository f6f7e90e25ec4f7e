"""``m2pt eval``: its options and the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from m2pt_cli.cli import options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import EvalSettings

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
    typer.Option(
        "--limit",
        metavar="N",
        help="The first N questions of each benchmark; a larger N goes on with their answers.",
        rich_help_panel=_QUESTIONS,
    ),
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
        help="Write a page with the scores, their figures, and a gallery of questions, images and answers.",
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


HELP = "Score adapters, or the bare base, on benchmarks; every answer is kept, and a rerun goes on where it stopped."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt eval --base nano --bench demo --limit 200",
        "  m2pt eval --adapter runs/demo --adapter none --bench demo --shuffle-images",
        "  m2pt eval --adapter runs/m2pt --bench mme",
        "  m2pt eval --adapter runs/a --adapter runs/b --bench demo --plot radar.png --plot bars.png",
        "  m2pt eval --compare evals/demo-demo --compare evals/nano-demo",
        "  m2pt eval --bench pope --predictions answers.jsonl --protocol lmms-eval",
        "Started again with the same settings, it asks only what is not answered yet.",
    ]
)
# Values of options that were not given; a --config file then keeps its own value.
_UNSAID: dict[str, Any] = {
    "shuffle_images": False,
    "allow_url": False,
    "ocr": False,
    "overwrite": False,
    "dtype": "auto",
    "seed": 0,
}
_NOT_SETTINGS = ("list_benchmarks", "compare", "show_failures", "html", "plot", "config", "json", "quiet", "verbose")


def command(
    bench: BenchOption = None,
    list_benchmarks: ListOption = False,
    adapter: options.AdaptersOption = None,
    base: options.BaseOption = None,
    limit: LimitOption = None,
    source: SourceOption = None,
    images: ImagesOption = None,
    allow_url: options.AllowUrlOption = False,
    wording: WordingOption = None,
    ocr: OcrOption = False,
    shuffle_images: ShuffleOption = False,
    max_new_tokens: MaxNewTokensOption = None,
    batch_tokens: BatchTokensOption = None,
    predictions: PredictionsOption = None,
    protocol: ProtocolOption = None,
    judge: JudgeOption = None,
    compare: CompareOption = None,
    show_failures: ShowFailuresOption = None,
    html: HtmlOption = None,
    plot: PlotOption = None,
    template: options.TemplateOption = None,
    image_fit: options.ImageFitOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML with these settings; flags go over it.")
    ] = None,
    output_dir: options.OutputDirOption = None,
    overwrite: OverwriteOption = False,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    threads: options.ThreadsOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    flags = {name: value for name, value in locals().items() if name not in _NOT_SETTINGS}
    output = Output.configure(json=json, quiet=quiet, verbose=verbose)
    if list_benchmarks:
        _show_benchmarks(output)
        return
    if compare:
        _show_comparison(output, compare)
        return
    flags = {name: None if _UNSAID.get(name) == value else value for name, value in flags.items()}
    if not flags["adapter"] and predictions is None and os.environ.get("M2PT_ADAPTER"):
        flags["adapter"] = [os.environ["M2PT_ADAPTER"]]
    settings = EvalSettings.from_sources(config, flags)

    from m2pt_cli.analysis.score_figure import draw_scores, require_plot_place, score_images
    from m2pt_cli.cli.eval_view import EvalProgress, failures_table, result_tables
    from m2pt_cli.evaluation.html_report import gallery_page, require_page_place
    from m2pt_cli.evaluation.run import run_evaluation
    from m2pt_cli.files.io import write_text
    from m2pt_cli.runtime.distributed import Sharding
    from m2pt_cli.runtime.signals import stop_on_sigterm

    if html is not None:
        require_page_place(html)
    for file in plot or ():
        require_plot_place(file)
    # In a distributed run only the first process prints.
    if not (is_first := Sharding.from_environment().is_first):
        output = Output.configure(quiet=True)
    with EvalProgress(output) as progress, stop_on_sigterm():
        result = run_evaluation(settings, events=progress)
    if not is_first:
        return
    if html is not None:
        plots = score_images({run.name: run.benchmarks for run in result.runs})
        write_text(html, gallery_page(result, plots))
        output.status(f"gallery written to {html}")
    for file in plot or ():
        if (note := draw_scores({run.name: run.benchmarks for run in result.runs}, file)) is not None:
            output.warn(note)
        output.status(f"figure written to {file}")
    if output.is_json:
        output.json(result.to_dict())
        return
    for table in result_tables(result):
        output.table(table)
    if show_failures:
        output.table(failures_table(result, show_failures))


def _show_benchmarks(output: Output) -> None:
    from m2pt_cli.cli.eval_view import list_table
    from m2pt_cli.evaluation.tasks import list_benchmarks

    entries = list_benchmarks()
    if output.is_json:
        output.json(entries)
    else:
        output.table(list_table(entries))


def _show_comparison(output: Output, folders: list[Path]) -> None:
    from m2pt_cli.cli.eval_view import comparison_table
    from m2pt_cli.evaluation.results import compare_folders

    if len(folders) != 2:
        raise SettingsError(f"--compare takes two folders, and {len(folders)} was given", "--compare DIR --compare DIR")
    comparisons = compare_folders(*folders)
    if output.is_json:
        output.json({"first": folders[0], "second": folders[1], "benchmarks": comparisons})
    else:
        output.table(comparison_table(folders, comparisons))
