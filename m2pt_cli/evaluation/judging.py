"""Runs judged: every answer put to the judge, its verdicts kept like answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from m2pt_cli.evaluation.benchmark import Benchmark, Request
from m2pt_cli.evaluation.events import Events, Notice
from m2pt_cli.evaluation.judge import Verdicts, judged_accuracies
from m2pt_cli.evaluation.mmavg import mmavg
from m2pt_cli.evaluation.plan import RunPlan
from m2pt_cli.evaluation.results import EvalRun
from m2pt_cli.evaluation.rows import Row
from m2pt_cli.evaluation.session import Session, require_answers
from m2pt_cli.evaluation.share import Share
from m2pt_cli.evaluation.text_engine import open_judge
from m2pt_cli.settings import EvalSettings


def judge_runs(
    plans: Sequence[RunPlan],
    done: Sequence[tuple[EvalRun, dict[str, list[Row]]]],
    benchmarks: Sequence[Benchmark],
    settings: EvalSettings,
    *,
    share: Share,
    events: Events,
) -> list[tuple[EvalRun, dict[str, list[Row]]]]:
    """The runs with the judge's scores in their blocks; MME keeps its own rule, as in the paper.

    Raises:
        UnavailableError, DeviceError: the judge can't be had.
        GenerationError: the judge answered nothing.
    """
    judge = str(settings.judge)
    engine = open_judge(judge, device=settings.device, dtype=settings.dtype, report=lambda text: events(Notice(text)))
    judged = []
    for plan, (run, rows) in zip(plans, done, strict=True):
        fingerprint = run.adapter and run.adapter["fingerprint"]
        identity = {"base": run.base, "adapter": fingerprint, **run.settings, "judge": judge}
        session = Session(engine, plan.folder, name=plan.name, identity=identity, share=share, events=events)
        blocks = dict(run.benchmarks)
        for bench in benchmarks:
            # Every process needs all answers: the first one has written them.
            answers = list(plan.folder.finished_rows(bench.name).values())
            if bench.name == "mme" or not answers:
                continue
            verdicts = Verdicts(bench.name, answers)
            found = session.rows(
                verdicts, verdicts.items(Request()), label=verdicts.name, max_new_tokens=verdicts.max_new_tokens
            )
            if share.is_first:
                require_answers({verdicts.name: found}, plan.folder)
            block = verdicts.scores(found, settings.protocol)
            blocks[bench.name] = {**blocks[bench.name], "judge": {"name": judge, **block}}
            agreement = "none" if block["agreement"] is None else f"{100 * block['agreement']:.1f} %"
            events(Notice(f"{bench.name}: the judge and the rule agree on {agreement} of the answers"))
        run = dataclasses.replace(run, benchmarks=blocks, mmavg=mmavg(judged_accuracies(blocks)), scored_by="judge")
        share.wait()
        if share.is_first:
            plan.folder.write_results(run.to_dict())
        judged.append((run, rows))
    return judged
