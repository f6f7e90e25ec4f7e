"""``m2pt eval``: evaluate adapters on benchmarks."""

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
        help="Benchmark (see --list), 'paper' for all benchmarks of the paper, or your own JSONL file; repeatable, or "
        "names joined with commas.",
        rich_help_panel=_QUESTIONS,
    ),
]
ListOption = Annotated[
    bool,
    typer.Option("--list", help="List the benchmarks and whether they are downloaded.", rich_help_panel=_QUESTIONS),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", help="Use only the first N questions of each benchmark.", rich_help_panel=_QUESTIONS
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="SRC",
        help="Folder or Hub id to read instead of the benchmark's own data set.",
        rich_help_panel=_QUESTIONS,
    ),
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        metavar="DIR",
        help="Folder of images for a data set that has only their names (COCO for vsr); repeatable.",
        rich_help_panel=_QUESTIONS,
    ),
]
WordingOption = Annotated[
    str | None,
    typer.Option(
        "--wording",
        metavar="NAME",
        help="Question text: m2pt-1 (the default), or stored: exactly the text of the data set.",
        rich_help_panel=_QUESTIONS,
    ),
]
OcrOption = Annotated[
    bool,
    typer.Option(
        "--ocr", help="For textvqa: add the data set's OCR tokens to the question.", rich_help_panel=_QUESTIONS
    ),
]
ShuffleOption = Annotated[
    bool,
    typer.Option(
        "--shuffle-images",
        help="Also ask every question about the image of another question: a baseline that can't use the image.",
        rich_help_panel=_QUESTIONS,
    ),
]
MaxNewTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help="Maximum tokens of an answer. Default: the benchmark's.",
        rich_help_panel=_QUESTIONS,
    ),
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        metavar="N",
        help="Tokens of a batch, with padding. Default: what fits in memory.",
        rich_help_panel=_QUESTIONS,
    ),
]
PredictionsOption = Annotated[
    Path | None,
    typer.Option(
        "--predictions",
        metavar="FILE",
        help="Score the answers of this file instead of running a model: predictions of m2pt, or a sample log of "
        "lmms-eval.",
        rich_help_panel=_SCORES,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="NAME",
        help="Scoring of mme and pope: official (the default) or lmms-eval.",
        rich_help_panel=_SCORES,
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="BASE",
        help="Language model that also judges free-form answers, as in the paper: a base, a folder or a Hub id.",
        rich_help_panel=_SCORES,
    ),
]
CompareOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--compare",
        metavar="DIR",
        help="Evaluation to compare; give it twice. Tests whether the two differ significantly (McNemar's test); runs "
        "no model.",
        rich_help_panel=_SCORES,
    ),
]
ShowFailuresOption = Annotated[
    int | None,
    typer.Option(
        "--show-failures",
        metavar="N",
        min=1,
        help="Print up to N failed or wrong answers of each run at the end.",
        rich_help_panel=_SCORES,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="HTML page to write, with scores and a gallery of questions, images and answers.",
        rich_help_panel=_SCORES,
    ),
]
PlotOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Figure of the scores to write (.png, .svg, .pdf): a radar chart if the file name contains 'radar', else "
        "bars by category; repeatable.",
        rich_help_panel=_SCORES,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace an evaluation with other settings in --output-dir.", rich_help_panel="Output"
    ),
]


HELP = "Score adapters, or the base alone, on benchmarks; answers are saved and a rerun continues where it stopped."
EPILOG = "\n\n".join(
    [
        "Examples:",
        "  m2pt eval --base nano --bench demo --limit 200",
        "  m2pt eval --adapter runs/demo --adapter none --bench demo --shuffle-images",
        "  m2pt eval --adapter runs/m2pt --bench mme",
        "  m2pt eval --adapter runs/a --adapter runs/b --bench demo --plot radar.png --plot bars.png",
        "  m2pt eval --compare evals/demo-demo --compare evals/nano-demo",
        "  m2pt eval --bench pope --predictions answers.jsonl --protocol lmms-eval",
        "A rerun with the same settings asks only the questions that have no answer yet.",
    ]
)
# Values of options that the user did not give; for these the value in the --config file is used.
_NOT_GIVEN: dict[str, Any] = {
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
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings; flags override it.")
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
    flags = {name: None if _NOT_GIVEN.get(name) == value else value for name, value in flags.items()}
    if not flags["adapter"] and predictions is None and os.environ.get("M2PT_ADAPTER"):
        flags["adapter"] = [os.environ["M2PT_ADAPTER"]]
    settings = EvalSettings.from_sources(config, flags)

    from m2pt_cli.analysis.score_figure import draw_scores, require_plot_place
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
    # When several processes share the evaluation, only the first one prints.
    if not (is_first := Sharding.from_environment().is_first):
        output = Output.configure(quiet=True)
    with EvalProgress(output) as progress, stop_on_sigterm():
        result = run_evaluation(settings, events=progress)
    if not is_first:
        return
    if html is not None:
        write_text(html, gallery_page(result))
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
