"""``m2pt eval``: score adapters on benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from m2pt_cli.cli import eval_options, options
from m2pt_cli.cli.output import Output
from m2pt_cli.errors import SettingsError
from m2pt_cli.settings import EvalSettings

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
# What an option is when it was not said; a file given to --config then keeps its own value.
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
    bench: eval_options.BenchOption = None,
    list_benchmarks: eval_options.ListOption = False,
    adapter: options.AdaptersOption = None,
    base: options.BaseOption = None,
    limit: eval_options.LimitOption = None,
    source: eval_options.SourceOption = None,
    images: eval_options.ImagesOption = None,
    allow_url: options.AllowUrlOption = False,
    wording: eval_options.WordingOption = None,
    ocr: eval_options.OcrOption = False,
    shuffle_images: eval_options.ShuffleOption = False,
    max_new_tokens: eval_options.MaxNewTokensOption = None,
    batch_tokens: eval_options.BatchTokensOption = None,
    predictions: eval_options.PredictionsOption = None,
    protocol: eval_options.ProtocolOption = None,
    judge: eval_options.JudgeOption = None,
    compare: eval_options.CompareOption = None,
    show_failures: eval_options.ShowFailuresOption = None,
    html: eval_options.HtmlOption = None,
    plot: eval_options.PlotOption = None,
    template: options.TemplateOption = None,
    image_fit: options.ImageFitOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML with these settings; flags go over it.")
    ] = None,
    output_dir: options.OutputDirOption = None,
    overwrite: eval_options.OverwriteOption = False,
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

    from m2pt_cli.analysis.report import draw_scores, require_plot_place
    from m2pt_cli.cli.eval_progress import EvalProgress
    from m2pt_cli.cli.eval_table import failures_table, result_tables
    from m2pt_cli.evaluation.files import write_text
    from m2pt_cli.evaluation.gallery import gallery_page, require_page_place
    from m2pt_cli.evaluation.run import run_evaluation
    from m2pt_cli.evaluation.share import Share
    from m2pt_cli.evaluation.stopping import stop_on_sigterm

    if html is not None:
        require_page_place(html)
    for file in plot or ():
        require_plot_place(file)
    # Of the processes of a shared run, the first one speaks.
    if not (is_first := Share.from_environment().is_first):
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
    from m2pt_cli.cli.eval_table import list_table
    from m2pt_cli.evaluation.benchmarks import list_benchmarks

    entries = list_benchmarks()
    if output.is_json:
        output.json(entries)
    else:
        output.table(list_table(entries))


def _show_comparison(output: Output, folders: list[Path]) -> None:
    from m2pt_cli.cli.eval_table import comparison_table
    from m2pt_cli.evaluation.compare import compare_folders

    if len(folders) != 2:
        raise SettingsError(f"--compare takes two folders, and {len(folders)} was given", "--compare DIR --compare DIR")
    comparisons = compare_folders(*folders)
    if output.is_json:
        output.json({"first": folders[0], "second": folders[1], "benchmarks": comparisons})
    else:
        output.table(comparison_table(folders, comparisons))
