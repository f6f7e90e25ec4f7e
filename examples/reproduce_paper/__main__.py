"""Run the paper's argument on a base of choice: table 1, figures 1, 3 and 4, and a grid of prompt lengths.

    python examples/reproduce_paper --base nano --output-dir miniature

Learning rates are chosen first, then cells (method x prompt lengths x seed) are trained and evaluated in rounds by seed,
then the report is written. Stop it at any time; started again, it goes on with what is missing. Several processes may
share an output directory. Read ``examples/results/README.md`` for what a run on nano showed, and for the commands, disk,
memory and time that ``--base llava-v1-7b`` takes. The package must be installed (``python -m pip install -e .``).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cells import experiment, rate_variants
from rates import attempt_in, choose, scaled_rates
from running import UNTUNED, Setup, claimed, finish_cells, run_cell, run_untuned, write_json

from m2pt_cli.bases.catalog import entry_of


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
    setup.folder.mkdir(parents=True, exist_ok=True)
    until = None if arguments.hours is None else time.time() + 3600 * arguments.hours
    found = experiment(setup.base, entry_of(setup.base).geometry)
    rate_steps = arguments.rate_steps if arguments.rate_steps is not None else 150 if is_nano else 0

    rates = {}
    for name, variant in rate_variants(found).items():
        if rate_steps == 0:  # the base's own: on a 7B those of the paper and of LLaVA's release
            rates[name] = scaled_rates(setup.base, variant.method, 1.0)
            continue
        with claimed(setup.folder / "locks" / "rates", wait=True):
            choice = choose(variant, attempt_in(setup, rate_steps))
        rates[name] = choice["rates"]
        write_json(setup.folder / "rates" / f"{name}.json", choice)
        say(f"learning rates of {name}: x{choice['factor']:.3g} of the base's default, {choice['score']:.3f}")
    untuned = setup.folder / "cells" / f"{UNTUNED}.json"
    with claimed(setup.folder / "locks" / UNTUNED) as is_ours:
        if is_ours and not untuned.exists():
            write_json(untuned, run_untuned(setup))
    cells = found.cells(arguments.seeds, arguments.ablation_seeds, arguments.grid_seeds)
    done = finish_cells(
        cells, setup.folder, lambda cell: run_cell(setup, cell, rates[cell.variant.rates]), until=until, report=say
    )
    say(f"{done} of {len(cells)} cells are finished")


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
    found.add_argument("--rate-steps", type=int, help="steps of a try; 0 takes the base's rates (default beside nano)")
    found.add_argument("--device")
    found.add_argument("--threads", type=int)
    return found


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
