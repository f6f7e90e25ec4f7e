"""Reproduce the paper's results on a base: table 1, figures 1, 3 and 4, and a grid of prompt lengths.

    python examples/reproduce_paper --base nano --output-dir miniature

First learning rates are chosen, then cells (method x prompt lengths x seed) are trained and evaluated in rounds by
seed, then the report is written. It may be stopped at any time; a restart continues with what is missing. Several
processes may share an output directory; a copy of a folder of ``examples/results`` continues where that run ended.

``examples/results/README.md`` has the results of a run on nano, and the commands, disk, memory and time that ``--base
llava-v1-7b`` needs. The package must be installed (``python -m pip install -e .``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention import draw_attention_of_the_whole
from cells import Experiment, Variant, experiment, rate_variants
from rates import attempt_in, choose, scaled_rates
from report import RATES, write_report
from resources import estimates
from running import UNTUNED, Setup, claimed, finish_cells, read_json, run_cell, run_untuned, write_json
from summary import read_results, unpack_cells

from m2pt_cli.errors import M2PTError
from m2pt_cli.models.catalog import entry_of

NANO_RATE_STEPS = 150


def main() -> None:
    arguments = parser().parse_args()
    is_nano = arguments.base == "nano"
    setup = Setup(
        folder=arguments.output_dir,
        base=arguments.base,
        data=arguments.data or ("demo" if is_nano else "vision-flan"),
        bench=(arguments.bench or ("demo" if is_nano else "paper"),),
        images=tuple(arguments.images),
        limit=arguments.limit,
        questions=arguments.questions,
        max_steps=arguments.max_steps,
        device=arguments.device,
        threads=arguments.threads,
    )
    entry = entry_of(setup.base)
    found = experiment(setup.base, entry.geometry)
    if arguments.estimate:
        print("\n".join(estimates(entry, found)))
        return
    setup.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.report_only:
        run_everything(setup, found, arguments)
    try:
        draw_attention_of_the_whole(setup, found)
    except M2PTError as error:  # the adapter or the base is not available; the tables need neither
        say(f"no attention maps: {error}")
    command = f"python examples/reproduce_paper {' '.join(said_options(sys.argv[1:]))}"
    print(write_report(read_results(setup.folder), found, setup.folder, base=setup.base, command=command))


def run_everything(setup: Setup, found: Experiment, arguments: argparse.Namespace) -> None:
    """Run the choice of learning rates, the untuned base, and all cells that the time limit allows."""
    until = None if arguments.hours is None else time.time() + 3600 * arguments.hours
    unpack_cells(setup.folder)
    variants = rate_variants(found)
    chosen = setup.folder / RATES
    if arguments.rates is not None:
        write_json(chosen, read_json(arguments.rates))
    elif chosen.exists():
        say(f"learning rates as in {chosen}")
    elif arguments.rate_steps or (arguments.rate_steps is None and setup.base == "nano"):
        write_json(chosen, choose_rates(setup, variants, arguments.rate_steps or NANO_RATE_STEPS))
    if chosen.exists():
        rates = {name: choice["rates"] for name, choice in read_json(chosen).items()}
    else:  # the base's defaults: on a 7B those of the paper and of LLaVA's release
        rates = {name: scaled_rates(setup.base, variant.method, 1.0) for name, variant in variants.items()}
    untuned = setup.folder / "cells" / f"{UNTUNED}.json"
    with claimed(setup.folder / "locks" / UNTUNED) as is_ours:
        if is_ours and not untuned.exists():
            write_json(untuned, run_untuned(setup))
    cells = found.cells(arguments.seeds, arguments.ablation_seeds, arguments.grid_seeds)
    cells = [cell for cell in cells if not arguments.only or cell.variant.name in arguments.only]
    done = finish_cells(
        cells, setup.folder, lambda cell: run_cell(setup, cell, rates[cell.variant.rates]), until=until, report=say
    )
    say(f"{done} of {len(cells)} cells are finished")


def choose_rates(setup: Setup, variants: dict[str, Variant], steps: int) -> dict[str, Any]:
    """Choose the learning rates of every method, each in one process; at the end wait for those of other processes."""
    for wait in (False, True):
        for name, variant in variants.items():
            file = setup.folder / "rates" / f"{name}.json"
            with claimed(setup.folder / "locks" / f"rates-{name}", wait=wait) as is_ours:
                if not is_ours or file.exists():
                    continue
                choice = choose(variant, attempt_in(setup, steps))
                write_json(file, choice)
            say(f"learning rates of {name}: x{choice['factor']:.3g} of the base's default, {choice['score']:.3f}")
    return {name: read_json(setup.folder / "rates" / f"{name}.json") for name in variants}


def said_options(options: Sequence[str]) -> list[str]:
    """Return the command's options for the report, without folders of this machine."""
    return [Path(option).name if "/" in option else option for option in options if option != "--report-only"]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--base", default="nano", help="an alias of the catalogue, a Hub id or a folder")
    found.add_argument("--output-dir", type=Path, required=True)
    found.add_argument("--seeds", type=int, default=5, help="per row of table 1")
    found.add_argument("--ablation-seeds", type=int, default=2)
    found.add_argument("--grid-seeds", type=int, default=2)
    found.add_argument("--hours", type=float, help="begin no cell that would end after so many hours")
    found.add_argument("--data", help="demo on nano, else vision-flan")
    found.add_argument("--bench", help="demo on nano, else paper: MME and the seven benchmarks of MMAvg")
    found.add_argument("--images", type=Path, action="append", default=[], help="image folders of benchmarks")
    found.add_argument("--limit", type=int, help="training samples")
    found.add_argument("--questions", type=int, help="questions per benchmark")
    found.add_argument("--max-steps", type=int, help="steps of a training; the base's default")
    found.add_argument("--rate-steps", type=int, help="steps of a try; 0 takes the base's own rates")
    found.add_argument("--only", action="append", default=[], metavar="NAME", help="this row alone, such as m2pt-10-10")
    found.add_argument("--rates", type=Path, help="reuse a choice of learning rates: the rates.json of another run")
    found.add_argument("--report-only", action="store_true", help="write the report of what is finished")
    found.add_argument("--estimate", action="store_true", help="print disk, memory and time on this base, and leave")
    found.add_argument("--device")
    found.add_argument("--threads", type=int)
    return found


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def guarded() -> int:
    """Run `main`; expected errors become one line and an exit code of ``m2pt``."""
    try:
        main()
    except M2PTError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted\nhint: the same command again goes on with what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(guarded())
