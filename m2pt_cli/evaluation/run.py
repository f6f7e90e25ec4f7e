"""``m2pt eval``: from settings to results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.evaluation.blind_baseline import shuffle_images
from m2pt_cli.evaluation.events import Events, Notice, ignore
from m2pt_cli.evaluation.images import missing_images
from m2pt_cli.evaluation.judge import is_vision_language
from m2pt_cli.evaluation.metrics import mmavg
from m2pt_cli.evaluation.plan import RunPlan, plan_runs
from m2pt_cli.evaluation.predictions import rescore
from m2pt_cli.evaluation.repeats import check_repeats
from m2pt_cli.evaluation.results import EvalResult, EvalRun, score_task
from m2pt_cli.evaluation.run_dir import RESULTS
from m2pt_cli.evaluation.task import Example, Prediction, Task, TaskOptions
from m2pt_cli.evaluation.tasks import find_tasks
from m2pt_cli.files.io import write_json
from m2pt_cli.runtime.distributed import Sharding
from m2pt_cli.settings import EvalSettings
from m2pt_cli.version import library_versions

if TYPE_CHECKING:
    from m2pt_cli.evaluation.runner import Session
    from m2pt_cli.models.load import LoadedBase


def run_evaluation(settings: EvalSettings, *, events: Events = ignore) -> EvalResult:
    """Answer and score benchmarks with a base and its adapters, resuming what an earlier start left.

    Args:
        settings: benchmarks, adapters (``none`` is the bare base), and how they are asked.
        events: called with notices and with every answer.

    Returns:
        The scores of every run; the same content is in ``results.json``.

    Raises:
        SettingsError: an unknown benchmark, or an output directory that holds something else.
        InputError: a data file that can't be read, or all images missing.
        AdapterError: an adapter that is missing, damaged or of another base.
        UnavailableError: a base, a data set or a judge is unavailable.
        GenerationError: every question of every benchmark failed.
    """
    share = Sharding.from_environment()
    try:
        return _evaluate(settings, share, events)
    finally:
        share.leave()


def _evaluate(settings: EvalSettings, share: Sharding, events: Events) -> EvalResult:
    benchmarks = find_tasks(settings.bench)
    _check_options(settings, benchmarks)
    if settings.predictions is not None:
        return rescore(settings, benchmarks[0], events=events)
    if settings.judge is not None:
        is_vision_language(settings.judge)  # an unavailable judge fails here, not after hours of answers
    plans = plan_runs(settings, benchmarks, share)
    folder = plans[0].folder.path.parent if len(plans) > 1 else plans[0].folder.path
    events(Notice(f"writing to {folder}"))
    request = TaskOptions(
        limit=settings.limit,
        wording=settings.wording,
        source=settings.source,
        images=settings.images,
        allow_url=settings.allow_url,
        ocr=settings.ocr,
        report=lambda text: events(Notice(text)),
    )
    items = {bench.name: bench.items(request) for bench in benchmarks}
    empty = next((name for name, members in items.items() if not members), None)
    if empty is not None:
        raise InputError(f"the data of {empty} holds no questions", "check --source")
    for bench in benchmarks:
        rows = {f"row {number}": Prediction.of(item, None) for number, item in enumerate(items[bench.name], start=1)}
        repeated = check_repeats(bench, rows, source=f"the data of {bench.name}", is_data=True)
        if repeated is not None:
            events(Notice(repeated, is_warning=True))
    if all(plan.folder.run() is None for plan in plans):  # a run that goes on may have the answers already
        for text in missing_images(items):
            events(Notice(text, is_warning=True))
    blind = {
        name: shuffle_images(members, seed=settings.seed) for name, members in items.items() if settings.shuffle_images
    }
    # The first import of torch: everything that can be wrong without a model has been checked.
    from m2pt_cli.models.load import load_base, set_seed, set_threads

    set_threads(settings.threads, parameters=plans[0].entry.geometry.total_parameters)
    set_seed(settings.seed)
    started = time.monotonic()
    loaded = load_base(
        plans[0].base, device=settings.device, dtype=settings.dtype, report=lambda text: events(Notice(text))
    )
    events(Notice(f"{loaded.description()}, loaded in {time.monotonic() - started:.1f} s", is_detail=True))
    try:
        done = [_run(plan, settings, loaded, benchmarks, items, blind, share, events) for plan in plans]
        if settings.judge is not None:
            # Two large models need not share the memory.
            del loaded
            from m2pt_cli.evaluation.judge_run import judge_runs

            done = judge_runs(plans, done, benchmarks, settings, share=share, events=events)
    finally:
        for plan in plans:
            plan.folder.release()
    result = EvalResult(
        runs=tuple(run for run, _ in done),
        output_dir=folder,
        rows={plan.name: rows for plan, (_, rows) in zip(plans, done, strict=True)},
        images={
            name: {item.id: item.image for item in members if item.image is not None} for name, members in items.items()
        },
    )
    if len(plans) > 1 and share.is_first:
        write_json(folder / RESULTS, result.to_dict())
    share.wait()
    return result


def _check_options(settings: EvalSettings, benchmarks: Sequence[Task]) -> None:
    without = [bench.name for bench in benchmarks if not bench.has_protocols]
    if settings.protocol != "official" and without:
        raise SettingsError(
            f"--protocol {settings.protocol} means nothing to --bench {without[0]}",
            "leave it out: mme and pope alone have several protocols",
        )
    if settings.predictions is not None and len(benchmarks) > 1:
        raise SettingsError("--predictions scores one benchmark", "give --bench once")
    if settings.source is not None and len(benchmarks) > 1:
        raise SettingsError("--source is the place of one benchmark's data", "give --bench once")
    if settings.source is not None and not benchmarks[0].patterns:
        raise SettingsError(f"--source means nothing to --bench {benchmarks[0].name}", "leave it out")
    if settings.ocr and all(bench.name != "textvqa" for bench in benchmarks):
        raise SettingsError("--ocr means something to --bench textvqa alone", "leave it out")


def _run(
    plan: RunPlan,
    settings: EvalSettings,
    loaded: LoadedBase,
    benchmarks: Sequence[Task],
    items: Mapping[str, list[Example]],
    blind: Mapping[str, list[Example]],
    share: Sharding,
    events: Events,
) -> tuple[EvalRun, dict[str, list[Prediction]]]:
    from m2pt_cli.evaluation.runner import Session, require_answers
    from m2pt_cli.generation.candidates import build_engine
    from m2pt_cli.generation.engine import Decoding
    from m2pt_cli.models.adapters import detach_adapter

    found = plan.folder.results()
    dtype = str(loaded.dtype).removeprefix("torch.")
    identity = {**plan.known_identity(settings), "base_fingerprint": loaded.fingerprint, "dtype": dtype}
    if share.is_first:
        plan.folder.claim(identity, overwrite=False)
        plan.folder.create()
        plan.folder.hold()
    share.wait()
    chosen = plan.prompt_format(settings)
    for text in chosen.warnings:
        events(Notice(text, is_warning=True))
    how = f"template {chosen.template}, image fit {chosen.image_fit}, seed {settings.seed}"
    events(Notice(f"{plan.name}: {how}", is_detail=True))
    engine = build_engine(
        loaded,
        plan.adapter,
        template=settings.template,
        image_fit=settings.image_fit,
        decoding=Decoding(seed=settings.seed),
        batch_tokens=settings.batch_tokens,
        report=lambda text: events(Notice(text, is_warning=True)),
    )
    try:
        session = Session(engine, plan.folder, name=plan.name, identity=identity, share=share, events=events)
        blocks: dict[str, Any] = dict(found["benchmarks"]) if found is not None else {}
        if found is not None and found["settings"].get("limit") != settings.limit:
            # The blind and judged scores in there are those of fewer questions.
            dropped = [name for name in ("shuffled", "judge") if any(block.get(name) for block in blocks.values())]
            if dropped and not settings.shuffle_images and settings.judge is None:
                flags = " and ".join({"shuffled": "--shuffle-images", "judge": "--judge"}[name] for name in dropped)
                events(Notice(f"the scores by {flags} were those of fewer questions and are left out", is_warning=True))
            blocks = {}
        rows: dict[str, list[Prediction]] = {}
        for bench in benchmarks:
            earlier, before = blocks.get(bench.name, {}), session.seconds
            rows[bench.name], blocks[bench.name] = _bench(
                session, bench, items[bench.name], blind.get(bench.name), settings, earlier
            )
            said = f"{session.seconds - before:.1f} s, batches of up to {engine.batch_tokens:,} tokens"
            events(Notice(f"{plan.name} on {bench.name}: {said}", is_detail=True))
            for note in blocks[bench.name]["notes"]:
                events(Notice(f"{bench.name}: {note}", is_warning=True))
        if share.is_first:
            require_answers(rows, plan.folder)
    finally:
        if plan.adapter is not None:
            detach_adapter(loaded, engine.loaded.model)
    run = EvalRun(
        name=plan.name,
        base=plan.base,
        adapter=None if plan.adapter is None else {"name": plan.name, "fingerprint": plan.adapter.fingerprint},
        benchmarks=blocks,
        settings={key: value for key, value in identity.items() if key not in ("base", "adapter")},
        versions=library_versions("torch", "transformers", "peft"),
        seconds=round(session.seconds, 3),
        resumed=session.resumed,
        mmavg=mmavg(blocks),
    )
    # The others may still be reading the journals that are removed here.
    share.wait()
    if share.is_first:
        plan.folder.write_results(run.to_dict())
    return run, rows


def _bench(
    session: Session,
    bench: Task,
    items: list[Example],
    blind_items: list[Example] | None,
    settings: EvalSettings,
    earlier: Mapping[str, Any],
) -> tuple[list[Prediction], dict[str, Any]]:
    """A benchmark's rows and scores, with those of the blind baseline beside them."""
    most = settings.max_new_tokens or bench.max_new_tokens
    rows = session.rows(bench, items, label=bench.name, max_new_tokens=most)
    block = score_task(bench, rows, settings.protocol)
    block["judge"] = earlier.get("judge")
    if blind_items is None:
        return rows, {**block, "shuffled": earlier.get("shuffled")}
    blind = session.rows(bench, blind_items, label=f"{bench.name}-shuffled", max_new_tokens=most)
    return rows, {**block, "shuffled": bench.scores(blind, settings.protocol)}
